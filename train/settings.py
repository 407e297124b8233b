"""The flags of the scripts, in groups, and each task's defaults. It imports no TensorFlow, so that --help is quick."""

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

Settings = dict[str, Any]

# 2,000 steps of 4 tasks of MNIST-1D take about a minute on two CPU cores.
DEFAULTS = {
    "mnist1d": dict(
        steps=2000, meta_batch=4, ways=3, shots=5, queries=10, inner_steps=5, inner_learning_rate=0.1,
        meta_learning_rate=3e-3,
    ),
    "sinusoid": dict(
        steps=2000, meta_batch=25, shots=10, queries=10, inner_steps=5, inner_learning_rate=0.01,
        meta_learning_rate=1e-3,
    ),
    "omniglot": dict(
        steps=4000, meta_batch=8, ways=5, shots=1, queries=15, inner_steps=5, inner_learning_rate=0.1,
        meta_learning_rate=2e-3, filters=64, pool=True,
    ),
    "mini_imagenet": dict(
        steps=4000, meta_batch=4, ways=5, shots=1, queries=15, inner_steps=5, inner_learning_rate=0.01,
        meta_learning_rate=1e-3, filters=32, pool=True,
    ),
}  # fmt: skip
DEFAULTS |= {name: DEFAULTS["mini_imagenet"] for name in ("tiered_imagenet", "cifar_fs", "fc100")}
ESTIMATOR = "MAML"

# The groups of train.py's --help. The first three are the run's configuration; what is in RUN and FILES may change from
# call to call. compare.py shares TASK, ADAPTATION and FILES.
GROUPS = TASK, ADAPTATION, TRAINING, RUN, FILES = "Task", "Adaptation", "Training", "Run", "Files"


def _by_task(define: Callable, name: str, text: str, **options: Any) -> None:
    defaults = ", ".join(str(task.get(name, "-")) for task in DEFAULTS.values())
    define(name, None, f"{text} [{defaults}].", **options)


flags.DEFINE_enum("task", "mnist1d", list(DEFAULTS), "What is learned.", module_name=TASK)
_by_task(flags.DEFINE_integer, "ways", "Classes in a task", lower_bound=2, module_name=TASK)
_by_task(flags.DEFINE_integer, "shots", "Support examples of a class", lower_bound=1, module_name=TASK)
_by_task(flags.DEFINE_integer, "queries", "Query examples of a class", lower_bound=1, module_name=TASK)
_by_task(flags.DEFINE_integer, "filters", "Filters of each convolution", lower_bound=1, module_name=TASK)
_by_task(flags.DEFINE_bool, "pool", "2x2 max-pooling; --nopool: convolutions of stride 2", module_name=TASK)
_by_task(flags.DEFINE_integer, "meta_batch", "Tasks in a meta-update", lower_bound=1, module_name=TASK)
flags.DEFINE_integer(
    "seed", 0, "Seed of the weights, of the tasks, and of layers such as Dropout.", 0, module_name=TASK
)

