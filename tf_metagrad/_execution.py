"""The one decision of how independent work is run: vectorised, mapped or looped, with or without XLA.

The same choice serves the tasks of a batch and the parallel HVPs of BinomMAML. All ways give the same numbers,
but that XLA makes other random ones of the same seeds (Dropout, ESMAML).

| tasks         | what runs                                             | memory      | good for                    |
|---------------|-------------------------------------------------------|-------------|-----------------------------|
| `"vectorize"` | `tf.vectorized_map`: one operation for all tasks      | all tasks   | small nets; GPUs            |
| `"map"`       | a while loop, one task at a time                      | one task    | recurrent nets              |
| `"loop"`      | one call for each task; TensorFlow runs several at once | some tasks | attention, images on a CPU |
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.framework import config

from tf_metagrad._loop import repeated

WAYS = ("vectorize", "map", "loop")


class Execution(NamedTuple):
    """How tasks are run, whether XLA compiles the step, and whether activations are stored for HVPs.

    Attributes:
        tasks: `"vectorize"`, `"map"` or `"loop"`.
        jit_compile: whether XLA compiles the step.
        store_activations: True, False, or `"auto"`: where it was faster and takes little memory, see `_curvature`.
    """

    tasks: str
    jit_compile: bool
    store_activations: bool | str = "auto"


_RECURRENT = {"LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional", "LSTMCell", "GRUCell", "SimpleRNNCell"}
_CONVOLUTIONS = {"Conv2D", "Conv3D"}
_LARGE = _CONVOLUTIONS | {"EinsumDense"}  # attention is made of the last
_SMALL = {
    "Dense", "Conv1D", "Embedding", "BatchNormalization", "LayerNormalization", "GroupNormalization",
    "RMSNormalization",
}  # fmt: skip


def _kinds(model: keras.Model) -> set[str]:
    """Return the class names of the layers with weights; a user's own class counts as its own name."""
    return {type(layer).__name__ for layer in model._flatten_layers() if layer._trainable_variables}


def attends(model: keras.Model) -> bool:
    """Return whether the model is made of attention, without convolutions of images."""
    kinds = _kinds(model)
    return "EinsumDense" in kinds and not kinds & _CONVOLUTIONS


def _fastest(model: keras.Model) -> Execution:
    """Return what was fastest for this kind of model where it was measured, and what always works elsewhere.

    On a CPU XLA runs small dense, one-dimensional and recurrent nets three to nine times faster than TensorFlow's own
    kernels; attention and two- and three-dimensional convolutions gain nothing and take longer to compile.
    """
    kinds = _kinds(model)
    gpu = bool(tf.config.list_logical_devices("GPU"))
    if kinds <= _SMALL | (_LARGE if gpu else set()):
        return Execution("vectorize", _xla_can(model))
    if kinds <= _SMALL | _RECURRENT and _xla_can(model):
        return Execution("map", True)
    return Execution("loop", False)


def _xla_can(model: keras.Model) -> bool:
    """False for what XLA lacks of max-pooling: second derivatives in float64, a deterministic gradient."""
    pools = any("MaxPooling" in type(layer).__name__ for layer in model._flatten_layers())
    return not (pools and (model.compute_dtype == "float64" or config.is_op_determinism_enabled()))


def choose(
    tasks: str, jit_compile: bool | str, model: keras.Model, store_activations: bool | str = "auto"
) -> Execution:
    """Resolve `"auto"` for this device and model.

    Raises:
        ValueError: an unknown way or switch, or a choice that XLA cannot compile for this model.
    """
    if tasks not in ("auto", *WAYS):
        raise ValueError(f'`execution` must be "auto", "vectorize", "map" or "loop". Received: execution={tasks!r}.')
    if jit_compile not in ("auto", True, False):
        raise ValueError(f'`jit_compile` must be "auto", True or False. Received: jit_compile={jit_compile!r}.')
    if not (isinstance(store_activations, bool) or store_activations == "auto"):
        raise ValueError(
            f'`store_activations` must be "auto", True or False. Received: store_activations={store_activations!r}.'
        )
    fastest = _fastest(model)
    jit = fastest.jit_compile and tasks in ("auto", fastest.tasks) if jit_compile == "auto" else bool(jit_compile)
    chosen = Execution(fastest.tasks if tasks == "auto" else tasks, jit, store_activations)
    if jit and not _xla_can(model) and config.is_op_determinism_enabled():
        raise ValueError(
            "XLA has no deterministic gradient of max-pooling. Received: jit_compile=True with TensorFlow's "
            "deterministic operations. Use jit_compile=False, or a model without max-pooling."
        )
    if jit and not _xla_can(model):
        raise ValueError(
            "XLA has no second derivative of max-pooling in float64. Received: jit_compile=True with a float64 model. "
            "Use jit_compile=False, or float32."
        )
    if jit and chosen.tasks == "vectorize" and _kinds(model) & _RECURRENT:
        raise ValueError(
            'XLA cannot compile vectorised recurrent layers. Received: execution="vectorize" with jit_compile=True. '
            'Use execution="map", or jit_compile=False.'
        )
    return chosen


