"""Streams of few-shot tasks, as infinite `tf.data` datasets of batches of `Task`.

`from_arrays`, `from_folder` and `from_tfds` make tasks from your own labelled arrays, from a folder of images, and from
any image dataset of TensorFlow Datasets; the others are benchmarks of the literature. All are seeded: the same seed
gives the same tasks in every process and on every machine, and `start=n` resumes at batch n.
"""

from tf_metagrad.data._arrays import from_arrays
from tf_metagrad.data._cifar100 import cifar_fs, fc100
from tf_metagrad.data._from_folder import from_folder
from tf_metagrad.data._from_tfds import from_tfds
from tf_metagrad.data._mini_imagenet import mini_imagenet
from tf_metagrad.data._mnist1d import mnist1d
from tf_metagrad.data._omniglot import omniglot
from tf_metagrad.data._sinusoid import sinusoid
from tf_metagrad.data._tiered_imagenet import tiered_imagenet

__all__ = [
    "cifar_fs",
    "fc100",
    "from_arrays",
    "from_folder",
    "from_tfds",
    "mini_imagenet",
    "mnist1d",
    "omniglot",
    "sinusoid",
    "tiered_imagenet",
]
