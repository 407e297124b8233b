"""Per-step scalars hold the right numbers and change none; graphs and profiles name the parts of a meta-update."""

import collections
import functools
import resource
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from estimator_cases import CASES, typical
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tf_metagrad as mg
from tf_metagrad._tensorboard import StepScalars
from tf_metagrad.estimators import ESMAML, FOBMAML, FOMAML, MAML, BinomMAML, Reptile, TruncMAML

COUNT, STEPS = 3, 4
PLAIN = mg.inner.GradientDescent(2, 0.1)
PROXIMAL = mg.inner.ProximalGradientDescent(2, 0.1, weight=2.0)


def make_learner(estimator, inner=PLAIN, execution="map", jit_compile=False, before=()):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), *before, keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = mg.MetaLearner(model, loss, inner, estimator, execution=execution, jit_compile=jit_compile)
    learner.compile(keras.optimizers.Adam(0.05, global_clipnorm=0.01), metrics=["accuracy"])
    return learner


def batch(step):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(2, COUNT, 5, 3)).astype(keras.config.floatx())
    labels = np.tile([0, 1, 0, 1, 1], (COUNT, 1))
    return mg.Task(x[0], labels, x[1], labels[:, ::-1].copy())


def tasks(batches=None):
    batches = [batch(step) for step in range(STEPS)] if batches is None else batches
    parts = [np.stack(part) for part in zip(*batches, strict=True)]
    return tf.data.Dataset.from_tensor_slices(mg.Task(*parts))


def train(learner, **options):
    return mg.train(learner, **{"tasks": tasks(), "steps": STEPS, "epoch_steps": 3, "verbose": 0} | options)


def state(learner):
    variables = [*learner.model.variables, *learner.optimizer.variables]
    return [tf.convert_to_tensor(v).numpy().tobytes() for v in variables]


@pytest.fixture
def written(monkeypatch):
    """What is written, before TensorBoard's files round it to float32: {step: {name: value}}."""
    found = collections.defaultdict(dict)

    def recording(function):
        def call(self, *args):
            values = function(self, *args)
            found[self._number] |= {name: float(value) for name, value in values.items()}
            return values

        return call

    for name in ("_run_values", "_task_values"):
        monkeypatch.setattr(StepScalars, name, recording(getattr(StepScalars, name)))
    return found


def ravel(tensors):
    return np.concatenate([np.ravel(t) for t in tensors])


# Scalars --------------------------------------------------------------------------------------------------------------


def test_scalars_are_those_of_the_update_by_hand(float64, written, tmp_path):
    """Of weights before the update and gradients before clipping, with statistics of the batch at hand."""
    learner = make_learner(FOMAML(), execution="vectorize", before=[keras.layers.BatchNormalization()])
    train(learner, directory=tmp_path, log_steps=2, reference_estimator=MAML())
    assert sorted(written) == [2, 4]

    layers = [keras.layers.BatchNormalization()]
    learner, exact = (make_learner(e, before=layers) for e in (FOMAML(), MAML()))
    for step in range(STEPS):
        one = mg.Task(*map(tf.constant, batch(step)))
        for theirs, mine in zip(exact.model.variables, learner.model.variables, strict=True):
            theirs.assign(mine)
        estimate, reference = learner.meta_gradient(one, seed=step), exact.meta_gradient(one, seed=step)
        if step + 1 in written:
            found = written[step + 1]
            logits = [learner.model(x, training=True).numpy() for x in one.query_x]
            losses = [float(learner.task_loss(y, z)) for y, z in zip(one.query_y, logits, strict=True)]
            hits = np.argmax(logits, axis=-1) == one.query_y.numpy()
            a, b = ravel(estimate.gradients), ravel(reference.gradients)
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert cosine < 1 - 1e-6
            expected = {
                "meta_gradient/norm": np.linalg.norm(a),
                "meta_gradient/cosine_to_MAML()": cosine,
                "query_loss/before": np.mean(losses),
                "query_loss/after": float(estimate.loss),
                "query_accuracy/before": hits.mean(),
                "query_accuracy/after": float(estimate.metrics["accuracy"]),
            }
            assert found.keys() == expected.keys() | {"step/milliseconds", "step/tasks_per_second", "memory/peak_mib"}
            for name, value in expected.items():
                assert found[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name
        learner.optimizer.apply(estimate.gradients, learner.meta_variables)


@pytest.mark.parametrize(("execution", "jit_compile"), [("vectorize", True), ("map", False)])
def test_scalars_change_no_number_of_the_run(written, tmp_path, execution, jit_compile):
    """Weights, slots, seeds and averages bit for bit, running metrics too; also where the run stopped in between.

    The cosine of an estimator to itself is 1: Dropout draws the same for both, single precision is summed in double.
    """
    layers = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)]
    learner = make_learner(FOMAML(), execution=execution, jit_compile=jit_compile, before=layers)
    initial = [v.numpy() for v in (*learner.model.variables, *learner.optimizer.variables)]

    def run(**options):
        for variable, value in zip((*learner.model.variables, *learner.optimizer.variables), initial, strict=True):
            variable.assign(value)
        return train(learner, **options).history, state(learner)

    plain, ended = run()
    scalars = {"log_steps": 1, "reference_estimator": FOMAML()}
    history, same = run(directory=tmp_path / "a", profile_steps=(3, 4), **scalars)
    assert history == plain and same == ended
    cosines = [values["meta_gradient/cosine_to_FOMAML()"] for values in written.values()]
    assert len(cosines) == STEPS and cosines == pytest.approx([1] * STEPS, abs=1e-12)
    if jit_compile:
        look_into_program(tmp_path / "a")
    stopped = iter([False, True])
    with pytest.raises(mg.Preempted):
        run(directory=tmp_path / "b", preempted=lambda: next(stopped), **scalars)
    resumed = train(learner, directory=tmp_path / "b", log_steps=3).history
    assert resumed == plain and state(learner) == ended


