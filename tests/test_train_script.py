"""`train/train.py`: what it leaves, how it goes on, what it prints, and the one sentence it ends with on bad input."""

import importlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

import tf_metagrad as mg

ROOT = pathlib.Path(__file__).parents[1]
TINY = (
    "--task=sinusoid --estimator=FOMAML --meta_batch=2 --inner_steps=2 --shots=2 --queries=2 --validation_tasks=2 "
    "--evaluation_tasks=4 --execution=map --jit_compile=false"
).split()
RESULTS = {"config.json", "history.csv", "curve.png", "result.json", "checkpoints", "logs", "saved_model"}


class Script:
    """The modules of the script, and calls of it in this process."""

    def __init__(self):
        for name in ("pipeline", "run_folder", "settings", "tasks", "train"):
            setattr(self, name, importlib.import_module(name))

    def read(self, *arguments):
        """Return what the flags come to."""
        with flagsaver.flagsaver():
            self.settings.parse(["train.py", *arguments], self.train.__doc__)
            return self.settings.read()

    def call(self, *arguments):
        """Return the sentence that the script exits with; None where it ends well."""
        with flagsaver.flagsaver():
            try:
                self.train.main(self.settings.parse(["train.py", *arguments], self.train.__doc__))
            except SystemExit as exit:
                return exit.code
        return None


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "train"))
        return Script()


def command(*arguments):
    return [sys.executable, str(ROOT / "train" / "train.py"), *arguments]


def environment():
    return {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}


