"""From settings to a trained, judged and exported learner."""

import contextlib
import json
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from run_folder import HistoryFile, output_folder, write_json
from tasks import TASKS, stream

import tf_metagrad as mg
from tf_metagrad._checkpoints import writing
from tf_metagrad._cluster import Workers, lost_worker
from tf_metagrad.estimators import parse_schedule

Settings = dict[str, Any]
_ADVICE = "What was there before is intact; make room, then the same command goes on."


def make_schedule(settings: Settings) -> dict[int, mg.estimators.Estimator]:
    """Return {step: estimator}, from step 0 on."""
    if settings["schedule"] is None:
        return {0: mg.estimators.parse(settings["estimator"])}
    schedule = parse_schedule(settings["schedule"])
    if 0 not in schedule or max(schedule) >= settings["steps"]:
        raise ValueError(
            f"--schedule must begin at step 0 and swap before the end, --steps={settings['steps']}. "
            f"Received: {settings['schedule']!r}."
        )
    return schedule


def make_inner(settings: Settings) -> mg.inner.InnerOptimizer:
    """Return the inner optimiser."""
    learn = None if settings["learn"] == "none" else settings["learn"]
    common = {"steps": settings["inner_steps"], "learning_rate": settings["inner_learning_rate"], "learn": learn}
    kind = settings["inner"]
    if kind == "proximal":
        return mg.inner.ProximalGradientDescent(
            **common, weight=settings["proximal_weight"], tolerance=settings["inner_tolerance"]
        )
    if kind in ("momentum", "nesterov"):
        return mg.inner.Momentum(**common, nesterov=kind == "nesterov")
    kinds = {"gradient_descent": mg.inner.GradientDescent, "rmsprop": mg.inner.RMSprop, "adam": mg.inner.Adam}
    return kinds[kind](**common)


def make_optimizer(settings: Settings) -> keras.optimizers.Optimizer:
    """Return the meta-optimizer."""
    rate = settings["meta_learning_rate"]
    if settings["cosine_decay"]:
        rate = keras.optimizers.schedules.CosineDecay(rate, settings["steps"], alpha=0.01)
    kinds = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD, "sngdm": mg.optimizers.SNGDM}
    return kinds[settings["meta_optimizer"]](rate, global_clipnorm=settings["clipnorm"])


def make_learner(settings: Settings, estimator: mg.estimators.Estimator) -> mg.MetaLearner:
    """Return the compiled learner that the settings describe, on the devices that they name."""
    strategy = mg.make_strategy(settings["distribution"])
    Workers(strategy).agree(
        zlib.crc32(json.dumps(settings, sort_keys=True).encode()),
        "Every worker must be started with the same flags, for they run as one. Received: flags that differ, by the "
        "check sums {}.",
    )
    with lost_worker(), strategy.scope():
        return _learner(settings, estimator)


def _learner(settings: Settings, estimator: mg.estimators.Estimator) -> mg.MetaLearner:
    keras.utils.set_random_seed(settings["seed"])
    model, loss, metrics = TASKS[settings["task"]].make_model(settings)
    learner = mg.MetaLearner(
        model,
        loss,
        make_inner(settings),
        estimator,
        adapt="all" if settings["adapt"] == ["all"] else settings["adapt"],
        normalization=settings["normalization"],
        execution=settings["execution"],
        # XLA has no deterministic gradient of max-pooling, not even on a CPU
        jit_compile={"auto": not settings["deterministic"] and "auto", "true": True, "false": False}[
            settings["jit_compile"]
        ],
    )
    learner.compile(make_optimizer(settings), metrics=metrics)
    return learner


def share_cores(settings: Settings) -> None:
    """Let tasks that one CPU loops over run side by side, unless TensorFlow has begun in this process."""
    way = settings["execution"]
    looped = way == "loop" or (way == "auto" and TASKS[settings["task"]].looped)
    if looped and settings["distribution"] == "none" and not tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):
            mg.share_cores(settings["meta_batch"])


