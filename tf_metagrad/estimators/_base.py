"""The contract of every estimator."""

import abc
import dataclasses
from typing import Any

import numpy as np

from tf_metagrad._problem import Estimate, Problem
from tf_metagrad.inner import GradientDescent


class Estimator(abc.ABC):
    """A meta-gradient estimator: a frozen value that turns a `Problem` into an `Estimate`.

    A new estimator is one new file beside this one: a frozen dataclass, registered with
    `keras.saving.register_keras_serializable(package="tf_metagrad")`, that implements `estimate`.
    """

    @abc.abstractmethod
    def estimate(self, problem: Problem) -> Estimate:
        """Return the meta-gradient of the problem, the mean over its tasks."""

    def check(self, inner: GradientDescent) -> None:  # noqa: B027  most estimators take every inner optimiser
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