flags.DEFINE_list(
    "adapt", ["all"], "Names of the layers that adapt; the others are shared by all tasks.", module_name=ADAPTATION
)
_by_task(
    flags.DEFINE_integer, "inner_steps", "K, gradient steps of the adaptation", lower_bound=1, module_name=ADAPTATION
)
_by_task(
    flags.DEFINE_float, "inner_learning_rate", "alpha, size of a gradient step", lower_bound=0, module_name=ADAPTATION
)
flags.DEFINE_enum(
    "inner", "gradient_descent", ["gradient_descent", "momentum", "nesterov", "rmsprop", "adam", "proximal"],
    "Inner optimiser; IMAML and FOBMAML need proximal.", module_name=ADAPTATION,
)  # fmt: skip
flags.DEFINE_float(
    "proximal_weight", 2.0, "lambda, the pull towards the initialisation; of --inner=proximal.", 0,
    module_name=ADAPTATION,
)  # fmt: skip
flags.DEFINE_float(
    "inner_tolerance", 0.0, "Gradient norm at which a task stops; of --inner=proximal.", 0, module_name=ADAPTATION
)
flags.DEFINE_enum(
    "learn", "none", ["none", "scalar", "per_layer_and_step", "per_parameter", "weight"],
    "Learn step sizes (or lambda: weight) with the initialisation, from the given values on.", module_name=ADAPTATION,
)  # fmt: skip
flags.DEFINE_enum(
    "normalization", "batch", ["batch", "stored", "per_step"], "What batch normalisation uses.",
    module_name=ADAPTATION,
)  # fmt: skip
flags.DEFINE_enum(
    "execution", "auto", ["auto", "vectorize", "map", "loop"], "How the tasks of a batch are run.",
    module_name=ADAPTATION,
)  # fmt: skip
flags.DEFINE_enum(
    "distribution", "none", ["none", "mirrored", "multi_worker"],
    "mirrored: share the tasks of a batch out over all GPUs; multi_worker: over those of all hosts of TF_CONFIG.",
    module_name=ADAPTATION,
)  # fmt: skip
flags.DEFINE_enum(
    "jit_compile", "auto", ["auto", "true", "false"], "Whether XLA compiles the step.", module_name=ADAPTATION
)

flags.DEFINE_string(
    "estimator", None, f"Meta-gradient, such as MAML or TruncMAML(1) [{ESTIMATOR}].", module_name=TRAINING
)
flags.DEFINE_string(
    "schedule", None, 'Estimators by step, such as "0: FOMAML, 300: BinomMAML(1)"; replaces --estimator.',
    module_name=TRAINING,
)  # fmt: skip
flags.DEFINE_string(
    "initial_weights", None, "Output folder of a run with the same network, whose weights are the first ones here.",
    module_name=TRAINING,
)  # fmt: skip
_by_task(flags.DEFINE_integer, "steps", "Number of meta-updates", lower_bound=1, module_name=TRAINING)
flags.DEFINE_enum("meta_optimizer", "adam", ["adam", "sgd", "sngdm"], "Meta-optimizer.", module_name=TRAINING)
_by_task(
    flags.DEFINE_float, "meta_learning_rate", "The meta-optimizer's learning rate", lower_bound=0, module_name=TRAINING
)
flags.DEFINE_float(
    "clipnorm", None, "Largest norm of the meta-gradient; with sgd this is ClippedGD.", 0, module_name=TRAINING
)
flags.DEFINE_bool(
    "cosine_decay", True, "Let the learning rate fall to a hundredth by a half cosine.", module_name=TRAINING
)
flags.DEFINE_integer(
    "epoch_steps", 100, "Meta-updates between validations, each with a checkpoint.", 1, module_name=TRAINING
)
flags.DEFINE_enum(
    "on_nonfinite", "raise", ["raise", "skip"],
    "A task that diverges ends the run, or is named, counted and kept out of the mean.", module_name=TRAINING,
)  # fmt: skip
flags.DEFINE_bool(
    "deterministic", False, "Use TensorFlow's deterministic operations only, without XLA unless --jit_compile=true; a "
    "GPU needs it for runs that repeat bit for bit.", module_name=TRAINING,
)  # fmt: skip
flags.DEFINE_integer("validation_tasks", 40, "Tasks of each validation.", 1, module_name=TRAINING)
flags.DEFINE_integer("evaluation_tasks", 600, "Unseen tasks of the final evaluation.", 2, module_name=TRAINING)

