"""The figures that train: which runs they ask for, what they make of them, what they draw."""

import json
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "train")
    from figures import FIGURES

    return FIGURES


@pytest.fixture
def canvas():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(14, 7), layout="constrained")
    yield figure
    plt.close(figure)


@pytest.fixture
def stub(monkeypatch, figures):
    """Return a function that puts runs of known numbers in the place of a figure's training, and the runs asked for."""
    from figures.training import Trained

    asked, started = {}, set()

    def classified(name, settings, place):
        started.add(name)
        return [{"iteration": 1, "train_accuracy": 0.5, "train_loss": 1.0}]

    def trained(name, flags, place, start=None):
        assert name not in asked and (start is None or start in started)
        asked[name] = flags | {"start": start}
        value = len(asked) / 100
        epochs = range(flags["steps"] // flags["epoch_steps"])
        names = ("accuracy", "loss", "val_accuracy", "val_loss")
        history = [{"epoch": float(e)} | {n: value + e / 1000 for n in names} for e in epochs]
        result = {"mean": {"accuracy": value}, "confidence": {"accuracy": 0.005}, "count": 600, "skipped": 0}
        result["values"] = {"accuracy": [value] * 600}
        return Trained(result, history, "--flags")

    def put(name):
        monkeypatch.setattr(figures[name], "trained", trained)
        monkeypatch.setattr("figures.classifier.start", classified)
        return figures[name], asked

    return put


@pytest.mark.parametrize("size", ["small", "paper"])
@pytest.mark.parametrize("name", ["binom_table_1", "fob_figure_2", "fob_table_2"])
def test_runs_differ_in_their_method_only_and_their_rows_can_be_drawn_and_written(name, size, stub, canvas):
    import reproduce

    module, asked = stub(name)
    settings = json.loads(json.dumps(module.SIZES[size]))  # as settings.json keeps them
    rows = module.measure(settings, None)
    results = [r for r in rows if "accuracy" in r]
    assert len(results) == len(asked) and all(r["confidence"] == 0.005 and r["tasks"] == 600 for r in results)
    assert sorted(r["accuracy"] for r in results) == [(n + 1) / 100 for n in range(len(asked))]
    own = {"task", "shots", "seed", "start", "estimator", "inner", "proximal_weight"}  # what a run may have of its own
    own |= {"inner_learning_rate", "meta_learning_rate", "filters"}
    kinds = {json.dumps({k: v for k, v in flags.items() if k not in {*own, "steps"}}) for flags in asked.values()}
    assert len(kinds) == 1
    asked = {name: flags for name, flags in asked.items() if flags.get("meta_learning_rate") != 0}  # that train
    methods: dict[tuple, set] = {}  # of the same net and number of iterations
    for flags in asked.values():
        key = flags.get("shots"), flags["steps"], flags.get("filters")
        methods.setdefault(key, set()).add(flags["estimator"])
    for shots in {flags.get("shots") for flags in asked.values()}:
        every = {flags["estimator"] for flags in asked.values() if flags.get("shots") == shots}
        assert every in [found for (own_shots, *_), found in methods.items() if own_shots == shots]
    for flags in asked.values():
        assert (flags.get("inner") == "proximal") == flags["estimator"].startswith(("IMAML", "FOBMAML"))
    assert reproduce.table(rows).count("\n") == len(rows) + 1
    module.draw(rows, settings, canvas)
    assert canvas.get_axes() or canvas.subfigs


def test_table_1_of_binommaml_has_every_method_and_figure_5(stub, canvas):
    module, asked = stub("binom_table_1")
    settings = module.SIZES["small"]
    rows = module.measure(settings, None)
    assert settings["methods"] == {shots: [module.START, *module.METHODS] for shots in ("1", "5")}
    assert set(module.METHODS) == set(module._PAPER)
    untrained = [flags for flags in asked.values() if flags["meta_learning_rate"] == 0]
    assert [flags["shots"] for flags in untrained] == [1, 5] and {flags["steps"] for flags in untrained} == {1}
    results = {(r["shots"], r["method"]): r for r in rows if "accuracy" in r}
    for (shots, _), r in results.items():
        np.testing.assert_allclose(r["difference"], r["accuracy"] - results[shots, "MAML"]["accuracy"], atol=1e-12)
    seeds = {flags["seed"] for flags in asked.values()}
    assert len(seeds) == 1  # the same tasks for all
    assert {flags["start"] for flags in asked.values()} == {"mini_imagenet-start"}
    module.draw(rows, settings, canvas)
    bars, curves = (part.get_axes() for part in canvas.subfigs)
    assert [len(axis.patches) for axis in bars] == [len(m) for m in settings["methods"].values()]
    lines = {line.get_label(): line for line in curves[0].get_lines()}
    assert set(lines) == set(module.STYLES)
    own = [r for r in rows if (r.get("shots"), r["method"]) == (1, "MAML") and "train_accuracy" in r]
    np.testing.assert_array_equal(lines["MAML"].get_xdata(), [r["iteration"] for r in own])
    np.testing.assert_array_equal(lines["MAML"].get_ydata(), [r["train_accuracy"] for r in own])
    assert own[-1]["iteration"] == settings["flags"]["steps"]


def test_figure_2_of_fo_b_maml_draws_mean_and_range_of_the_seeds(stub, canvas):
    module, asked = stub("fob_figure_2")
    settings = module.SIZES["small"]
    rows = module.measure(settings, None)
    assert settings["steps"] == 600 and len(settings["seeds"]) == 3
    module.draw(rows, settings, canvas)
    (axis,) = canvas.get_axes()
    for index, method in enumerate(module.METHODS):
        line = axis.get_lines()[index]
        runs = [3 * index + seed for seed in range(3)]  # the stub's numbers go up by 0.01 a run
        assert line.get_label() == f"{method}: {np.mean(runs) + 1:.1f} % on test tasks"
        assert list(line.get_xdata()) == list(range(25, 601, 25))
        np.testing.assert_allclose(line.get_ydata()[0], (np.mean(runs) + 1) / 100)


def test_table_2_of_fo_b_maml_has_a_panel_for_each_number_of_shots(stub, canvas):
    module, asked = stub("fob_table_2")
    settings = module.SIZES["small"]
    rows = module.measure(settings, None)
    module.draw(rows, settings, canvas)
    assert [axis.get_title() for axis in canvas.get_axes()] == [f"{s}-shot (line: the paper)" for s in (1, 5)]
    for axis, shots in zip(canvas.get_axes(), (1, 5), strict=True):
        own = [r for r in rows if r["shots"] == shots]
        assert {r["method"] for r in own} == set(module.METHODS) and len(axis.patches) == len(own)


def test_the_start_is_a_classifier_that_a_run_can_begin_from(tmp_path, figures, monkeypatch):
    import keras
    import tensorflow as tf
    from figures import Place, classifier
    from pipeline import take_weights

    import tf_metagrad as mg

    rng, y = np.random.default_rng(0), np.arange(96) % 3
    x = np.clip(rng.normal(80 * y[:, None, None, None], 20, size=(96, 84, 84, 3)), 0, 255).astype("uint8")
    monkeypatch.setattr(classifier, "images", lambda place: (x, y))
    settings = {"epochs": 6, "batch": 16, "rate": 0.01, "filters": 2, "pool": False, "seed": 0}
    rows = classifier.start("start", settings, Place(tmp_path, []))
    assert [r["iteration"] for r in rows] == [1, 2, 3, 4, 5, 6] and rows[-1]["train_accuracy"] > 0.6  # of three classes
    keras.utils.set_random_seed(0)
    model = mg.models.conv2d(5, (84, 84, 3), 2, pool=False)
    before = [w.numpy() for w in model.trainable_weights]
    take_weights(model, str(tmp_path / "runs" / "start"))
    assert not any(tf.reduce_any(w != 0) for w in model.layers[-1].weights)
    assert all(np.abs(w - b).max() > 1e-3 for w, b in zip(model.trainable_weights[:1], before[:1], strict=True))
    (tmp_path / "runs" / "a").mkdir()
    (tmp_path / "runs" / "a" / "result.json").write_text("{}")
    monkeypatch.delattr(classifier, "images")
    assert classifier.start("start", settings, Place(tmp_path, [])) == rows  # made once
    (tmp_path / "runs" / "start" / "history.json").unlink()
    with pytest.raises(ValueError, match="is not whole. Give another --results"):
        classifier.start("start", settings, Place(tmp_path, []))


def test_a_figure_that_fails_does_not_keep_the_others_from_being_measured(figures, capsys):
    import reproduce

    done = []

    def measure(name):
        if name == "b":
            raise ValueError("no data")
        done.append(name)

    with pytest.raises(ValueError, match="^Not measured: b, for the reasons above"):
        reproduce.every(["a", "b", "c"], measure)
    assert done == ["a", "c"] and capsys.readouterr().err == "b: no data\n"
    with pytest.raises(ValueError, match="^no data$"):
        reproduce.every(["b"], measure)


def test_a_run_of_an_earlier_version_is_refused(tmp_path, figures):
    from figures import Place
    from figures.training import trained

    (tmp_path / "runs" / "old").mkdir(parents=True)
    for name, text in (("result.json", json.dumps({"mean": {"accuracy": 0.5}})), ("history.csv", "epoch\n")):
        (tmp_path / "runs" / "old" / name).write_text(text)
    with pytest.raises(ValueError, match="earlier version"):
        trained("old", {}, Place(tmp_path, []))