def test_tensorboard_reads_them_by_the_number_of_the_update(tmp_path):
    train(make_learner(FOMAML()), directory=tmp_path, log_steps=3)
    events = EventAccumulator(str(tmp_path / "logs" / "steps")).Reload()
    names = events.Tags()["tensors"]
    assert {"step/milliseconds", "query_accuracy/after", "meta_gradient/norm"} <= set(names)
    assert not any("cosine" in name for name in names)
    assert [event.step for name in names for event in events.Tensors(name)] == [3] * len(names)


def test_time_and_memory_are_those_of_the_process(written, tmp_path, monkeypatch):
    """Of every update since the last ones written; what it takes to write them is not counted."""
    wait, update, values_of = 0.1, mg.MetaLearner.update, StepScalars._task_values

    def slower(function, seconds):
        def call(*args, **options):
            time.sleep(seconds)
            return function(*args, **options)

        return call

    monkeypatch.setattr(mg.MetaLearner, "update", slower(update, wait))
    monkeypatch.setattr(StepScalars, "_task_values", slower(values_of, 20 * wait))
    train(make_learner(FOMAML()), directory=tmp_path, log_steps=2)
    values = written[4]  # the first ones hold the tracing
    assert 1000 * wait < values["step/milliseconds"] < 10_000 * wait
    assert values["step/tasks_per_second"] == pytest.approx(1000 * COUNT / values["step/milliseconds"], rel=1e-9)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert 0.5 * peak < values["memory/peak_mib"] <= peak


def test_a_step_that_skips_a_task_describes_the_others(float64, written, tmp_path):
    wrong = batch(0)
    wrong.support_x[1] *= 1e200  # its gradient, squared, is not finite after the first inner step
    options = {"on_nonfinite": "skip", "log_steps": 1, "reference_estimator": FOMAML(), "steps": 1}
    learner = functools.partial(make_learner, FOMAML())
    train(learner(), tasks=tasks([wrong]), directory=tmp_path / "a", **options)
    with_bad = dict(written[1])
    others = mg.Task(*(part[[0, 2]] for part in batch(0)))
    train(learner(), tasks=tasks([others]), directory=tmp_path / "b", **options)
    assert "meta_gradient/cosine_to_FOMAML()" in written[1] and "meta_gradient/cosine_to_FOMAML()" not in with_bad
    for name in with_bad.keys() - {"step/milliseconds", "step/tasks_per_second", "memory/peak_mib"}:
        assert with_bad[name] == pytest.approx(written[1][name], rel=1e-12), name


def test_a_step_that_skips_every_task_tells_time_and_memory(float64, written, tmp_path):
    wrong = batch(0)
    wrong.support_x[:] *= 1e200
    options = {"on_nonfinite": "skip", "log_steps": 1, "steps": 2}
    train(make_learner(FOMAML()), tasks=tasks([wrong, batch(1)]), directory=tmp_path, **options)
    assert written[1].keys() == {"step/milliseconds", "step/tasks_per_second", "memory/peak_mib"} < written[2].keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_steps": 0, "directory": "unused"}, "`log_steps` must be a whole number of at least 1.*log_steps=0"),
        ({"log_steps": 1.5, "directory": "unused"}, "log_steps=1.5"),
        ({"log_steps": True, "directory": "unused"}, "log_steps=True"),
        ({"log_steps": 5}, "needs a `directory`. Received: log_steps=5, directory=None"),
        ({"reference_estimator": MAML(), "directory": "unused"}, "without `log_steps`. Give both"),
        ({"reference_estimator": "MAML", "log_steps": 1, "directory": "unused"}, "Received: 'MAML'"),
        ({"reference_estimator": BinomMAML(3), "log_steps": 1, "directory": "unused"}, "truncation=3 with steps=2"),
    ],
)
def test_what_cannot_be_written_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        train(make_learner(FOMAML()), **options)
    assert list(tmp_path.iterdir()) == []


