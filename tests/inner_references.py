"""Inner loops in NumPy, holomorphic, so that complex steps differentiate them to rounding. Nothing of the library."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tf_metagrad import inner as mg_inner

Vectors = list[np.ndarray]


def tanh_net(w: Vectors, x: np.ndarray, y: np.ndarray) -> tuple[Any, Vectors]:
    """Return cross-entropy and gradient of softmax(tanh(x W + b) V + c)."""
    hidden = np.tanh(x @ w[0] + w[1])
    e = np.exp(hidden @ w[2] + w[3])
    p, rows = e / e.sum(-1, keepdims=True), np.arange(len(x))
    loss, d = -np.mean(np.log(p[rows, y])), p.copy()
    d[rows, y] -= 1
    d /= len(x)
    back = (d @ w[2].T) * (1 - hidden**2)
    return loss, [x.T @ back, back.sum(0), hidden.T @ d, d.sum(0)]


def linear_net(w: Vectors, x: np.ndarray, y: np.ndarray) -> tuple[Any, Vectors]:
    """Return mean squared error and gradient of x W."""
    r = x @ w[0] - y
    return np.mean(r**2), [2 * x.T @ r / r.size]


def direction(inner, g: Vectors, slots: Vectors, k: int) -> tuple[Vectors, Vectors]:
    """Return the update rule's u_k and its slots, from the papers' formulas."""
    if isinstance(inner, mg_inner.Momentum):
        m = [inner.momentum * a + b for a, b in zip(slots or [0] * len(g), g, strict=True)]
        return [b + inner.momentum * a for a, b in zip(m, g, strict=True)] if inner.nesterov else m, m
    if isinstance(inner, mg_inner.RMSprop):
        v = [inner.rho * a + (1 - inner.rho) * b * b for a, b in zip(slots or [0] * len(g), g, strict=True)]
        return [b / np.sqrt(a + inner.epsilon) for a, b in zip(v, g, strict=True)], v
    if isinstance(inner, mg_inner.Adam):
        first, second = slots or ([0] * len(g), [0] * len(g))
        m = [inner.beta_1 * a + (1 - inner.beta_1) * b for a, b in zip(first, g, strict=True)]
        v = [inner.beta_2 * a + (1 - inner.beta_2) * b * b for a, b in zip(second, g, strict=True)]
        c = np.sqrt(1 - inner.beta_2 ** (k + 1)) / (1 - inner.beta_1 ** (k + 1))
        return [c * a / (np.sqrt(b) + inner.epsilon) for a, b in zip(m, v, strict=True)], (m, v)
    return g, slots


class Run(NamedTuple):
    """The judged query loss, phi^K with the shared weights, steps taken, |G| when last looked at, |G_k| of all."""

    loss: Any
    weights: Vectors
    taken: int
    residual: float
    norms: list[float]


class InnerLoop(NamedTuple):
    """One task's adaptation. `adapting` lists the weights that adapt and `layers` the layer of each.

    With a `truncation` the gradients of the earlier steps are constants. `step_weights` judges every iterate.
    """

    net: Callable
    task: Any
    inner: Any
    adapting: list[int]
    layers: list[int]
    truncation: int | None = None
    step_weights: tuple[float, ...] = ()

    def rates(self, learned: Vectors, k: int) -> list[Any]:
        """Return D_k."""
        count = len(self.adapting)
        if self.inner.learn in (None, "weight"):
            return [self.inner.learning_rate] * count
        if self.inner.learn == "scalar":
            return [learned[0]] * count
        if self.inner.learn == "per_layer_and_step":
            return [learned[0][k][layer] for layer in self.layers]
        return learned

    def __call__(self, theta: Vectors, learned: Vectors = ()) -> Run:
        """Run the loop and judge it on the query set."""
        x, y, query_x, query_y = self.task
        steps, phi, slots, loss, norms = self.inner.steps, list(theta), [], 0.0, []
        frozen = steps - (steps if self.truncation is None else self.truncation)
        taken, tolerance = 0, getattr(self.inner, "tolerance", 0)
        weight = np.exp(learned[0]) if self.inner.learn == "weight" else getattr(self.inner, "weight", 0.0)

        def look(see):
            g = self.net([see(p) for p in phi], x, y)[1]
            g = [g[i] + see(weight) * (see(phi[i]) - see(theta[i])) for i in self.adapting]
            return g, np.sqrt(sum(np.sum(np.real(a) ** 2) for a in g))

        going = True
        for k in range(steps):
            if going:
                g, residual = look(np.real if k < frozen else lambda t: t)
                norms.append(residual)
                going = not (tolerance and residual <= tolerance)
            if going:
                u, slots = direction(self.inner, g, slots, k)
                for i, rate, step in zip(self.adapting, self.rates(learned, k), u, strict=True):
                    phi[i] = phi[i] - rate * step
                taken += 1
            if self.step_weights:
                loss = loss + self.step_weights[k] * self.net(phi, query_x, query_y)[0]
        last = self.net(phi, query_x, query_y)[0]
        return Run(loss if self.step_weights else last, phi, taken, look(np.real)[1], norms)


def complex_step(function: Callable, variables: Vectors) -> Vectors:
    """Return the gradient of a holomorphic function of a list of arrays, entry by entry, to rounding."""
    gradient = [np.zeros(np.shape(v)) for v in variables]
    for i, v in enumerate(variables):
        for index in np.ndindex(np.shape(v)):
            moved = [np.array(x, complex) for x in variables]
            moved[i][index] += 1e-30j
            gradient[i][index] = np.imag(function(moved)) / 1e-30
    return gradient


def loops(learner, tasks, net: Callable, adapting: list[int], **options) -> list[InnerLoop]:
    """Return the reference loop of every task of a batch; two weights make a layer."""
    layers = [i // 2 - adapting[0] // 2 for i in adapting]
    return [InnerLoop(net, task, learner.inner, adapting, layers, **options) for task in zip(*tasks, strict=True)]


def meta_gradient(learner, references: list[InnerLoop]) -> Vectors:
    """Return the reference of `learner.meta_gradient(tasks).gradients`: the mean over the tasks."""
    count = len(learner.model.trainable_variables)
    variables = [v.numpy() for v in learner.meta_variables]

    def mean_loss(moved: Vectors):
        return np.mean([one(moved[:count], moved[count:]).loss for one in references])

    return complex_step(mean_loss, variables)
