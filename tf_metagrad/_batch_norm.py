"""Batch normalisation by TensorFlow's fused kernel, with derivatives of first and second order by the same kernel.

With means over all axes but the channels', m = mean(x), r = 1 / sqrt(var(x) + eps), x^ = r (x - m) and

    P(u) = u - mean(u) - x^ mean(x^ u),   p_u = r P(u),

which is what `FusedBatchNormGradV3` computes, the layer y = s x^ + o and its gradient are

    dx = s p_D,   ds = n mean(x^ D),   do = n mean(D),                           D the gradient of y.

P is symmetric, and x^ moves by p_t where x moves by t. So along (x', s', o', D')

    y'  = s p_x' + s' x^ + o'
    dx' = s p_D' + (s' - s r a) p_D - s r d p_x' - s r k x^,   a = mean(x^ x'), d = mean(x^ D), k = mean(D p_x')
    ds' = n (mean(x^ D') + k),   do' = n mean(D'),

and the transpose of the latter, for a tape over a tape, has the same terms: two or three passes over the activations
for each of y, dx, y' and dx'. What TensorFlow makes of its own rules takes more of them in products with the Hessian,
and Keras' layer, in plain operations, several times as many everywhere; passes over memory are what a small
convolutional net on a CPU waits for. So the arithmetic of one channel is done first, and what is left for the
activations are combinations sum_i c_i (t_i - m_i), a pass for each term; the m_i are means that are zero but for
rounding: the layer before multiplies them by the mean of its own inputs.

These derivatives are known to the tapes and accumulators that are at work while the model is traced. Whoever
differentiates the traced function gets those that TensorFlow registers for the kernel, which are as right.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import keras
import tensorflow as tf
from tensorflow.python.eager import record

from tf_metagrad._second_order import substituted
from tf_metagrad._user_derivatives import differentiates

_AXES = (0, 1, 2)


_LARGE = 2**20  # numbers; from there on the kernel's one pass for a product and a sum outweighs its own start

Combined = tuple[tf.Tensor, tf.Tensor, tf.Tensor]  # a tensor `[n, h, w, c]`, its coefficient and its mean, each `[c]`


class _Batch(NamedTuple):
    """What the kernel left of a batch: its inputs `[n, h, w, c]`, statistics, and what its gradient reads."""

    x: tf.Tensor
    mean: tf.Tensor
    rate: tf.Tensor
    saved: tuple[tf.Tensor, ...]
    count: tf.Tensor
    epsilon: float

    def project(self, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return p_u, mean(x^ u), mean(u) and mean(p_u), which is zero but for rounding."""
        p, product, total = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=u, x=self.x, scale=tf.ones_like(self.rate), reserve_space_1=self.saved[0],
            reserve_space_2=self.saved[1], reserve_space_3=self.saved[2], epsilon=self.epsilon, is_training=True,
        )[:3]  # fmt: skip
        return p, product / self.count, total / self.count, self.mean_of(p)

    def mean_of(self, u: tf.Tensor) -> tf.Tensor:
        """Return the mean of each channel, by the fastest of the kernels that sum."""
        return tf.raw_ops.BiasAddGrad(out_backprop=u) / self.count

    def centred(self, scale: tf.Tensor) -> Combined:
        """Return scale x^, as a term of a combination."""
        return self.x, scale * self.rate, self.mean


def _combine(first: Combined, *others: Combined, offset: tf.Tensor | None = None) -> tf.Tensor:
    """Return sum_i c_i (t_i - m_i) + offset."""
    for _, coefficient, mean in (first, *others):
        offset = -coefficient * mean if offset is None else offset - coefficient * mean
    tensor, coefficient, _ = first
    rest = [t * c for t, c, _ in others]
    if (tensor.shape.num_elements() or 0) < _LARGE:
        return tf.add_n([tensor * coefficient, *rest]) + offset if rest else tensor * coefficient + offset
    one = tf.ones_like(coefficient)
    affine = tf.raw_ops.FusedBatchNormV3(
        x=tensor, scale=coefficient, offset=offset, mean=tf.zeros_like(one), variance=one, epsilon=0.0,
        is_training=False,
    )[0]  # fmt: skip
    return tf.add_n([affine, *rest]) if rest else affine


