"""Keras' masks of padded steps, from the model's predictions to the metrics.

Keras leaves a mask as an attribute of a tensor, where the losses find it; stacking tasks, or any other operation, loses
it. So masks travel beside the predictions until the metrics read them.
"""

from typing import Any, NamedTuple

import tensorflow as tf


class Masked(NamedTuple):
    """Predictions, and the masks `[query, steps]` of those leaves that have one, by the leaf's number."""

    values: Any
    masks: dict[int, tf.Tensor]


def with_masks(predictions: Any) -> Any:
    """Return predictions as `Masked` where there are masks, else as they are."""
    masks = {i: mask_of(leaf) for i, leaf in enumerate(tf.nest.flatten(predictions)) if mask_of(leaf) is not None}
    return Masked(predictions, masks) if masks else predictions


def attached(predictions: Any) -> Any:
    """Return the predictions with their masks where Keras looks for them."""
    if not isinstance(predictions, Masked):
        return predictions
    leaves = [copied(leaf, predictions.masks.get(i)) for i, leaf in enumerate(tf.nest.flatten(predictions.values))]
    return tf.nest.pack_sequence_as(predictions.values, leaves)


def copied(t: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """Return the same tensor with this mask."""
    t = tf.identity(t)
    if mask is not None:
        t._keras_mask = mask
    return t


def mask_of(t: Any) -> tf.Tensor | None:
    """Return the mask that Keras left with a tensor."""
    return getattr(t, "_keras_mask", None)


def mean(values: tf.Tensor, predictions: Any) -> tf.Tensor:
    """Return the mean of a loss function's values, of the unmasked ones where there is one for each entry of a mask.

    `keras.losses.Loss` does that by itself; a function, such as "mse" names, leaves it to who calls it.
    """
    mask = mask_of(predictions)
    if mask is None or values.shape.rank is None or not values.shape.is_compatible_with(mask.shape):
        return tf.reduce_mean(values)
    mask = tf.cast(mask, values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(mask * values), tf.reduce_sum(mask))
