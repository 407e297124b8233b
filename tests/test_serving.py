"""A SavedModel adapts, refuses and keeps its clients apart where tf_metagrad is not installed, by any way of asking."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import serving_process
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import tf_metagrad as mg

WAYS, FEATURES, SHOTS, QUERIES, TASKS = 3, 8, 2, 5, 3
SIGNATURES = {
    "adapt_and_predict", "adapt", "predict_adapted", "predict",
    "adapt_and_predict_batch", "adapt_batch", "predict_adapted_batch",
}  # fmt: skip
ALONE = """
import runpy, sys
sys.modules.update(dict.fromkeys(("keras", "tf_keras", "tf_metagrad")))  # an import fails as if it were not installed
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def make(inner, convolutional=False, policy=None, **options):
    if convolutional:
        model = mg.models.conv1d(WAYS, FEATURES, filters=2, blocks=1)
        for v in model.non_trainable_variables:
            v.assign(np.linspace(0.5, 1.5, v.shape[0]))
    else:
        layers = [keras.layers.Dense(5, "tanh", dtype=policy), keras.layers.Dense(WAYS, name="head", dtype=policy)]
        flat = [keras.Input((FEATURES, 1)), keras.layers.Flatten(dtype=policy)]
        model = keras.Sequential([*flat, *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = mg.MetaLearner(model, loss, inner, execution="loop", **options)
    for v in [*learner.hyperparameters, *learner.step_statistics]:
        v.assign(v * np.linspace(0.5, 1.5, v.shape[-1]) if len(v.shape) else v + 0.3)
    return learner


LEARNERS = {
    "batch": lambda: make(mg.inner.GradientDescent(3, 0.3), convolutional=True),
    "per_step": lambda: make(mg.inner.Momentum(2, 0.2, nesterov=True), convolutional=True, normalization="per_step"),
    "adam": lambda: make(mg.inner.Adam(3, 0.05)),
    "tolerance": lambda: make(mg.inner.ProximalGradientDescent(40, 0.3, weight=1.0, tolerance=0.05, learn="weight")),
    "anil": lambda: make(mg.inner.RMSprop(3, 0.05, learn="per_parameter"), adapt=["head"]),
    "bfloat16": lambda: make(mg.inner.GradientDescent(2, 0.3), policy="mixed_bfloat16"),
    "float16": lambda: make(mg.inner.GradientDescent(2, 0.3), policy="float16"),
}


def draw(seed, shots=SHOTS, queries=QUERIES, tasks=TASKS):
    rng = np.random.default_rng(seed)
    x, query = (rng.normal(size=[tasks, n, FEATURES, 1]).astype("float32") for n in (WAYS * shots, queries))
    y = np.tile(np.repeat(np.arange(WAYS, dtype="int32"), shots), (tasks, 1))
    return {"support_x": x, "support_y": y, "query_x": query}


def bad_requests():
    """Return {"signature--case": (inputs, what the error says)}."""
    batch = draw(1)
    good = {name: value[0] for name, value in batch.items()}
    x, y, query = good.values()
    nan, labels = x.copy(), "must be in 0 .. 2, the 3 classes of the model. Received: from"
    nan[-1, -1] = np.nan
    size = 3 * 2 + 2 + 2 * 2 + 4 * 2 * WAYS + WAYS
    weights, many = np.zeros(size, "float32"), np.zeros([TASKS, size], "float32")
    length = f"{size} numbers for a task. Received:] [{size - 1}]"
    cases = {
        "adapt--label_above": ({**good, "support_y": y + 1}, f"{labels}] [1] [to] [3]"),
        "adapt_and_predict--label_below": ({**good, "support_y": y - 1}, f"{labels}] [-1] [to] [1]"),
        "adapt--empty": ({"support_x": x[:0], "support_y": y[:0]}, "at least one example"),
        "adapt--nan": ({**good, "support_x": nan}, "`support_x` must be finite. Received: NaN or infinity"),
        "adapt_and_predict--infinite_query": ({**good, "query_x": query * np.inf}, "`query_x` must be finite"),
        "predict--nan": ({"query_x": nan}, "`query_x` must be finite"),
        "adapt--fewer_labels": (
            {**good, "support_y": y[:-1]},
            "must agree in their first axes. Received examples:] [6]",
        ),
        "adapt--other_shape": ({**good, "support_x": np.zeros([6, 9, 1], "float32")}, r"[6,9,1] is not compatible"),
        "predict_adapted--short": ({**good, "weights": weights[1:]}, length),
        "predict_adapted--nan": ({**good, "weights": weights * np.nan}, "`weights` must be finite"),
        "adapt_batch--label_above": ({**batch, "support_y": batch["support_y"] + 1}, f"{labels}] [1] [to] [3]"),
        "adapt_batch--no_tasks": ({name: v[:0] for name, v in batch.items()}, "at least one example"),
        "adapt_and_predict_batch--fewer_queries": ({**batch, "query_x": batch["query_x"][1:]}, "as many tasks"),
        "predict_adapted_batch--short": ({**batch, "weights": many[:, 1:]}, length),
        "predict_adapted_batch--fewer": ({**batch, "weights": many[1:]}, "as many tasks. Received:] [2] [and] [3]"),
    }
    for inputs, _ in cases.values():  # only what some signature takes
        assert inputs.keys() <= {*good, "weights"}
    return cases


def alone(*arguments):
    script = pathlib.Path(__file__).with_name("serving_process.py")
    return subprocess.Popen([sys.executable, "-c", ALONE, script, *arguments], stderr=subprocess.PIPE, text=True)


def cli_commands(root):
    model, tasks = ["--dir", str(root / "models/batch/1")], root / "one.npz"
    run = ["run", *model, "--tag_set", "serve", "--overwrite", "--signature_def"]
    given = {key: f"{key}={tasks}[{key}]" for key in ("support_x", "support_y", "query_x", "weights")}
    takes = {"adapt": "xy", "adapt_and_predict": "xyq", "predict_adapted": "wq", "predict": "q"}
    letters = dict(zip("xyqw", given.values(), strict=True))
    commands = [["show", *model, "--all"]]
    for name, wanted in takes.items():
        inputs = ";".join(letters[letter] for letter in wanted)
        commands.append([*run, name, "--inputs", inputs, "--outdir", str(root / "printed" / name)])
    inputs = f"support_x={tasks}[support_x];support_y={tasks}[bad_y]"
    return [*commands, [*run, "adapt", "--inputs", inputs, "--outdir", str(root / "printed" / "bad")]]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The folder, the learners, and what the processes without tf_metagrad found."""
    keras.utils.set_random_seed(0)
    root, learners = tmp_path_factory.mktemp("serving"), {name: make() for name, make in LEARNERS.items()}
    for name, learner in learners.items():
        mg.export(learner, root / "models" / name / "1")
        np.savez(root / "models" / name / "tasks.npz", **draw(0))
    for folder in ("bad", "clients"):
        (root / folder).mkdir()
    for case, (inputs, _) in bad_requests().items():
        np.savez(root / "bad" / f"{case}.npz", **inputs)
    for i in range(6):
        np.savez(root / "clients" / f"{i}.npz", **draw(10 + i, 1 + i % 3, 3 + i, 2))
    one = {name: value[0] for name, value in draw(0).items()}
    weights = learners["batch"].adapt(one["support_x"], one["support_y"])
    one["weights"] = np.concatenate([np.ravel(w) for w in weights])
    np.savez(root / "one.npz", **one, bad_y=one["support_y"] + 1)
    (root / "commands.json").write_text(json.dumps(cli_commands(root)))
    for process in [alone("signatures", root), alone("command_line", root)]:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return root, learners, json.loads((root / "found.json").read_text())


@pytest.mark.parametrize("name", LEARNERS)
def test_every_way_of_asking_gives_the_learners_numbers(served, name):
    root, learners, _ = served
    learner, tasks = learners[name], draw(0)
    rounding = 1e-2 if name == "bfloat16" else 1e-6  # graphs fuse operations, which round once instead of twice
    answers = np.load(root / "models" / name / "answers.npz")
    assert set(answers) == (SIGNATURES if name in ("batch", "tolerance") else set(serving_process.SINGLE))
    for i in range(TASKS):
        solution = learner.solve(tasks["support_x"][i], tasks["support_y"][i])
        if name == "tolerance":
            assert solution.stopped_by == "tolerance" and 2 < solution.steps < 40
        predictions = learner.predict_adapted(solution.weights, tasks["query_x"][i]).numpy().astype("float32")
        initial = learner.predict_adapted(learner.model.trainable_variables, tasks["query_x"][i])
        assert np.abs(predictions - np.float32(initial)).max() > 1e-2
        flat = np.concatenate([np.ravel(w) for w in solution.weights])[-answers["adapt"].shape[1] :]
        for kind, expected in (("adapt", flat), ("predict_adapted", predictions), ("adapt_and_predict", predictions)):
            for found in [answers[k] for k in (kind, f"{kind}_batch") if k in answers]:
                np.testing.assert_allclose(np.float32(found[i]), np.float32(expected), rtol=0, atol=rounding)
        np.testing.assert_allclose(np.float32(answers["predict"][i]), np.float32(initial), rtol=0, atol=rounding)


@pytest.mark.parametrize("name, dtype", [("batch", "float32"), ("bfloat16", "float32"), ("float16", "float16")])
def test_vectors_have_the_type_of_the_weights(served, name, dtype):
    """JSON has no bfloat16: a mixed policy answers in float32."""
    answers = np.load(served[0] / "models" / name / "answers.npz")
    assert {answers[key].dtype.name for key in answers} == {dtype}


def test_bad_requests_get_an_error_that_says_so(served):
    refusals = served[2]["refusals"]
    assert refusals.keys() == bad_requests().keys()
    for case, (_, message) in bad_requests().items():
        assert message in refusals[case], case


def test_clients_do_not_mix(served):
    differences = served[2]["differences"]
    assert len(differences) == 1000 and max(differences) <= 1e-6


def test_command_line_tool(served):
    root, learners, _ = served
    (shown, error), *runs, (_, refused) = json.loads((root / "printed.json").read_text())
    assert error == "" and all(f"signature_def['{name}']" in shown for name in {*SIGNATURES, "serving_default"})
    assert [error for _, error in runs] == [""] * 4
    answers = np.load(root / "models/batch/answers.npz")
    for file in (root / "printed").rglob("*.npy"):
        np.testing.assert_allclose(np.load(file), answers[file.parent.name][0], rtol=0, atol=1e-6)
    assert len(list((root / "printed").iterdir())) == 4
    assert "must be in 0 .. 2" in refused


def test_what_tensorflow_serving_needs(served):
    """Named signatures, a default one, a numeric folder with nothing half-written beside it, TensorFlow's own ops."""
    root, _, _ = served
    assert [path.name for path in (root / "models/batch").iterdir() if path.is_dir()] == ["1"]
    saved = saved_model_pb2.SavedModel.FromString((root / "models/batch/1/saved_model.pb").read_bytes())
    (graph,) = saved.meta_graphs
    assert list(graph.meta_info_def.tags) == ["serve"]
    assert graph.signature_def.keys() == SIGNATURES | {"serving_default", "__saved_model_init_op"}
    default, named = graph.signature_def["serving_default"], graph.signature_def["adapt_and_predict"]
    assert default.inputs.keys() == named.inputs.keys() == {"support_x", "support_y", "query_x"}
    assert default.outputs.keys() == {"predictions"}
    functions = graph.graph_def.library.function
    ops = {node.op for nodes in (graph.graph_def.node, *(f.node_def for f in functions)) for node in nodes}
    assert "Assert" in ops and not {op for op in ops if "Py" in op}
    own = {f.signature.name for f in functions}
    assert not {op for op in ops - own if not hasattr(tf.raw_ops, op)}


def test_card_says_what_the_command_line_tool_cannot(served):
    card = json.loads((served[0] / "models/tolerance/1/assets.extra/model_card.json").read_text())
    assert card["ways"] == WAYS and card["loss"] == {"name": "SparseCategoricalCrossentropy", "from_logits": True}
    assert card["inner_optimizer"]["name"] == "ProximalGradientDescent" and card["inner_optimizer"]["steps"] == 40
    assert card["estimator_at_export"]["name"] == "MAML"
    assert card["adapted_weights"]["length"] == FEATURES * 5 + 5 + 5 * WAYS + WAYS
    assert card["signatures"].keys() == SIGNATURES
    labels = card["signatures"]["adapt_batch"]["inputs"]["support_y"]
    assert labels == {"shape": "[tasks, support]", "dtype": "int32", "meaning": labels["meaning"]}
    assert "0 .. 2" in labels["meaning"]
    weights = card["signatures"]["predict_adapted"]["inputs"]["weights"]
    assert weights["shape"] == f"[{card['adapted_weights']['length']}]"
