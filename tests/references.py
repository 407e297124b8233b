"""Independent float64 references: closed forms on quadratics, brute-force sums, central differences. NumPy only."""

import itertools
from collections.abc import Callable

import numpy as np

Vectors = list[np.ndarray]


def ravel(tensors) -> np.ndarray:
    """Return a list of tensors as one vector."""
    return np.concatenate([np.ravel(np.asarray(t)) for t in tensors])


def relative_error(value, reference) -> float:
    """Return |value - reference| / |reference| of whole vectors."""
    value, reference = ravel(value), ravel(reference)
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def directional_derivative(function: Callable, variables, direction: Vectors, step: float) -> float:
    """Return the fourth-order central difference of `function()` as the variables move along `direction`."""
    start = [v.numpy() for v in variables]

    def at(t: float) -> float:
        for variable, s, d in zip(variables, start, direction, strict=True):
            variable.assign(s + t * d)
        return float(function())

    value = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    at(0.0)
    return value


class Quadratic:
    """Linear regression with squared error: one Hessian for all iterates, so every estimator has a closed form.

    l(w) = mean((X w - y)^2), grad l(w) = A w - b with A = 2 X'X / n.
    """

    def __init__(self, support, query, w0: np.ndarray, rates: np.ndarray):
        """`rates[k]` is the diagonal of D_k, `[steps, weights]`."""
        (xs, ys), (xq, yq) = support, query
        self.hessian, self.b = 2 * xs.T @ xs / len(xs), 2 * xs.T @ ys / len(xs)
        self.query_hessian, self.c = 2 * xq.T @ xq / len(xq), 2 * xq.T @ yq / len(xq)
        self.rates, self.steps, self.w0 = rates, len(rates), w0
        self.path, self.gradients = [w0], []
        for rate in rates:
            self.gradients.append(self.hessian @ self.path[-1] - self.b)
            self.path.append(self.path[-1] - rate * self.gradients[-1])
        self.g = self.query_gradient(self.path[-1])

    def factors(self) -> list[np.ndarray]:
        """Return -H D_k for each step."""
        return [-self.hessian * rate for rate in self.rates]

    def binomial(self, order: int, first: int = 0, start: int = 0) -> np.ndarray:
        """Return eq. (8) or (39): products of at most `order` factors among steps max(first, start) .. K-1."""
        return binomial_sum(self.factors()[max(first, start) :], order, self.g)

    def query_gradient(self, w: np.ndarray) -> np.ndarray:
        """Return the gradient of the query loss at w."""
        return self.query_hessian @ w - self.c

    def multi_step(self, step_weights: tuple[float, ...], start: int = 0) -> np.ndarray:
        """Return the adjoint of phi^start under sum_k w_k l_val(phi^k), k = 1 .. K; for `start` > 0 from w_start on."""
        total = np.zeros_like(self.w0)
        for k in range(max(start, 1), self.steps + 1):
            term = step_weights[k - 1] * self.query_gradient(self.path[k])
            for factor in reversed(self.factors()[start:k]):
                term = term + factor @ term
            total = total + term
        return total

    def proximal(self, weight: float, nu: float = 0.0) -> np.ndarray:
        """Return the solution of min nu l_val(w) + l(w) + weight/2 |w - w0|^2."""
        matrix = nu * self.query_hessian + self.hessian + weight * np.eye(len(self.w0))
        return np.linalg.solve(matrix, nu * self.c + self.b + weight * self.w0)

    def implicit(self, weight: float) -> np.ndarray:
        """Return the gradient of l_val(proximal(w0)) with respect to w0."""
        matrix = np.eye(len(self.w0)) + self.hessian / weight
        return np.linalg.solve(matrix, self.query_gradient(self.proximal(weight)))

    def rate_gradient(self, adjoint: Callable[[int], np.ndarray]) -> np.ndarray:
        """Return dF/dD_k for all steps, given the adjoint of phi^j as a function of j."""
        return np.stack([-g * adjoint(k + 1) for k, g in enumerate(self.gradients)])


def binomial_sum(factors: list[np.ndarray], order: int, g: np.ndarray) -> np.ndarray:
    """Return [I + sum over l <= order, k_1 < ... < k_l of prod factors[k_i]] g, term by term."""
    total = g.copy()
    for length in range(1, order + 1):
        for chosen in itertools.combinations(range(len(factors)), length):
            term = g
            for k in reversed(chosen):
                term = factors[k] @ term
            total = total + term
    return total