# Scopes ---------------------------------------------------------------------------------------------------------------

SCOPES = {
    MAML: {"inner_step", "support_gradient", "query_gradient", "hvp"},
    TruncMAML: {"inner_step", "support_gradient", "query_gradient", "hvp"},
    FOMAML: {"inner_step", "support_gradient", "query_gradient"},
    Reptile: {"inner_step", "support_gradient", "query_gradient"},
    ESMAML: {"inner_step", "support_gradient", "query_loss"},
    mg.estimators.BinomMAML: {"inner_step", "support_gradient", "query_gradient", "hvp", "hvp_level_1", "hvp_level_2"},
    mg.estimators.BinomTruncMAML: {"inner_step", "support_gradient", "query_gradient", "hvp", "hvp_level_1"},
    mg.estimators.IMAML: {"inner_step", "support_gradient", "query_gradient", "hvp"},
    FOBMAML: {"inner_step", "support_gradient", "query_gradient"},
}
ESTIMATORS = {
    mg.estimators.BinomMAML: BinomMAML(2),
    mg.estimators.BinomTruncMAML: mg.estimators.BinomTruncMAML(1, 2),
    TruncMAML: TruncMAML(1),
    MAML: MAML(),
}


def names_in(function):
    """Return the parts of the names of all operations of a traced function, and of what it calls."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for part in graph.library.function for node in part.node_def)]
    return {part for node in nodes for part in node.name.split("/")}


def traced(estimator, inner=PLAIN, **options):
    learner = make_learner(estimator, inner, **options)
    body = functools.partial(learner.estimate, seed=0)
    return names_in(tf.function(body, autograph=False).get_concrete_function(mg.Task(*map(tf.constant, batch(0)))))


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_every_estimator_names_its_parts(kind):
    estimator = ESTIMATORS.get(kind, typical(kind).estimator)
    inner = PROXIMAL if kind in (mg.estimators.IMAML, FOBMAML) else PLAIN
    every = set().union(*SCOPES.values()) - {"query_loss"}
    assert traced(estimator, inner) & every == SCOPES[kind] - {"query_loss"}
    assert "query_loss" not in SCOPES[kind] or "query_loss" in traced(estimator, inner)


@pytest.mark.parametrize(
    ("estimator", "scopes"),
    [
        (FOBMAML("tangent"), {"tangent_step", "query_gradient", "hvp"}),
        (MAML("unrolled"), {"inner_step", "support_gradient", "query_loss"}),
    ],
)
def test_other_modes_name_theirs(estimator, scopes):
    assert scopes <= traced(estimator, PROXIMAL)


@pytest.mark.parametrize("execution", ["vectorize", "loop"])
def test_a_profile_names_the_parts_of_a_step(tmp_path, execution):
    """Without XLA every matrix product, the work, is an event under the scope of its part."""
    train(make_learner(MAML(), execution=execution), directory=tmp_path, profile_steps=(3, 4))
    events = profiled(tmp_path)
    for scope in ("inner_step", "support_gradient", "query_gradient", "hvp", "meta_optimizer"):
        assert any(f"{scope}/" in name for name in events), scope
    products = [name for name in events if "MatMul" in name]
    parts = [[s for s in ("support_gradient/", "query_gradient/", "hvp/") if s in name] for name in products]
    assert products and all(len(found) == 1 for found in parts)


def look_into_program(directory):
    """With XLA the scopes are in the program that comes with the profile, not in its events."""
    (path,) = directory.glob("logs/train/plugins/profile/*/*.xplane.pb")
    program = path.read_bytes()
    for scope in (b"inner_step/", b"query_gradient/", b"meta_optimizer/"):
        assert scope in program
    assert not any("query_gradient" in name for name in profiled(directory))


def profiled(directory):
    """Return the name of every event of the profile."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (path,) = directory.glob("logs/train/plugins/profile/*/*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    return [
        plane.event_metadata[event.metadata_id].name
        for plane in space.planes
        for line in plane.lines
        for event in line.events
    ]
