"""The networks of the papers, as plain functional Keras models. Any other built `keras.Model` does as well."""

from collections.abc import Sequence

import keras
from keras import layers


def mlp(inputs: int = 1, hidden: Sequence[int] = (40, 40), outputs: int = 1, activation: str = "relu") -> keras.Model:
    """Return the regression net of MAML's sinusoid experiment (arXiv:1703.03400, section 5.1).

    Example:
        >>> mlp().count_params()
        1761
    """
    x = start = keras.Input((inputs,))
    for units in hidden:
        x = layers.Dense(units, activation=activation)(x)
    return keras.Model(start, layers.Dense(outputs, name="head")(x), name="mlp")


def conv1d(ways: int, length: int = 40, filters: int = 16, blocks: int = 3) -> keras.Model:
    """Return the MNIST-1D net of FO-B-MAML, appendix D.2: convolution, batch norm, ReLU and max-pool, three times.

    Example:
        >>> conv1d(ways=3).output_shape
        (None, 3)
    """
    x = start = keras.Input((length, 1))
    for _ in range(blocks):
        x = layers.Conv1D(filters, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.MaxPooling1D(2)(layers.ReLU()(x))
    return keras.Model(start, layers.Dense(ways, name="head")(layers.Flatten()(x)), name="conv1d")


def conv2d(
    ways: int, shape: tuple[int, int, int] = (28, 28, 1), filters: int = 64, blocks: int = 4, pool: bool = True
) -> keras.Model:
    """Return the four-block convolutional net of the few-shot literature (arXiv:1606.04080; 1703.03400, section 5.2).

    Args:
        ways: number of outputs.
        shape: height, width and channels of an image.
        filters: filters of each 3x3 convolution.
        blocks: number of blocks.
        pool: 2x2 max-pooling after each block; where False, convolutions of stride 2, as in MAML's Omniglot net.

    Example:
        >>> conv2d(ways=5).count_params()
        112773
    """
    x = start = keras.Input(shape)
    for _ in range(blocks):
        x = layers.Conv2D(filters, 3, strides=1 if pool else 2, padding="same")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D(2)(x) if pool else x
    return keras.Model(start, layers.Dense(ways, name="head")(layers.Flatten()(x)), name="conv2d")