def take_weights(model: keras.Model, run: str) -> None:
    """Give the model the weights that another run ended with.

    Raises:
        ValueError: the folder holds no checkpoint, or that of another network.
    """
    path = tf.train.latest_checkpoint(os.path.join(run, "checkpoints"))
    if path is None:
        raise ValueError(f"--initial_weights must be the output folder of a run of train.py. Received: {run!r}.")
    try:
        status = tf.train.Checkpoint(model=model).restore(path)
        status.assert_existing_objects_matched().expect_partial()
    except (AssertionError, ValueError) as error:
        tf.get_logger().setLevel("ERROR")  # or it warns of every variable, below the sentence that matters
        raise ValueError(
            f"--initial_weights={run} holds the weights of another network than that of --task and the flags of its "
            "sizes. Name a run with the same."
        ) from error


def run(settings: Settings, options: Settings, termination: Any) -> None:
    """Train, evaluate, export; where the process is asked to terminate, training stops with a checkpoint."""
    if settings["deterministic"]:
        tf.config.experimental.enable_op_determinism()
    share_cores(settings)
    schedule = make_schedule(settings)
    learner = make_learner(settings, schedule[0])
    if settings["initial_weights"] is not None:
        take_weights(learner.model, settings["initial_weights"])
    termination.begin()  # again, for TensorFlow's server of a worker takes the signal
    workers = Workers(learner.distribute_strategy)
    test = stream("test", settings, options)
    output = pathlib.Path(options["output"] or f"runs/{settings['task']}")
    with output_folder(output, settings) if workers.is_chief else contextlib.nullcontext():
        device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        place = f"the {device}" + (f" as worker {workers.index} of {workers.count}" if workers.count > 1 else "")
        estimator = settings["schedule"] or settings["estimator"]
        print(f"Training on {settings['task']} with {estimator}, on {place}. Output: {output}", flush=True)
        if last := tf.train.latest_checkpoint(str(output / "checkpoints")):
            print(f"Going on from step {last.rpartition('-')[2]} of {settings['steps']}.", flush=True)
        history = HistoryFile(output / "history.csv") if workers.is_chief else None
        with termination.deferred():
            try:
                train(learner, settings, options, schedule, output, history, lambda: termination.requested)
            except mg.Preempted:
                termination.requested = True  # it may have been of another worker
        if workers.is_chief:
            judge(learner, settings, options, test, output, history)
        workers.gather(0)  # the others wait, and so fail where the chief does
    workers.leave()


def judge(
    learner: mg.MetaLearner, settings: Settings, options: Settings, test: tf.data.Dataset, output: pathlib.Path,
    history: HistoryFile,
) -> None:  # fmt: skip
    """Draw the learning curve, evaluate on unseen tasks, export."""
    if history.rows:
        with writing(f"The learning curve of {str(output)!r}", _ADVICE):
            history.plot(output / "curve.png")
    count = settings["evaluation_tasks"]
    print(f"Evaluating on {count} unseen tasks ...", flush=True)
    curve = learner.adaptation_curve(test, count, on_nonfinite=settings["on_nonfinite"])
    write_json(output / "result.json", curve[-1]._asdict() | {"curve": [point.summary() for point in curve]})
    with writing(f"The SavedModel of {str(output)!r}", _ADVICE):
        about = {"command": options["command"], "settings": settings, "unseen_tasks": curve[-1].summary()}
        mg.export(learner, output / "saved_model", overwrite=True, about=about)
    print(f"Test {curve[-1]}, 95 % confidence")
    print(f"SavedModel: {output / 'saved_model'}\nLearning curve: {output / 'curve.png'}")


def train(
    learner: mg.MetaLearner, settings: Settings, options: Settings, schedule: dict, output: pathlib.Path,
    history: HistoryFile | None, preempted: Callable[[], bool],
) -> None:  # fmt: skip
    """Train in the output folder."""
    mg.train(
        learner,
        lambda start: stream("train", settings, options, start),
        settings["steps"],
        schedule=schedule,
        epoch_steps=settings["epoch_steps"],
        checkpoint_steps=options["checkpoint_steps"],
        validation=stream("validation", settings, options),
        validation_count=settings["validation_tasks"],
        callbacks=[history] if history else [],
        directory=output,
        profile_steps=options["profile_steps"],
        log_steps=options["log_steps"],
        reference_estimator=options["reference_estimator"] and mg.estimators.parse(options["reference_estimator"]),
        on_nonfinite=settings["on_nonfinite"],
        preempted=preempted,
        seed=settings["seed"],
        verbose=options["verbose"],
    )
