"""Meta-train an initialisation, judge it on unseen tasks, and save it.

  python train/train.py                                            MNIST-1D, 3-way 5-shot, BinomMAML(truncation=2)
  python train/train.py --task=sinusoid --estimator=MAML           regression of sine waves
  python train/train.py --task=omniglot --ways=5 --shots=1         Omniglot, read by TensorFlow Datasets
  python train/train.py --schedule="0: FOMAML, 1000: BinomMAML(1), 2000: MAML"
  python train/train.py --adapt=dense                              ANIL: only the layer named `dense` adapts

The output folder holds config.json, history.csv, curve.png, result.json, checkpoints/, logs/ (TensorBoard) and
saved_model/. The same command on the same folder goes on from the last checkpoint; another configuration is refused.
A flag left out takes the default of its task, given in brackets: [mnist1d, sinusoid, omniglot].
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pathlib

import keras
from absl import app, flags
from runs import RunError, load_rows, plot, prepare, write_json
from settings import TASKS, settings_of

import tf_metagrad as mg

flags.DEFINE_enum("task", "mnist1d", list(TASKS), "What is learned.")
flags.DEFINE_string("estimator", "BinomMAML(truncation=2)", "Meta-gradient estimator, such as MAML or TruncMAML(1).")
flags.DEFINE_string("schedule", "", 'Estimators by step, such as "0: FOMAML, 1000: MAML"; replaces --estimator.')
flags.DEFINE_integer("steps", None, "Number of meta-updates [400, 2000, 4000].", lower_bound=1)
flags.DEFINE_integer("meta_batch", None, "Tasks in a meta-update [4, 25, 8].", lower_bound=1)
flags.DEFINE_integer("ways", None, "Classes in a task [3, -, 5].", lower_bound=2)
flags.DEFINE_integer("shots", None, "Support examples of a class [5, 10, 1].", lower_bound=1)
flags.DEFINE_integer("queries", None, "Query examples of a class [10, 10, 15].", lower_bound=1)
flags.DEFINE_integer("inner_steps", None, "K, gradient steps of the adaptation [5, 5, 5].", lower_bound=1)
flags.DEFINE_float("inner_learning_rate", None, "alpha, step size of the adaptation [0.1, 0.01, 0.1].")
flags.DEFINE_enum(
    "learn_rates", "none", ["none", "scalar", "per_layer_and_step", "per_parameter"],
    "Learn the step sizes with the initialisation, from --inner_learning_rate on.",
)  # fmt: skip
flags.DEFINE_list("adapt", ["all"], "Layers that adapt, by name; the others are shared by all tasks.")
flags.DEFINE_float("meta_learning_rate", None, "Adam's learning rate [0.003, 0.001, 0.002].")
flags.DEFINE_bool("cosine_decay", True, "Let Adam's learning rate fall to a hundredth by a half cosine.")
flags.DEFINE_bool("pool", True, "Omniglot's net: 2x2 max-pooling, or convolutions of stride 2.")
flags.DEFINE_integer("filters", 64, "Omniglot's net: filters of each convolution.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of the weights, of the tasks, and of layers such as Dropout.")
flags.DEFINE_integer("epoch_steps", 100, "Meta-updates between validations and checkpoints.", lower_bound=1)
flags.DEFINE_integer("validation_tasks", 40, "Tasks of each validation.", lower_bound=1)
flags.DEFINE_integer("evaluation_tasks", 600, "Unseen tasks of the final evaluation.", lower_bound=2)
flags.DEFINE_string("data_dir", None, "Where TensorFlow Datasets keeps its datasets.")
flags.DEFINE_bool("download", False, "Fetch the dataset where it is missing.")
flags.DEFINE_string("output", None, "Output folder [runs/<task>].")
flags.DEFINE_list("profile_steps", None, "First and last step of a TensorBoard profile, such as 20,25.")
flags.DEFINE_enum("execution", "auto", ["auto", "vectorize", "map", "loop"], "How the tasks of a batch are run.")
flags.DEFINE_enum("jit_compile", "auto", ["auto", "true", "false"], "Whether XLA compiles the step.")
flags.DEFINE_integer("verbose", 1, "1: progress bar, 2: a line for each epoch, 0: nothing.")

NOT_CONFIGURATION = ("output", "verbose", "profile_steps", "data_dir", "download")


def parse_schedule(text: str) -> dict[int, mg.estimators.Estimator]:
    """Return {step: estimator} of text such as "0: FOMAML, 1000: BinomMAML(1)"."""
    schedule = {}
    for entry in filter(None, (part.strip() for part in text.replace("),", ");").replace(", ", ";").split(";"))):
        start, colon, name = entry.partition(":")
        if not colon or not start.strip().isdigit():
            raise ValueError(f'--schedule is written "0: FOMAML, 1000: MAML". Received: {entry!r}.')
        schedule[int(start)] = mg.estimators.parse(name)
    return schedule


def make_learner(settings: dict) -> mg.MetaLearner:
    """Return the compiled learner that the settings describe."""
    keras.utils.set_random_seed(settings["seed"])
    model, loss, metrics = TASKS[settings["task"]].make_model(settings)
    learn = None if settings["learn_rates"] == "none" else settings["learn_rates"]
    learner = mg.MetaLearner(
        model,
        loss,
        mg.inner.GradientDescent(settings["inner_steps"], settings["inner_learning_rate"], learn),
        mg.estimators.parse(settings["estimator"]),
        adapt="all" if settings["adapt"] == ["all"] else settings["adapt"],
        execution=settings["execution"],
        jit_compile={"auto": "auto", "true": True, "false": False}[settings["jit_compile"]],
    )
    rate = settings["meta_learning_rate"]
    if settings["cosine_decay"]:
        rate = keras.optimizers.schedules.CosineDecay(rate, settings["steps"], alpha=0.01)
    learner.compile(keras.optimizers.Adam(rate), metrics=metrics)
    return learner


def run(settings: dict, output: pathlib.Path, options: dict) -> None:
    """Train, evaluate, export."""
    learner = make_learner(settings)
    schedule = parse_schedule(settings["schedule"])
    stream = TASKS[settings["task"]].make_tasks(settings, options)
    stream("train", 0)  # what is wrong with the data shows before anything is written
    prepare(output, settings)
    mg.train(
        learner,
        lambda start: stream("train", start),
        settings["steps"],
        schedule=schedule,
        epoch_steps=settings["epoch_steps"],
        validation=stream("validation", 0),
        validation_count=settings["validation_tasks"],
        callbacks=[keras.callbacks.CSVLogger(output / "history.csv", append=True)],
        directory=output,
        profile_steps=options["profile_steps"],
        seed=settings["seed"],
        verbose=options["verbose"],
    )
    plot(load_rows(output / "history.csv"), output / "curve.png")
    print(f"Evaluating on {settings['evaluation_tasks']} unseen tasks ...", flush=True)
    result = learner.evaluate_tasks(stream("test", 0), settings["evaluation_tasks"])
    write_json(output / "result.json", result._asdict())
    mg.export(learner, output / "saved_model", overwrite=True)
    print(f"Test {result}, 95 % confidence")
    print(f"SavedModel: {output / 'saved_model'}\nLearning curve: {output / 'curve.png'}")


def main(argv: list[str]) -> None:
    """Read the flags and run; bad input ends in one sentence and exit status 1."""
    if len(argv) > 1:
        sys.exit(f"train.py takes flags only. Received: {' '.join(argv[1:])}. See --help.")
    own = {flag.name: flag.value for flag in flags.FLAGS.flags_by_module_dict()[argv[0]]}
    try:
        options = {name: own.pop(name) for name in NOT_CONFIGURATION}
        window = options["profile_steps"]
        options["profile_steps"] = tuple(int(step) for step in window) if window else None
        settings = settings_of(own)
        run(settings, pathlib.Path(options["output"] or f"runs/{settings['task']}"), options)
    except (ValueError, FloatingPointError, OSError, RunError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted; the same command goes on from the last checkpoint.")


if __name__ == "__main__":
    app.run(main)
