"""A Keras model and a loss as pure functions of the weights."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.losses.loss import squeeze_or_expand_to_same_rank

from tf_metagrad import _masks
from tf_metagrad._attention import fast_attention
from tf_metagrad._batch_norm import fused_batch_normalization
from tf_metagrad._bias import separate_bias_gradients
from tf_metagrad._max_pool import plain_max_pooling
from tf_metagrad._pfor import correct_vectorization
from tf_metagrad._products import fast_products
from tf_metagrad._second_order import correct_second_derivatives, substituted
from tf_metagrad._types import Params, first_line
from tf_metagrad._user_derivatives import user_derivatives
from tf_metagrad._vectorize import vectorizable_convolutions


@contextlib.contextmanager
def batch_normalization_statistics(kind: str) -> Iterator[None]:
    """Make BatchNormalization use the batch at hand (`"batch"`) or its stored averages (`"stored"`), dropout unmoved.

    A layer frozen with `trainable=False` uses its stored averages in either case, as Keras defines it.
    """
    training = kind == "batch"

    def call(original, layer, inputs, training_argument=None, mask=None, **kwargs):
        del training_argument
        kwargs["training"] = training
        return original(layer, inputs, mask=mask, **kwargs)

    with substituted(keras.layers.BatchNormalization, "call", call):
        yield


@contextlib.contextmanager
def fast_kernels() -> Iterator[None]:
    """Trace a model in this scope for TensorFlow's own kernels, one task at a time."""
    with (
        user_derivatives(),
        fused_batch_normalization(),
        separate_bias_gradients(),
        fast_products(),
        fast_attention(),
    ):
        yield


class FunctionalModel:
    """`predict` and `loss` as functions of explicit weights and explicit non-trainable state.

    Args:
        model: a built `keras.Model`.
        loss: `loss(y_true, y_pred)`, a scalar or one value for each example (then averaged).
        normalization: `"batch"` or `"stored"`, see `batch_normalization_statistics`.
        vectorized: whether the functions run under `tf.vectorized_map`, see `_vectorize`.
        fused: whether TensorFlow's own kernels run: batches are normalised by the fused one, see `_batch_norm`, and
            max-pooling is not rewritten for XLA, see `_max_pool`.
        per_step: indices of the state's entries that are tables with a row for each inner step, see `_rows`.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Callable,
        normalization: str,
        vectorized: bool = False,
        fused: bool = False,
        per_step: Sequence[int] = (),
    ):
        """Store the parts; see the class."""
        self.model = model
        self.loss_fn = loss
        self.normalization = normalization
        self.vectorized, self.fused = vectorized, fused
        self.per_step = tuple(per_step)
        self.narrow = any(layer.compute_dtype == "float16" for layer in model._flatten_layers())  # exponents of 5 bits

    def predict(self, weights: Params, state: Params, x: Any, training: bool):
        """Return `(predictions, new_state, penalty)`; the penalty sums the model's own losses (regularisers)."""
        state, write = self._rows(state)
        with self._operations(), batch_normalization_statistics(self.normalization):
            mode = {"training": training} if self.model._call_has_training_arg else {}  # a user's call may lack it
            y_pred, state, losses = self.model.stateless_call(list(weights), list(state), x, return_losses=True, **mode)
        penalty = tf.add_n([tf.convert_to_tensor(p) for p in losses]) if losses else None
        return y_pred, write([tf.convert_to_tensor(s) for s in state]), penalty

    def _values(self, y: Any, y_pred: Any) -> tf.Tensor:
        """Return what the loss makes of targets and predictions."""
        if isinstance(self.loss_fn, keras.losses.Loss):
            return self.loss_fn(y, y_pred)
        if tf.is_tensor(y) and tf.is_tensor(y_pred):  # as Keras does for functions, or [n] and [n, 1] would broadcast
            y, y_pred = squeeze_or_expand_to_same_rank(y, y_pred)
        if (getattr(self.loss_fn, "__module__", None) or "").startswith("keras."):
            return self.loss_fn(y, y_pred)
        try:
            return tf.convert_to_tensor(self.loss_fn(y, y_pred))
        except (NotImplementedError, AttributeError, TypeError, ValueError, tf.errors.OpError) as error:
            name = getattr(self.loss_fn, "__name__", type(self.loss_fn).__name__)
            shapes = [tuple(t.shape) for t in tf.nest.flatten([y, y_pred])]
            raise ValueError(
                "`loss` must be a function loss(y_true, y_pred), made of operations of TensorFlow or keras.ops, that "
                "returns a number or one for each example. "
                f"Received: {name!r}, which for tensors of the shapes {shapes} gave: {first_line(error)}"
            ) from error

    @contextlib.contextmanager
    def _operations(self) -> Iterator[None]:
        """The model and the loss are traced in this scope."""
        kernels = fast_kernels() if self.fused else plain_max_pooling()
        convolutions = vectorizable_convolutions() if self.vectorized else contextlib.nullcontext()
        with correct_second_derivatives(), correct_vectorization(), kernels, convolutions:
            yield

    def _rows(self, state: Params) -> tuple[list[tf.Tensor], Callable[[Params], list[tf.Tensor]]]:
        """Return the state of one call of the model, and a function that writes the new state back.

        Where entries are tables, the state has the number of the step as one more entry at the end; a call of the model
        reads and writes that row of the tables (the last one, from there on), and adds one to the number.
        """
        if not self.per_step:
            return list(state), list
        *state, step = state
        rows = state[self.per_step[0]].shape[0]
        row = tf.minimum(step, rows - 1)

        def write(new: Params) -> list[tf.Tensor]:
            written = list(new)
            for i in self.per_step:
                here = tf.reshape(tf.range(rows) == row, [rows] + [1] * (state[i].shape.rank - 1))
                written[i] = tf.where(here, new[i][None], state[i])
            return [*written, step + 1]

        return [tf.gather(s, row) if i in self.per_step else s for i, s in enumerate(state)], write

    def loss(self, weights: Params, state: Params, x: Any, y: Any, training: bool):
        """Return `(loss, (new_state, predictions))`; the loss is a scalar, computed in float32 or finer.

        The predictions are `Masked` where Keras masks them.
        """
        y_pred, state, penalty = self.predict(weights, state, x, training)
        with self._operations():
            wide = tf.nest.map_structure(_at_least_float32, y_pred)
            loss = _masks.mean(self._values(y, wide), wide)
        if penalty is not None:
            loss += tf.cast(penalty, loss.dtype)
        return loss, (state, _masks.with_masks(y_pred))


def _at_least_float32(t: tf.Tensor) -> tf.Tensor:
    """Return predictions of 16 bits as float32: losses that Keras finds by a name would round their targets, too."""
    narrow = t.dtype in (tf.float16, tf.bfloat16)
    return _masks.copied(tf.cast(t, tf.float32), _masks.mask_of(t)) if narrow else t