def shell(*arguments, cwd):
    return subprocess.run(command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def history(folder):
    return np.loadtxt(folder / "history.csv", delimiter=",", skiprows=1, ndmin=2)


# From a shell ---------------------------------------------------------------------------------------------------------


def test_a_run_interrupted_by_ctrl_c_goes_on_and_ends_as_an_undisturbed_one(script, tmp_path):
    arguments = [*TINY, "--steps=200", "--epoch_steps=5"]
    table = tmp_path / "runs" / "sinusoid" / "history.csv"  # the default --output, in the working directory
    with subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        while not (table.exists() and len(table.read_text().splitlines()) > 4) and run.poll() is None:
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate()
    assert err == "train.py: interrupted; the same command goes on from the last checkpoint.\n"
    assert run.returncode == 1
    assert out.startswith("Training on sinusoid with FOMAML, on the ")
    assert "Epoch 1/40" in out and "1/5" in out and "loss:" in out
    rows = len(table.read_text().splitlines())
    assert rows < 41

    done = shell(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Epoch 40/40" in done.stdout and "Epoch 1/40" not in done.stdout
    assert "Test loss " in done.stdout and "(4 tasks), 95 % confidence" in done.stdout
    assert {path.name for path in table.parent.iterdir()} == RESULTS

    assert script.call(*arguments, "--verbose=0", f"--output={tmp_path / 'undisturbed'}") is None
    assert history(table.parent)[:, 0].tolist() == list(range(40))
    np.testing.assert_allclose(history(table.parent), history(tmp_path / "undisturbed"), rtol=1e-5)
    one, other = (json.loads((f / "result.json").read_text()) for f in (table.parent, tmp_path / "undisturbed"))
    assert one["count"] == 4 and one["mean"]["loss"] == pytest.approx(other["mean"]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--task=imagenet"],
            "--task=imagenet: value should be one of <mnist1d|sinusoid|omniglot|mini_imagenet|tiered_",
        ),
        (["--steps=many"], "--steps=many"),
        (["--ways=1"], "--ways=1"),
        (["--inner_learning_rate=-1"], "--inner_learning_rate=-1: -1.0 is not a non-negative number"),
        (["--speed=9"], "Unknown command line flag 'speed'"),
        (["sinusoid"], "takes flags only. Received: sinusoid. See --help."),
        (["--profile_steps=5"], "--profile_steps must be the first and the last step.* Received: '5'."),
        (["--profile_steps=9,2"], "Received: '9,2'."),
        (["--profile_steps=a,b"], "Received: 'a,b'."),
        (["--profile_steps="], "Received: ''."),
        (["--log_steps=0"], "--log_steps=0"),
        (["--reference_estimator=MAML"], "--reference_estimator is compared on the steps that --log_steps chooses."),
        (["--filters=32"], "--filters means nothing to --task=mnist1d. Leave it out"),
        (["--task=sinusoid", "--ways=3"], "--ways means nothing to --task=sinusoid"),
        (
            ["--deterministic", "--jit_compile=true"],
            "XLA has no deterministic gradient of max-pooling",
        ),
        (["--schedule=0: FOMAML", "--estimator=MAML"], "Only one of --estimator and --schedule can be given."),
    ],
)
def test_bad_flags_end_in_a_sentence(arguments, message, tmp_path):
    done = shell(*arguments, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and list(tmp_path.iterdir()) == []
    assert message.split(".*")[0] in done.stderr and message.split(".*")[-1] in done.stderr
    assert "Traceback" not in done.stderr


def test_help_reads_like_documentation(script, tmp_path):
    done = shell("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(script.train.__doc__)
    groups = script.settings.GROUPS
    places = [done.stdout.index(f"\n{group}:\n") for group in groups]
    assert places == sorted(places)
    for group in groups:
        for flag in flags.FLAGS.get_flags_for_module(group):
            shown = f"--[no]{flag.name}:" if flag.boolean else f"--{flag.name}:"
            assert done.stdout.count(shown) == 1 and flag.help
    text = " ".join(done.stdout.split())
    assert "Number of meta-updates [2000, 2000, 4000, 4000, 4000, 4000, 4000]." in text
    assert "Classes in a task [3, -, 5, 5, 5, 5, 5]." in text


def test_examples_of_the_help_are_valid(script):
    lines = [line.strip() for line in script.train.__doc__.splitlines() if "train/train.py" in line]
    assert len(lines) >= 5
    for line in lines:
        arguments = [word for word in shlex.split(line.partition("  ")[0])[2:]]
        settings, _ = script.read(*arguments)
        keras.utils.clear_session()  # so that layers are named as in a new process
        script.pipeline.make_learner(settings, script.pipeline.make_schedule(settings)[0])


# Settings -------------------------------------------------------------------------------------------------------------


def test_a_flag_left_out_takes_the_tasks_default(script):
    settings, options = script.read("--task=omniglot", "--shots=5", "--profile_steps=2,4", "--output=x")
    assert settings["ways"] == 5 and settings["shots"] == 5 and settings["steps"] == 4000 and settings["pool"] is True
    assert settings["estimator"] == "MAML" and settings["schedule"] is None
    assert options["profile_steps"] == (2, 4) and options["output"] == "x" and not options.keys() & settings.keys()
    assert script.read("--task=omniglot", "--nopool")[0]["pool"] is False
    assert not {"ways", "filters", "pool"} & script.read("--task=sinusoid")[0].keys()
    assert script.read("--schedule=0: MAML")[0]["estimator"] is None


def test_settings_reach_the_learner(script):
    settings, _ = script.read(
        "--ways=4", "--inner_steps=3", "--inner_learning_rate=0.5", "--learn=per_layer_and_step",
        "--execution=map", "--jit_compile=true", "--steps=10", "--meta_learning_rate=0.25",
        "--schedule=0: TruncMAML(1), 5: MAML",
    )  # fmt: skip
    schedule = script.pipeline.make_schedule(settings)
    assert schedule == {0: mg.estimators.TruncMAML(1), 5: mg.estimators.MAML()}
    learner = script.pipeline.make_learner(settings, schedule[0])
    assert learner.estimator == schedule[0] and learner.ways == 4
    assert learner.inner == mg.inner.GradientDescent(3, 0.5, "per_layer_and_step")
    assert (learner.execution.tasks, learner.execution.jit_compile) == ("map", True)
    rate = learner.optimizer._learning_rate
    assert [float(rate(step)) for step in (0, 10)] == pytest.approx([0.25, 0.0025])
    settings, _ = script.read("--adapt=head", "--nocosine_decay", "--distribution=mirrored")
    keras.utils.clear_session()
    learner = script.pipeline.make_learner(settings, mg.estimators.FOMAML())
    assert learner.adapting_weights.shapes == [tuple(v.shape) for v in learner.model.layers[-1].trainable_variables]
    assert learner.optimizer.learning_rate.numpy() == pytest.approx(3e-3)
    assert isinstance(learner.distribute_strategy, tf.distribute.MirroredStrategy)


@pytest.mark.parametrize(
    "flags, inner",
    [
        (["--inner=momentum", "--learn=scalar"], mg.inner.Momentum(5, 0.1, "scalar")),
        (["--inner=nesterov"], mg.inner.Momentum(5, 0.1, nesterov=True)),
        (["--inner=rmsprop"], mg.inner.RMSprop(5, 0.1)),
        (["--inner=adam"], mg.inner.Adam(5, 0.1)),
        (
            ["--inner=proximal", "--proximal_weight=3", "--inner_tolerance=0.5", "--learn=weight"],
            mg.inner.ProximalGradientDescent(5, 0.1, 3.0, 0.5, "weight"),
        ),
    ],
)
def test_inner_and_meta_optimizers_reach_the_learner(script, flags, inner):
    settings, _ = script.read(*flags, "--meta_optimizer=sngdm", "--clipnorm=2")
    keras.utils.clear_session()
    learner = script.pipeline.make_learner(settings, mg.estimators.MAML())
    assert learner.inner == inner
    assert type(learner.optimizer) is mg.optimizers.SNGDM and learner.optimizer.global_clipnorm == 2


def test_streams_of_tasks_differ_by_split_and_seed(script):
    def first(split, *arguments):
        settings, options = script.read("--task=sinusoid", *arguments)
        return next(iter(script.tasks.stream(split, settings, options))).support_y.numpy()

    drawn = [first("train"), first("validation"), first("test"), first("train", "--seed=1")]
    assert all((one != other).any() for i, one in enumerate(drawn) for other in drawn[:i])
    np.testing.assert_array_equal(first("train"), drawn[0])


# Output folder --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    """A run that ended."""
    folder = tmp_path_factory.mktemp("runs") / "deep" / "run"
    assert script.call(*TINY, "--steps=4", "--epoch_steps=2", "--verbose=0", f"--output={folder}") is None
    return folder


def test_a_finished_run_is_judged_and_exported_again_and_nothing_else(script, finished, capsys):
    before = contents(finished)
    capsys.readouterr()
    assert script.call(*TINY, "--steps=4", "--epoch_steps=2", f"--output={finished}") is None
    assert "Test loss" in capsys.readouterr().out
    after = contents(finished)
    for name in ("config.json", "history.csv", "result.json", "checkpoints/checkpoint"):
        assert before[pathlib.Path(name)] == after[pathlib.Path(name)]
    assert {path.name for path in finished.iterdir()} == RESULTS
    served = tf.saved_model.load(str(finished / "saved_model")).signatures
    assert served["predict"](query_x=tf.ones([3, 1]))["predictions"].shape == (3, 1)
    about = json.loads((finished / "saved_model/assets.extra/model_card.json").read_text())["about"]
    result = json.loads((finished / "result.json").read_text())
    assert about["unseen_tasks"] == {key: result[key] for key in ("mean", "confidence", "count", "skipped")}
    assert len(result["values"]["loss"]) == result["count"] == 4
    assert about["settings"] == json.loads((finished / "config.json").read_text())
    command = about["command"].split()
    assert command[:2] == ["python", "train/train.py"] and {*TINY, "--steps=4"} <= set(command)


def test_a_run_can_begin_with_the_weights_that_another_ended_with(script, finished, tmp_path):
    again = [*TINY, "--steps=1", "--meta_learning_rate=0", "--verbose=0"]
    assert script.call(*again, f"--initial_weights={finished}", f"--output={tmp_path / 'begun'}") is None
    assert script.call(*again, f"--output={tmp_path / 'new'}") is None
    ended, begun, new = (
        json.loads((f / "result.json").read_text()) for f in (finished, tmp_path / "begun", tmp_path / "new")
    )
    assert begun == ended and new != ended


def test_initial_weights_that_do_not_fit_end_in_a_sentence(script, finished, tmp_path):
    sentence = script.call(*TINY, f"--initial_weights={tmp_path}", f"--output={tmp_path / 'a'}")
    assert f"--initial_weights must be the output folder of a run of train.py. Received: '{tmp_path}'." in sentence
    sentence = script.call("--task=mnist1d", f"--initial_weights={finished}", f"--output={tmp_path / 'a'}")
    assert "holds the weights of another network" in sentence
    assert list(tmp_path.iterdir()) == []


def test_another_configuration_is_refused_by_the_settings_that_differ(script, finished):
    before = contents(finished)
    message = script.call(*TINY, "--steps=6", "--epoch_steps=2", "--seed=7", f"--output={finished}")
    assert message == (
        f"train.py: The output folder {str(finished)!r} holds a run with other settings: seed was 0, now 7; "
        "steps was 4, now 6. Choose another --output, with --initial_weights to begin from these, or give the "
        "same settings to go on."
    )
    assert contents(finished) == before


def test_a_default_of_another_version_is_refused(script, finished, tmp_path):
    """A folder that an older script left, with another default and without a newer setting, is not trained on."""
    config = json.loads((finished / "config.json").read_text())
    del config["execution"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"inner_learning_rate": 0.5, "dropped": 1}))
    message = script.call(*TINY, "--steps=4", "--epoch_steps=2", f"--output={tmp_path}")
    assert "dropped was 1, now None; execution was None, now 'map'; inner_learning_rate was 0.5, now 0.01" in message
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_killed_before_its_first_checkpoint_begins_again(script, finished, tmp_path):
    for name in ("config.json", "history.csv"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    assert script.call(*TINY, "--steps=4", "--epoch_steps=2", "--verbose=0", f"--output={tmp_path}") is None
    np.testing.assert_allclose(history(tmp_path), history(finished), rtol=1e-5)


def test_a_run_killed_while_it_wrote_its_configuration_begins_again(script, tmp_path):
    (tmp_path / "config.json.partial").write_text("{")
    with script.run_folder.output_folder(tmp_path, {"task": "sinusoid"}):
        assert json.loads((tmp_path / "config.json").read_text()) == {"task": "sinusoid"}
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_an_epoch_that_is_run_again_replaces_its_row(script, tmp_path):
    path = tmp_path / "history.csv"
    for rows in ({0: 3.0, 1: 2.0}, {1: 1.5, 2: 1.0}):
        table = script.run_folder.HistoryFile(path)
        for epoch, loss in rows.items():
            table.on_epoch_end(epoch, {"loss": loss, "val_loss": loss + 0.25})
    assert path.read_text() == "epoch,loss,val_loss\n0,3.0,3.25\n1,1.5,1.75\n2,1.0,1.25\n"
    table.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("obstacle", ["other files", "a file", "below a file", "no settings"])
def test_a_folder_that_is_not_a_run_is_left_alone(script, tmp_path, obstacle):
    output, message = tmp_path / "out", "exists and is not a run of train.py. Choose another --output."
    if obstacle == "other files":
        output.mkdir()
        (output / "thesis.txt").write_text("mine")
    elif obstacle == "no settings":
        output.mkdir()
        (output / "config.json").write_text("[1]")
        message = "does not hold the settings of a run. Choose another --output."
    else:
        output.write_text("mine")
    if obstacle == "below a file":
        output, message = output / "run", "cannot be written: Not a directory. Choose another --output."
    before = contents(tmp_path)
    sentence = script.call(*TINY, f"--output={output}")
    assert sentence.startswith("train.py: ") and sentence.endswith(message) and "\n" not in sentence
    assert contents(tmp_path) == before


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--estimator=MAMLL"], "Unknown estimator. Received: 'MAMLL'. Known: BinomMAML"),
        (["--estimator=BinomMAML(9)"], "at most the number of inner steps. Received: truncation=9 with steps=2."),
        (["--estimator=Reptile", "--learn=scalar"], "Reptile has no gradient for a learned hyperparameter."),
        (["--adapt=nolayer"], "`adapt` must name layers .* Received: 'nolayer'. The model 'mlp' has: dense"),
        (["--adapt="], "`adapt` must be"),
        (["--inner_learning_rate=0"], "`learning_rate` must be a positive number."),
        (
            ["--inner_learning_rate=1e25"],
            "The inner loop of task 0 diverged at step 0 with FOMAML(), seed 0: the .* after .* inner steps",
        ),
        (["--estimator=FOBMAML"], "FOBMAML needs an inner problem with a proximal term"),
        (["--learn=weight"], "--learn=weight mean something to --inner=proximal only."),
        (["--inner=proximal", "--proximal_weight=0"], "`weight` must be a positive number."),
        (["--schedule=FOMAML"], 'A schedule is steps with estimators, such as "0: FOMAML'),
        (["--schedule=5: FOMAML"], "--schedule must begin at step 0 and swap before the end, --steps=2000. Received"),
        (["--schedule=0: FOMAML, 2000: MAML"], "--schedule must begin at step 0 and swap before the end"),
        (["--schedule=0: FOMAML, 9: BinomMAML(3)"], "Received: truncation=3 with steps=2."),
    ],
)
def test_bad_settings_end_in_a_sentence_and_leave_no_folder(script, tmp_path, arguments, message):
    given = [flag for flag in TINY if not (flag.startswith("--estimator") and "--schedule" in arguments[0])]
    sentence = script.call(*given, *arguments, "--verbose=0", f"--output={tmp_path / 'out'}")
    assert sentence.startswith("train.py: ") and "\n" not in sentence
    assert all(part in sentence for part in message.split(".*"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "messages"),
    [
        ("tiered_imagenet", ["lacks train_images_png.pkl,", "manual/tiered_imagenet", "github.com/renmengye/few-shot"]),
        ("cifar_fs", ["CIFAR-100, of which CIFAR-FS is made, is not in", "tfds build cifar100 --data_dir="]),
        ("fc100", ["CIFAR-100, of which FC100 is made, is not in", "tfds build cifar100 --data_dir="]),
    ],
)
def test_missing_files_end_in_a_sentence(script, task, messages, tmp_path):
    sentence = script.call(f"--task={task}", f"--data_dir={tmp_path}", f"--output={tmp_path / 'out'}")
    assert "\n" not in sentence and all(message in sentence for message in messages), sentence
    assert not (tmp_path / "out").exists()