flags.DEFINE_integer("checkpoint_steps", None, "Meta-updates between checkpoints within an epoch.", 1, module_name=RUN)
flags.DEFINE_list("profile_steps", None, "First and last step of a TensorBoard profile, as 20,25.", module_name=RUN)
flags.DEFINE_integer(
    "log_steps", None, "Meta-updates between per-step scalars in TensorBoard; none if left out.", 1, module_name=RUN
)
flags.DEFINE_string(
    "reference_estimator", None, "Estimator whose cosine to the meta-gradient is one of these scalars, such as MAML.",
    module_name=RUN,
)  # fmt: skip
flags.DEFINE_integer("verbose", 1, "1: progress bar, 2: a line for each epoch, 0: results only.", 0, 2, module_name=RUN)

flags.DEFINE_string(
    "output", None, "Output folder [runs/<task>; of compare.py: runs/compare-<task>].", module_name=FILES
)
flags.DEFINE_string("data_dir", None, "Where TensorFlow Datasets keeps its datasets.", module_name=FILES)
flags.DEFINE_string(
    "manual_dir", None, "Where files fetched by hand are [<data_dir>/downloads/manual/<task>].", module_name=FILES
)
flags.DEFINE_bool("download", False, "Fetch the dataset where it is missing.", module_name=FILES)


def parse(argv: list[str], documentation: str, groups: Sequence[str] = GROUPS) -> list[str]:
    """Parse the command line; where it asks for help, print the documentation and the groups of flags, and exit."""
    if {"--help", "-help", "--helpshort", "-h", "-?"} & set(argv[1:]):
        print(documentation, *(flags.FLAGS.module_help(group) for group in groups), sep="\n")
        sys.exit()
    return app.parse_flags_with_usage(argv)


def read() -> tuple[Settings, Settings]:
    """Return the run's configuration, with the task's defaults for flags not given, and the options of RUN and FILES.

    Raises:
        ValueError: flags that do not go together.
    """
    values = {group: {flag.name: flag.value for flag in flags.FLAGS.get_flags_for_module(group)} for group in GROUPS}
    options = values.pop(RUN) | values.pop(FILES)
    options["command"] = _command()
    settings = {name: value for group in values.values() for name, value in group.items()}
    options["profile_steps"] = _window(options["profile_steps"])
    if options["reference_estimator"] is not None and options["log_steps"] is None:
        raise ValueError("--reference_estimator is compared on the steps that --log_steps chooses. Give both.")
    defaults = DEFAULTS[settings["task"]]
    for name in set().union(*DEFAULTS.values()) - defaults.keys():
        if settings.pop(name) is not None:
            raise ValueError(
                f"--{name} means nothing to --task={settings['task']}. Leave it out, or choose another task."
            )
    if settings["schedule"] is None and settings["estimator"] is None:
        settings["estimator"] = ESTIMATOR
    elif settings["schedule"] is not None and settings["estimator"] is not None:
        raise ValueError(
            "Only one of --estimator and --schedule can be given. Received: "
            f"--estimator={settings['estimator']!r}, --schedule={settings['schedule']!r}. "
            "Put the estimator into the schedule, at step 0."
        )
    if settings["inner"] != "proximal" and (settings["inner_tolerance"] or settings["learn"] == "weight"):
        raise ValueError("--inner_tolerance and --learn=weight mean something to --inner=proximal only. Add it.")
    return {name: defaults.get(name) if value is None else value for name, value in settings.items()}, options


def _command() -> str:
    """Return the command that makes this run: the flags that were given, but for those of RUN and FILES."""
    given = [f for g in (TASK, ADAPTATION, TRAINING) for f in flags.FLAGS.get_flags_for_module(g) if f.present]
    return shlex.join(["python", "train/train.py", *(flag.serialize() for flag in given)])


def _window(entries: list[str] | None) -> tuple[int, int] | None:
    if entries is None:
        return None
    if (
        len(entries) != 2
        or not all(entry.isdecimal() for entry in entries)
        or not 0 < int(entries[0]) <= int(entries[1])
    ):
        raise ValueError(
            "--profile_steps must be the first and the last step, counted from 1, such as 20,25. "
            f"Received: {','.join(entries)!r}."
        )
    return int(entries[0]), int(entries[1])
