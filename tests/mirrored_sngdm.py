"""A script for test_optimizers_in_use.py: SNGDM on two logical CPUs, which TensorFlow makes before anything else runs.

Usage: mirrored_sngdm.py IN.npz OUT.npz. It writes the weights after a custom loop and after `fit`.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from tf_metagrad import optimizers

RATE, DECAY = 0.1, 0.01


def custom_loop(strategy: tf.distribute.Strategy, start: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Apply `gradients[step, replica]`, of which each replica sees its own row only; return the weights."""
    with strategy.scope():
        variables = [keras.Variable(start[:2]), keras.Variable(start[2:])]
        optimizer = optimizers.SNGDM(RATE, weight_decay=DECAY)
        optimizer.build(variables)

    @tf.function
    def step(rows):
        def replica():
            row = tf.gather(rows, tf.distribute.get_replica_context().replica_id_in_sync_group)
            optimizer.apply([row[:2], row[2:]], variables)

        strategy.run(replica)

    for rows in gradients:
        step(tf.constant(rows))
    copies = [[v.numpy() for v in strategy.experimental_local_results(w.value)] for w in variables]
    return np.stack([np.concatenate(parts) for parts in zip(*copies, strict=True)])


def fit(strategy: tf.distribute.Strategy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fit a linear layer, one whole batch an epoch; return its kernel and bias."""
    with strategy.scope():
        model = keras.Sequential([keras.Input((x.shape[1],)), keras.layers.Dense(1, kernel_initializer="zeros")])
        model.compile(optimizers.SNGDM(RATE), "mse")
    model.fit(x, y, batch_size=len(x), epochs=3, shuffle=False, verbose=0)
    return np.concatenate([np.ravel(w) for w in model.get_weights()])


if __name__ == "__main__":
    devices = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    keras.config.set_floatx("float64")
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    data = np.load(sys.argv[1])
    loop = custom_loop(two, data["start"], data["gradients"])
    np.savez(sys.argv[2], replicas=two.num_replicas_in_sync, loop=loop, fit=fit(two, data["x"], data["y"]))