def test_a_missing_dataset_says_how_to_get_it(script, tmp_path):
    sentence = script.call("--task=omniglot", f"--data_dir={tmp_path}", f"--output={tmp_path / 'out'}")
    assert (
        sentence.startswith("train.py: Omniglot is not in ")
        and f"tfds build omniglot --data_dir={tmp_path}" in sentence
    )
    assert list(tmp_path.iterdir()) == []


def arrays(change):
    """Tasks of two classes for `--task=mnist1d`, and a net for them; `change` spoils the batches of the train split."""
    x = np.random.default_rng(0).normal(size=[20, 4]).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model = (model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"])

    def make_tasks(split, sizes, options):
        stream = mg.data.from_arrays(x, np.arange(20) % 2, **sizes)
        return stream.map(change) if split == "train" else stream

    return lambda settings: model, make_tasks, ("ways", "shots", "queries", "meta_batch")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: t._replace(query_x=t.query_x * np.nan),
            "`query_x` must be finite. Received: nan at index (0, 0, 0).",
        ),
        (
            lambda t: t._replace(query_y=t.query_y + 1),
            "`query_y` must be in 0 .. 1, the model's 2 outputs. Received: 2.",
        ),
        (lambda t: t._replace(support_y=t.support_y * 0), "at least one example of each of the 2 classes."),
    ],
)
def test_bad_data_ends_in_a_sentence_and_leaves_no_folder(script, tmp_path, monkeypatch, change, message):
    monkeypatch.setitem(script.tasks.TASKS, "mnist1d", script.tasks.TaskKind(*arrays(change)))
    sentence = script.call("--ways=2", "--shots=2", "--queries=2", "--verbose=0", f"--output={tmp_path / 'out'}")
    assert sentence.startswith("train.py: ") and message in sentence and "\n" not in sentence
    assert list(tmp_path.iterdir()) == []


def test_more_ways_than_classes(script, tmp_path, monkeypatch):
    monkeypatch.setitem(script.tasks.TASKS, "mnist1d", script.tasks.TaskKind(*arrays(lambda task: task)))
    sentence = script.call("--ways=3", "--shots=2", "--queries=2", f"--output={tmp_path / 'out'}")
    assert sentence.startswith("train.py: ways is 3 and there are 2 classes") and list(tmp_path.iterdir()) == []


def test_what_loading_prints_is_held_back_unless_it_fails(script, capfd):
    with script.train.native_stderr_held():
        os.write(2, b"oneDNN is on")
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"
    with pytest.raises(ImportError), script.train.native_stderr_held():
        os.write(2, b"the reason")
        raise ImportError
    assert capfd.readouterr().err == "the reason"
