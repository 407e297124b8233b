"""The initialisations in saved_models/ are small, say where they come from, and adapt as well as they say."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import tf_metagrad as mg

FOLDER = pathlib.Path(__file__).parents[1] / "saved_models"
NAMES = ["omniglot_5way", "sinusoid"]
UNSEEN = 2_000_000  # train.py adds it to the seed for its test tasks


def card(name):
    return json.loads((FOLDER / name / "assets.extra" / "model_card.json").read_text())


def served(name):
    return tf.saved_model.load(str(FOLDER / name)).signatures


def test_there_are_no_others():
    assert sorted(path.name for path in FOLDER.iterdir() if path.is_dir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_says_where_it_comes_from(name):
    size = sum(path.stat().st_size for path in (FOLDER / name).rglob("*") if path.is_file())
    assert size < 5e6
    about, table = card(name)["about"], (FOLDER / "README.md").read_text()
    assert about["unseen_tasks"]["count"] == 600
    for fact in (name, about["command"], f"{size / 1e6:.1f} MB"):
        assert fact in table
    metric = "accuracy" if "accuracy" in about["unseen_tasks"]["mean"] else "loss"
    mean, half = (about["unseen_tasks"][key][metric] for key in ("mean", "confidence"))
    shown = f"{100 * mean:.2f} % ± {100 * half:.2f} %" if metric == "accuracy" else f"{mean:.3f} ± {half:.3f}"
    assert shown in table


def judged(name, tasks, measure, count):
    """Return a measure of each task, after adaptation by the SavedModel."""
    adapt = served(name)["adapt_and_predict"]
    found = []
    for batch in tasks:
        for xs, ys, xq, yq in zip(*batch, strict=True):
            predicted = adapt(support_x=xs, support_y=ys, query_x=xq)["predictions"]
            found.append(float(measure(predicted.numpy(), yq.numpy())))
        if len(found) >= count:
            return np.array(found[:count])


def agrees(found, name, metric):
    """Whether a mean is that of the card, the first 100 of whose 600 tasks these are, up to four standard errors."""
    mean = card(name)["about"]["unseen_tasks"]["mean"][metric]
    return abs(found.mean() - mean) < 4 * found.std(ddof=1) / np.sqrt(len(found))


def test_sinusoid_adapts_as_well_as_it_says():
    settings = card("sinusoid")["about"]["settings"]
    tasks = mg.data.sinusoid(shots=settings["shots"], queries=settings["queries"], seed=UNSEEN + settings["seed"])
    found = judged("sinusoid", tasks, lambda p, y: np.mean((p - y) ** 2), 100)
    assert agrees(found, "sinusoid", "loss")
    x = tf.linspace([-5.0], [5.0], 50)
    unadapted = served("sinusoid")["predict"](query_x=x)["predictions"]
    assert found.mean() < 0.2 * np.mean((unadapted.numpy() - 3 * np.sin(x)) ** 2)


def test_omniglot_tells_five_drawings_apart_after_one_look():
    """Without the data set: noise-free random drawings are predicted again after adaptation to one example each."""
    drawings = (np.random.default_rng(0).uniform(size=(5, 28, 28, 1)) < 0.15).astype("float32")
    answer = served("omniglot_5way")["adapt_and_predict"](
        support_x=tf.constant(drawings), support_y=tf.range(5), query_x=tf.constant(drawings)
    )
    assert np.argmax(answer["predictions"], -1).tolist() == [0, 1, 2, 3, 4]


def test_omniglot_adapts_as_well_as_it_says(real_data):
    settings = card("omniglot_5way")["about"]["settings"]
    sizes = {key: settings[key] for key in ("ways", "shots", "queries", "meta_batch")}
    tasks = mg.data.omniglot("test", **sizes, seed=UNSEEN + settings["seed"], data_dir=real_data / "tfds")
    found = judged("omniglot_5way", tasks, lambda p, y: np.mean(p.argmax(-1) == y), 100)
    assert agrees(found, "omniglot_5way", "accuracy")
