"""The contract of every inner optimiser."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from tf_metagrad._types import Params


class AdaptingWeights(NamedTuple):
    """What an inner optimiser needs to know of the weights that adapt: shapes, and the layer that owns each."""

    shapes: list[tuple[int, ...]]
    layers: list[int]


class InnerOptimizer(abc.ABC):
    """K steps of one update rule, a frozen value.

        u_k, slots_{k+1} = direction(G_k, slots_k, k),      phi^{k+1} = phi^k - D_k u_k,

    with G_k the gradient of the inner objective and D_k a diagonal of rates. The inner objective is the support loss;
    where `proximal` is True it has the term lambda/2 |phi - theta|^2, and the rule must offer `weight_of`.

    A new inner optimiser is one new file beside this one: a frozen dataclass, registered with
    `keras.saving.register_keras_serializable(package="tf_metagrad")`, that implements `rates_at` and whichever of the
    other methods it needs. `direction` must be differentiable everywhere, with finite derivatives at zero.

    Attributes:
        steps: K.
        learning_rate: alpha, the size of a step; where rates are learned, their initial value.
        learn: which hyperparameters are learned together with the initialisation, or None.
        tolerance: the norm of G_k at which a task stops; 0 where all K steps are taken.
    """

    steps: int
    learning_rate: float
    learn: str | None
    proximal: ClassVar[bool] = False
    tolerance: float = 0.0

    def initial_hyperparameters(self, weights: AdaptingWeights) -> dict[str, np.ndarray]:
        """Return the initial value of each learned hyperparameter, by name."""
        del weights
        return {}

    @abc.abstractmethod
    def rates_at(self, learned: Params, step: tf.Tensor, weights: AdaptingWeights, dtypes: Sequence[Any]):
        """Return D_k as one tensor for each adapting weight: a scalar, or of the weight's shape."""

    @property
    def turns(self) -> bool:
        """Whether the rule has a `direction` of its own, u_k other than G_k."""
        return type(self).direction is not InnerOptimizer.direction

    def initial_slots(self, phi: Params) -> list[tf.Tensor]:
        """Return what the rule remembers from step to step, at first; each tensor has the shape of one in `phi`."""
        del phi
        return []

    def direction(self, gradient: Params, slots: Params, step: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Return `(u_k, slots_{k+1})`."""
        del step
        return list(gradient), list(slots)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal value."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "InnerOptimizer":
        """Return the value that `get_config` described."""
        return cls(**config)


def check_count(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1. Received: {name}={value!r}.")


def take_count(owner: Any, name: str) -> None:
    """Check a count of a frozen value, and make it Python's: NumPy's make TensorFlow compute in other types."""
    check_count(name, getattr(owner, name))
    object.__setattr__(owner, name, int(getattr(owner, name)))


def is_one_of(value: Any, choices: Sequence[str | None]) -> bool:
    """Return whether `value` is one of the texts, or None where that is a choice; other types are not compared."""
    return (value is None or isinstance(value, str)) and value in choices


def check_positive(name: str, value: Any, hint: str = "") -> None:
    """Raise `ValueError` unless `value` is a positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
        raise ValueError(f"`{name}` must be a positive number. Received: {name}={value!r}.{hint}")


def check_fraction(name: str, value: Any) -> None:
    """Raise `ValueError` unless 0 <= value < 1."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < 1:
        raise ValueError(f"`{name}` must be at least 0 and below 1. Received: {name}={value!r}.")
