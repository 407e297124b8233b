import numpy as np
import tensorflow as tf

from tf_metagrad.data import _episodes


def test_random_numbers_are_those_of_tensorflow():
    for key in ([0, 0], [3, 10**15], [2**62, 7]):
        key = tf.constant(key, tf.int64)
        integers = tf.random.stateless_uniform([9], key, minval=None, maxval=None, dtype=tf.int32, alg="philox")
        np.testing.assert_array_equal(_episodes.random_integers(9, key), integers)
        np.testing.assert_array_equal(
            _episodes.random_uniform(9, key), tf.random.stateless_uniform([9], key, alg="philox")
        )