class Compiled:
    """A function compiled with or without XLA, once for each signature of its arguments.

    It is traced before XLA sees it: while XLA traces, `tf.vectorized_map` hides in a function of its own, and shapes
    that cross that function's border make XLA compile again for every new value.
    """

    def __init__(self, function: Callable, jit_compile: bool):
        """Trace nothing yet."""
        self.plain = tf.function(function, autograph=False)
        self.jit_compile = jit_compile
        self._made: dict[tuple, tuple[Callable, Any]] = {}
        self._programs: dict[tuple, Callable] = {}

    def trace(self, *args: Any) -> tuple[Callable, Any]:
        """Return the compiled function for arguments like these, and the structure of its outputs; call it eagerly."""
        key = signature(args)
        if key not in self._made:
            specs = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), args)
            concrete = self.plain.get_concrete_function(*specs)
            outputs = concrete.structured_outputs
            if self.jit_compile:
                # a partial: TensorFlow takes the lambdas of one line for one function, retraces it and warns
                call = tf.function(functools.partial(_call, concrete), autograph=False, jit_compile=True)
                concrete, self._programs[key] = call.get_concrete_function(*specs), call
            self._made[key] = concrete, outputs
        return self._made[key]

    def program(self, *args: Any) -> Callable:
        """Return `program(stage)`, XLA's program for arguments like these, as `tf.function` gives it."""
        self.trace(*args)
        return self._programs[signature(args)].experimental_get_compiler_ir(*args)

    def __call__(self, *args: Any) -> Any:
        """Run the function on tensors."""
        concrete, _ = self.trace(*args)
        if not tf.executing_eagerly() or concrete.captured_inputs or record.could_possibly_record():
            return concrete(*args)
        # without TensorFlow's second look at the arguments, which takes a tenth of a millisecond
        return concrete._inference_function.call_preflattened(tf.nest.flatten(args))


def signature(args: Any) -> Any:
    """Return the structure of the arguments, with shape and type in the place of tensors."""
    if isinstance(args, Mapping):
        return tuple((name, signature(args[name])) for name in sorted(args))
    if isinstance(args, tuple | list):
        return (type(args), *map(signature, args))
    return (args.shape, args.dtype)


def _call(function: Callable, *args: Any) -> Any:
    return function(*args)


def map_over(function: Callable, elements: Any, tasks: str) -> Any:
    """Return `function` of every slice of `elements` along the first axis, stacked."""
    count = tf.nest.flatten(elements)[0].shape[0]
    if tasks == "vectorize" and count == 1:  # `tf.vectorized_map` loses the static shape of a single slice
        return tf.nest.map_structure(lambda t: t[None], function(_slice(elements, 0)))
    if tasks == "vectorize":
        return tf.vectorized_map(function, elements)
    if tasks == "loop":
        results = [function(_slice(elements, i)) for i in range(count)]
        return tf.nest.map_structure(lambda *parts: tf.stack(parts), *results)
    return accumulate_over(lambda element: ([], function(element)), elements, tasks)[1]


def _slice(elements: Any, index: int | tf.Tensor) -> Any:
    return tf.nest.map_structure(lambda t: t[index], elements)


def accumulate_over(function: Callable, elements: Any, tasks: str) -> tuple[Sequence[tf.Tensor], Any]:
    """Run `function(slice) -> (total, outputs)`; return the mean of the totals and the stacked outputs.

    Unlike `map_over` it never holds the totals, as large as the weights, of more tasks than run at once.
    """
    count = tf.nest.flatten(elements)[0].shape[0]
    traced = tf.function(function, autograph=False, experimental_attributes={"_noinline": True})
    if tasks == "loop":
        totals, outputs = zip(*[traced(_slice(elements, i)) for i in range(count)], strict=True)
        mean = [tf.add_n(parts) / count for parts in zip(*totals, strict=True)]
        return mean, tf.nest.map_structure(lambda *parts: tf.stack(parts), *outputs)
    totals, outputs = traced.get_concrete_function(_slice(elements, 0)).structured_outputs
    flat = tf.nest.flatten(outputs)
    arrays = [tf.TensorArray(t.dtype, count, element_shape=t.shape) for t in flat]
    zeros = [tf.zeros(t.shape, t.dtype) for t in totals]

    def body(index, sums, arrays):
        totals, outputs = traced(_slice(elements, index))
        sums = [a + b for a, b in zip(sums, totals, strict=True)]
        return index + 1, sums, [a.write(index, t) for a, t in zip(arrays, tf.nest.flatten(outputs), strict=True)]

    _, sums, arrays = repeated(count, body, (0, zeros, arrays))
    return [s / count for s in sums], tf.nest.pack_sequence_as(outputs, [a.stack() for a in arrays])
