"""Peak memory of one meta-gradient, three ways, each figure from a process of its own.

  python benchmarks/memory.py [--nets=omniglot,transformer] [--steps=5,50] [--estimators=...] [--shots=1] [--noxla]
      [--store_activations=auto]
  python benchmarks/memory.py --sizes [--nets=channels16,...,length512]

- tensors: the peak of live tensors with TensorFlow's own kernels, as its allocator counts it (tf_metagrad/_memory.py),
  the largest of five steps; one operation runs at a time, for the peak depends on their order;
- XLA: the scratch memory of the step as XLA compiles it, from its buffer assignment;
- resident: growth of the process's peak over two steps with TensorFlow's own kernels, after one of a net with four
  filters or of width 8. The graph is in it, and what kernels and allocators keep for themselves.

One task unless `--tasks` says otherwise. `--sizes` compares FOBMAML with FOMAML at K = 5.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json
import pathlib
import re
import subprocess
import sys
import tempfile

from absl import app, flags

_SIZES = [*(f"channels{n}" for n in (16, 32, 64, 128, 256)), *(f"length{n}" for n in (32, 64, 128, 256, 512))]
_NETS = flags.DEFINE_list("nets", None, "See nets.py; by default omniglot,transformer, or for --sizes ten sizes.")
_ESTIMATORS = flags.DEFINE_string("estimators", 'FOMAML;FOBMAML;MAML;MAML("unrolled")', "Separated by semicolons.")
_STEPS = flags.DEFINE_list("steps", ["5", "50"], "Inner steps K.")
_SHOTS = flags.DEFINE_integer("shots", 1, "Support examples a class.")
_TASKS = flags.DEFINE_integer("tasks", 1, "Tasks.")
_EXECUTION = flags.DEFINE_string("execution", None, "How tasks are run; by default loop, or map with XLA.")
_STORE = flags.DEFINE_enum("store_activations", "auto", ["auto", "true", "false"], "Whether HVPs find them stored.")
_XLA = flags.DEFINE_bool("xla", True, "Compile with XLA too; an unrolled tape takes long.")
_COMPARE = flags.DEFINE_bool("sizes", False, "FOBMAML against FOMAML, over sizes.")
_LIMIT = flags.DEFINE_integer("limit", 900, "Seconds a process may take; what took longer has no figure.")
_KIND = flags.DEFINE_enum("kind", None, ["kernels", "xla"], "Measure one in this process.")
MIB = 2**20


def compiled(name: str, jit: bool, small: bool = False):
    """Return what runs one meta-gradient by the flags' estimator, or compiles it with XLA, and the weights' bytes."""
    import keras
    import tensorflow as tf
    from nets import STORES, few_shot, net, transformer

    import tf_metagrad as mg

    keras.utils.set_random_seed(0)
    model, queries = net(name)
    if small:
        model = transformer(8, 8) if re.match("transformer|length", name) else mg.models.conv2d(5, filters=4)
    learner, batch = few_shot(
        model, 1 if small else queries, mg.estimators.parse(_ESTIMATORS.value), 1 if small else int(_STEPS.value[0]),
        _TASKS.value, 0.01, 1 if small else _SHOTS.value,
        execution=_EXECUTION.value or ("map" if jit else "loop"), jit_compile=jit,
        store_activations=STORES[_STORE.value],
    )  # fmt: skip
    function = learner.compiled_function("memory", 0, lambda t, s: learner.estimate(t, s)[:2])
    batch, seed = learner.check_tasks(batch), tf.constant(0, tf.int64)
    weights = sum(v.numpy().nbytes for v in model.trainable_variables)
    if jit:
        return lambda: function.program(batch, seed)(stage="optimized_hlo"), weights
    return lambda: function(batch, seed)[0][-1].numpy(), weights


def with_kernels(name: str) -> dict[str, float]:
    """Return the peak of live tensors and the growth of the process, in MiB."""
    import tensorflow as tf

    from tf_metagrad import _memory

    tf.config.threading.set_inter_op_parallelism_threads(1)
    compiled(name, jit=False, small=True)[0]()
    run, weights = compiled(name, jit=False)
    before = _memory.peak_so_far_mib()
    for _ in range(2):
        run()
    resident = _memory.peak_so_far_mib() - before
    tensors = max(_memory._allocated(run, "CPU:0") for _ in range(5))
    return {"tensors": tensors / MIB, "resident": resident, "weights": weights / MIB}


def scratch(folder: str) -> dict[str, float]:
    """Return the scratch memory in MiB of the largest program whose buffer assignment is in the folder."""
    found = [
        sum(map(int, re.findall(r"allocation \d+: size (\d+), preallocated-temp", path.read_text())))
        for path in pathlib.Path(folder).glob("*buffer-assignment.txt")
    ]
    return {"XLA": max(found) / MIB} if found else {}


def measure(name: str, estimator: str, steps: str) -> dict[str, float]:
    """Return all figures of one estimator, from processes of their own."""
    passed = [f"--{flag.name}={flag.value}" for flag in (_SHOTS, _TASKS, _EXECUTION, _STORE) if flag.value]
    command = [sys.executable, __file__, f"--nets={name}", f"--estimators={estimator}", f"--steps={steps}", *passed]
    figures = {}
    for kind in ("kernels", "xla") if _XLA.value else ("kernels",):
        with tempfile.TemporaryDirectory() as folder:
            dump = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder} --xla_dump_hlo_as_text"
            env = os.environ | ({"XLA_FLAGS": dump} if kind == "xla" else {})
            try:
                answer = subprocess.check_output([*command, f"--kind={kind}"], text=True, env=env, timeout=_LIMIT.value)
            except subprocess.TimeoutExpired:
                print(f"{name}, {estimator}, K = {steps}, {kind}: more than {_LIMIT.value} s", file=sys.stderr)
                answer = None
            if kind == "xla":  # XLA plans its buffers before it makes machine code
                figures |= scratch(folder)
            elif answer is not None:
                figures |= json.loads(answer.splitlines()[-1])
    return figures


def show(*cells: str | float | None) -> None:
    """Print a row of a table."""
    texts = (c if isinstance(c, str) else "-" if c is None else f"{c:.1f}" for c in cells)
    print("| " + " | ".join(texts) + " |", flush=True)


def compare_steps(names: list[str]) -> None:
    """Print a table of estimators and K."""
    show("net", "estimator", "K", "K weights (MiB)", "tensors (MiB)", "XLA (MiB)", "resident (MiB)")
    show(*["---"] * 7)
    for name in names:
        for estimator in _ESTIMATORS.value.split(";"):
            for steps in _STEPS.value:
                found = measure(name, estimator, steps)
                iterates = int(steps) * found["weights"] if "weights" in found else None
                show(name, estimator, steps, iterates, *(found.get(key) for key in ("tensors", "XLA", "resident")))


def compare_sizes(names: list[str]) -> None:
    """Print a table of FOMAML, FOBMAML and their ratio."""
    show("net", *(f"{key}: FOMAML | FOBMAML (MiB) | ratio" for key in ("tensors", "XLA", "resident")))
    show(*["---"] * 10)
    for name in names:
        first, perturbed = (measure(name, estimator, "5") for estimator in ("FOMAML", "FOBMAML"))
        cells = []
        for key in ("tensors", "XLA", "resident"):
            pair = first.get(key), perturbed.get(key)
            cells += [*pair, None if None in pair else f"{pair[1] / pair[0]:.3f}"]
        show(name, *cells)


def main(argv: list[str]) -> None:
    """Print a table, or measure one figure for it."""
    if _KIND.value == "xla":
        compiled(_NETS.value[0], jit=True)[0]()
    elif _KIND.value:
        print(json.dumps(with_kernels(_NETS.value[0])))
    elif _COMPARE.value:
        compare_sizes(_NETS.value or _SIZES)
    else:
        compare_steps(_NETS.value or ["omniglot", "transformer"])


if __name__ == "__main__":
    app.run(main)
