"""The contract of every estimator."""

import abc
import dataclasses
from typing import Any

import numpy as np

from tf_metagrad._problem import Estimate, Problem
from tf_metagrad.inner import GradientDescent, InnerOptimizer


class Estimator(abc.ABC):
    """A meta-gradient estimator: a frozen value that turns a `Problem` into an `Estimate`.

    A new estimator is one new file beside this one: a frozen dataclass, registered with
    `keras.saving.register_keras_serializable(package="tf_metagrad")`, that implements `estimate`; made with
    `repr=False`, for the short form that `Estimator` gives.
    """

    def __repr__(self) -> str:
        """Return the call that makes an equal value, with whole numbers and what differs from the default."""
        values = [(field, getattr(self, field.name)) for field in dataclasses.fields(self)]
        shown = [f"{field.name}={v!r}" for field, v in values if type(v) is int or v != field.default]
        return f"{type(self).__name__}({', '.join(shown)})"

    @abc.abstractmethod
    def estimate(self, problem: Problem) -> Estimate:
        """Return the meta-gradient of the problem, the mean over its tasks."""

    def check(self, inner: InnerOptimizer) -> None:  # noqa: B027  most estimators take every inner optimiser
        """Raise `ValueError` where this estimator can't be used with `inner`."""

    def hvps(self, steps: int) -> int:
        """Return how many Hessian-vector products one task costs at K = `steps`."""
        return 0

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal value."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Estimator":
        """Return the value that `get_config` described."""
        return cls(**config)


def check_order(name: str, value: int) -> None:
    """Raise `ValueError` unless `value` is a whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"`{name}` must be a whole number of at least 0. Received: {name}={value!r}.")


def check_at_most(name: str, value: int, steps: int) -> None:
    """Raise `ValueError` where an order exceeds the number of inner steps."""
    if value > steps:
        raise ValueError(
            f"`{name}` must be at most the number of inner steps. Received: {name}={value} with steps={steps}. "
            f"Lower `{name}` (at {name}={steps} the estimate is already exact) or take more steps."
        )


def check_plain(estimator: Estimator, inner: InnerOptimizer) -> None:
    """Raise `ValueError` unless the inner optimiser is plain gradient descent."""
    if type(inner) is not GradientDescent:
        raise ValueError(
            f"{type(estimator).__name__} is stated for plain gradient descent: its expansion needs steps of the form "
            f"(I - H D). Received: inner={inner}. Use mg.inner.GradientDescent, or MAML or TruncMAML, which take every "
            "inner optimiser."
        )


def check_proximal(estimator: Estimator, inner: InnerOptimizer) -> None:
    """Raise `ValueError` unless the inner problem has a proximal term, so that its solution depends on theta."""
    if not inner.proximal:
        raise ValueError(
            f"{type(estimator).__name__} needs an inner problem with a proximal term, whose solution depends on the "
            f"initialisation. Received: inner={inner}. Use mg.inner.ProximalGradientDescent."
        )


def check_fixed_weight(estimator: Estimator, inner: InnerOptimizer) -> None:
    """Raise `ValueError` where the inner optimiser learns its proximal weight."""
    if inner.learn == "weight":
        raise ValueError(
            f"{type(estimator).__name__} has no gradient for a learned proximal weight. Received: learn='weight'. "
            "Use a fixed `weight`, or MAML, IMAML or FOBMAML."
        )


def check_small(name: str, value: float) -> None:
    """Raise `ValueError` unless 0 < value < 1."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < 1:
        raise ValueError(f"`{name}` must be a number between 0 and 1. Received: {name}={value!r}.")


def check_fixed(estimator: Estimator, inner: InnerOptimizer) -> None:
    """Raise `ValueError` where the inner optimiser learns hyperparameters."""
    if inner.learn is not None:
        raise ValueError(
            f"{type(estimator).__name__} has no gradient for a learned hyperparameter. "
            f"Received: learn={inner.learn!r}. Use a fixed one, or another estimator."
        )