def batch_norm(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float):
    """Return the normalised batch, its mean and its (biased) variance; the last two are taken as constants.

    Args:
        x: `[n, h, w, channels]`, float32.
        scale: `[channels]`.
        offset: `[channels]`.
        epsilon: added to the variance.
    """
    with record.stop_recording():
        count = tf.cast(tf.size(x) // x.shape[-1], x.dtype)
        shift = tf.raw_ops.BiasAddGrad(out_backprop=x) / count
        centred = x - shift  # the kernel loses digits where the mean is far above the deviation
        y, mean, variance, *saved = tf.raw_ops.FusedBatchNormV3(
            x=centred, scale=scale, offset=offset, mean=[], variance=[], epsilon=epsilon, is_training=True
        )
        variance = variance * (tf.maximum(count - 1, 1) / count)  # the kernel divides by n - 1
        batch = _Batch(centred, mean, tf.math.rsqrt(variance + epsilon), tuple(saved), count, epsilon)

    def backward(dy):
        return _gradient(batch, dy, x, scale)

    def forward(x_t, scale_t, offset_t):
        p, _, _, zero = batch.project(x_t)
        return [_combine((p, scale, zero), batch.centred(scale_t), offset=offset_t)]

    record.record_operation("BatchNorm", [y], [x, scale, offset], backward, forward)
    return y, mean + shift, variance


def _gradient(batch: _Batch, dy: tf.Tensor, x: tf.Tensor, scale: tf.Tensor) -> list[tf.Tensor]:
    """Return dx, ds and do; `x` is `batch.x`, as the recording knows it."""
    with record.stop_recording():
        p_dy, d, mean, zero_dy = batch.project(dy)
        outputs = [_combine((p_dy, scale, zero_dy)), batch.count * d, batch.count * mean]

    def turned(u):
        """Return the terms of the change of s p_D as x moves along u, and k = mean(D p_u)."""
        p, a, _, zero = batch.project(u)
        k = batch.mean_of(dy * p) - zero * mean
        s_r = scale * batch.rate
        return [(p_dy, -s_r * a, zero_dy), (p, -s_r * d, zero), batch.centred(-s_r * k)], k

    def forward(dy_t, x_t, scale_t):
        p_t, d_t, mean_t, zero = batch.project(dy_t)
        (along_dy, *change), k = turned(x_t)
        along_dy = (p_dy, along_dy[1] + scale_t, zero_dy)
        return [_combine((p_t, scale, zero), along_dy, *change), batch.count * (d_t + k), batch.count * mean_t]

    def backward(u, ds_bar, do_bar):
        p, _, _, zero = batch.project(u)
        (along_dy, *change), k = turned(u)
        to_dy = _combine((p, scale, zero), batch.centred(ds_bar), offset=do_bar)
        return [to_dy, _combine((p_dy, along_dy[1] + ds_bar, zero_dy), *change), batch.count * k]

    record.record_operation("BatchNormGrad", outputs, [dy, x, scale], backward, forward)
    return outputs


@contextlib.contextmanager
def fused_batch_normalization() -> Iterator[None]:
    """Let Keras' BatchNormalization use `batch_norm` where it can."""

    def call(original, layer, inputs, training=None, mask=None, **kwargs):
        x = tf.convert_to_tensor(inputs)
        if not (training and mask is None and _fits(layer, x)) or differentiates():
            return original(layer, inputs, training=training, mask=mask, **kwargs)
        return _layer(layer, tf.cast(x, tf.float32))

    with substituted(keras.layers.BatchNormalization, "call", call):
        yield


def _fits(layer: keras.layers.BatchNormalization, x: tf.Tensor) -> bool:
    """Return whether the kernel does what the layer does in training; a user's subclass may do anything."""
    return (
        type(layer) is keras.layers.BatchNormalization
        and layer.trainable
        and not layer.synchronized
        and not getattr(layer, "renorm", False)  # newer than the oldest Keras
        and x.shape.rank in (3, 4, 5)
        and layer.axis in (-1, x.shape.rank - 1)
        and x.dtype in (tf.float32, tf.bfloat16, tf.float16)
    )


def _layer(layer: keras.layers.BatchNormalization, x: tf.Tensor) -> tf.Tensor:
    """Return the outputs of the layer in training, and move its averages."""
    channels = x.shape[-1]
    scale = tf.cast(layer.gamma, x.dtype) if layer.scale else tf.ones([channels], x.dtype)
    offset = tf.cast(layer.beta, x.dtype) if layer.center else tf.zeros([channels], x.dtype)
    four = x if x.shape.rank == 4 else tf.reshape(x, [-1, 1, 1, channels])
    y, mean, variance = batch_norm(four, scale, offset, layer.epsilon)
    for average, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        moved = tf.convert_to_tensor(average) * layer.momentum + tf.cast(value, average.dtype) * (1 - layer.momentum)
        average.assign(moved)
    return tf.cast(y if x.shape.rank == 4 else tf.reshape(y, tf.shape(x)), layer.compute_dtype)
