"""Inner optimisers in use: configuration, refusals, loops that diverge, SavedModels, checkpoints."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_inner_edges import regression

import tf_metagrad as mg
from tf_metagrad import estimators as e
from tf_metagrad.inner import Adam, GradientDescent, Momentum, ProximalGradientDescent, RMSprop

VALUES = [
    GradientDescent(3, 0.1, "scalar"), Momentum(3, 0.1, "per_parameter", 0.5, True), RMSprop(2, 0.3, None, 0.7, 1e-3),
    Adam(4, 0.2, "per_layer_and_step", 0.8, 0.95, 1e-4), ProximalGradientDescent(7, 0.2, 1.5, 0.01, "weight"),
]  # fmt: skip


def test_every_inner_optimizer_is_here():
    public = {getattr(mg.inner, name) for name in mg.inner.__all__} - {
        mg.inner.AdaptingWeights,
        mg.inner.InnerOptimizer,
    }
    assert public == {type(value) for value in VALUES}


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_configuration_round_trip(value):
    text = json.dumps(keras.saving.serialize_keras_object(value))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert again == value and type(again) is type(value) and hash(again) == hash(value)
    assert type(value).from_config(value.get_config()) == value
    assert list(value.get_config().values()) == list(json.loads(text)["config"].values())
    with pytest.raises(AttributeError):
        value.steps = 9


def test_equal_numbers_of_other_rules_are_other_values():
    same = [GradientDescent(3, 0.1), Momentum(3, 0.1), RMSprop(3, 0.1), Adam(3, 0.1), ProximalGradientDescent(3, 0.1)]
    assert len(set(same)) == 5


BAD = {
    "steps": ((0, -1, 2.5, True, "3", None), r"`steps` must be a whole number of at least 1. Received: steps="),
    "learning_rate": ((0, -0.1, np.inf, np.nan, None, True), r"`learning_rate` must be a positive number. Received: "),
}
BAD_OWN = [
    (Momentum, "momentum", (1, -0.1, np.nan, "x", True), "`momentum` must be at least 0 and below 1. Received: "),
    (Momentum, "nesterov", ("no", 1, None), "`nesterov` must be True or False. Received: nesterov="),
    (RMSprop, "rho", (1.0, -1), "`rho` must be at least 0 and below 1. Received: rho="),
    (RMSprop, "epsilon", (0, -1e-3, None), "`epsilon` must be a positive number. Received: epsilon="),
    (Adam, "beta_1", (1.0, -1), "`beta_1` must be at least 0 and below 1. Received: beta_1="),
    (Adam, "beta_2", (1.0, None), "`beta_2` must be at least 0 and below 1. Received: beta_2="),
    (Adam, "epsilon", (0, np.nan), "`epsilon` must be a positive number. Received: epsilon="),
    (Adam, "learn", ("rates", True, "weight"), r"`learn` must be one of .*'per_parameter'.* Received: learn="),
    (ProximalGradientDescent, "weight", (0, -2, np.inf), "`weight` must be a positive number. Received: weight="),
    (ProximalGradientDescent, "tolerance", (-1, np.nan, True, None), "`tolerance` must be a positive .* Received: "),
    (ProximalGradientDescent, "learn", ("scalar", 1), '`learn` must be None or "weight". Received: learn='),
    (ProximalGradientDescent, "weight", (200.0, 500), "`learning_rate` times `weight` must be below 2.* Received: .*"),
]  # fmt: skip


@pytest.mark.parametrize("kind", [Momentum, RMSprop, Adam, ProximalGradientDescent])
@pytest.mark.parametrize("name", BAD)
def test_bad_common_arguments(kind, name):
    for value in BAD[name][0]:
        with pytest.raises(ValueError, match=BAD[name][1]) as error:
            kind(**{"steps": 3, name: value})
        assert "\n" not in str(error.value) and repr(value) in str(error.value)


@pytest.mark.parametrize(("kind", "name", "values", "message"), BAD_OWN)
def test_bad_own_arguments(kind, name, values, message):
    for value in values:
        with pytest.raises(ValueError, match=message) as error:
            kind(3, **{name: value})
        assert "\n" not in str(error.value) and repr(value) in str(error.value)


LEARNED_WEIGHT = ProximalGradientDescent(3, learn="weight")
REFUSED = [
    *[(kind(1, *more), inner, f"{kind.__name__} is stated for plain gradient descent.* Received: inner=.* Use mg.inner")
      for kind, more in ((e.BinomMAML, ()), (e.BinomTruncMAML, (2,))) for inner in (Momentum(3), RMSprop(3), Adam(3),
      ProximalGradientDescent(3))],
    *[(kind(), inner, f"{kind.__name__} needs an inner problem with a proximal term.* Received: inner=.* Use mg.inner")
      for kind in (e.IMAML, e.FOBMAML) for inner in (GradientDescent(3), Momentum(3), RMSprop(3), Adam(3))],
    *[(kind(), inner, f"{kind.__name__} has no gradient for a learned hyperparameter. Received: learn=.* Use a fixed")
      for kind in (e.Reptile, e.ESMAML) for inner in (GradientDescent(3, learn="scalar"), Adam(3, learn="scalar"),
      LEARNED_WEIGHT)],
    *[(estimator, LEARNED_WEIGHT, "has no gradient for a learned proximal weight. Received: learn='weight'. Use a fix")
      for estimator in (e.FOMAML(), e.TruncMAML(0), e.TruncMAML(2))],
]  # fmt: skip


@pytest.mark.parametrize(("estimator", "inner", "message"), REFUSED, ids=lambda v: type(v).__name__)
def test_estimators_that_do_not_fit(estimator, inner, message):
    with pytest.raises(ValueError, match=message) as error:
        regression(inner, estimator)
    assert "\n" not in str(error.value)
    regression(LEARNED_WEIGHT, e.TruncMAML(3))
    learner, _ = regression(inner, e.MAML())
    with pytest.raises(ValueError, match=message):
        learner.estimator = estimator
    assert learner.estimator == e.MAML()


@pytest.mark.parametrize("way", ["vectorize", "map"])
@pytest.mark.parametrize(
    "inner",
    [Momentum(6, 0.25), GradientDescent(6, 0.25, "scalar"), ProximalGradientDescent(6, 0.25, 1.5, 1e-3)],
    ids=str,
)
def test_the_task_that_diverges_is_named(float64, inner, way):
    """Its inputs are 1e60 times too large, so that the loss after one step, a square of (1e60)^3, overflows."""
    learner, tasks = regression(inner, execution=way)
    learner.compile("sgd")
    learner.meta_gradient(tasks)
    tasks.support_x[2] *= 1e60
    rate = "0.25 before it was learned" if inner.learn else "now 0.25"
    named = "task {} diverged.*the loss after 1 of 6 inner steps is not finite. Lower the inner `learning_rate`, {}"
    with pytest.raises(FloatingPointError, match=named.format(2, rate)) as error:
        learner.meta_gradient(tasks)
    assert ("weight=1.5" in str(error.value)) == inner.proximal
    with pytest.raises(FloatingPointError, match=named.format(0, rate)):
        learner.adapt(tasks.support_x[2], tasks.support_y[2])
    assert np.isfinite(learner.adapt(tasks.support_x[1], tasks.support_y[1])[0]).all()
    stream = tf.data.Dataset.from_tensors(tuple(tasks)).map(mg.Task).repeat()
    with pytest.raises(FloatingPointError, match=named.format(2, rate)) as error:
        mg.train(learner, stream, steps=2, verbose=0)
    assert "at step 0 with MAML" in str(error.value)


def test_a_loop_that_diverges_at_its_last_step_is_named(float64):
    """G_0 is finite, and what the step leads to is not."""
    learner, tasks = regression(Momentum(1, 1.5e308))
    tasks.support_x[:2] *= 1e-300
    with pytest.raises(
        FloatingPointError, match="loop of task 2 diverged.*after all 1 inner steps.* Lower the inner `learning_rate`"
    ):
        learner.meta_gradient(tasks)
    with pytest.raises(
        FloatingPointError, match="loop of task 0 diverged.*after all 1 inner steps.* Lower the inner `learning_"
    ):
        learner.adapt(tasks.support_x[2], tasks.support_y[2])


@pytest.mark.parametrize("way", ["vectorize", "map"])
def test_moved_problems_that_diverge_are_named(float64, way):
    """The unmoved loops stand still at a perfect fit, and only what the estimator adds makes them diverge."""
    learner, tasks = regression(GradientDescent(1, 1e160), e.ESMAML(2, 1.0), execution=way)
    learner.model.set_weights([np.zeros_like(w) for w in learner.model.get_weights()])
    tasks = mg.Task(tasks.support_x, 0 * tasks.support_y, tasks.query_x, 0 * tasks.query_y)
    tasks.query_x[:2] = 0
    with pytest.raises(FloatingPointError, match="of task 2 diverged.* after all 1 inner steps .* Or lower `sigma`"):
        learner.meta_gradient(tasks)
    learner, tasks = regression(ProximalGradientDescent(9, 0.1, 1.5), e.FOBMAML(), execution=way)
    tasks.query_x[2] *= 1e60
    with pytest.raises(FloatingPointError, match="task 2 diverged.* of 9 inner steps .* Or lower the `perturbation`"):
        learner.meta_gradient(tasks)
    learner.estimator = e.FOMAML()
    learner.meta_gradient(tasks)


@pytest.mark.parametrize("inner", [Adam(3, 0.1), ProximalGradientDescent(20, 0.1, 1.5, 0.3)], ids=str)
def test_saved_models_adapt_as_the_learner_does(inner, tmp_path):
    layers = [keras.layers.Dense(5, "tanh"), keras.layers.Dense(1)]
    learner = mg.MetaLearner(keras.Sequential([keras.Input((3,)), *layers]), "mse", inner, jit_compile=False)
    served = tf.saved_model.load(mg.export(learner, tmp_path / "model")).signatures["adapt_and_predict"]
    rng = np.random.default_rng(0)
    for size in (4, 9):
        x, query_x = rng.normal(size=(size, 3)).astype("float32"), rng.normal(size=(2, 3)).astype("float32")
        y = rng.normal(size=(size, 1)).astype("float32")
        found = served(support_x=tf.constant(x), support_y=tf.constant(y), query_x=tf.constant(query_x))["predictions"]
        solution = learner.solve(x, y)
        np.testing.assert_allclose(found, learner.predict_adapted(solution.weights, query_x), rtol=0, atol=1e-6)
        assert np.abs(found - learner.model(query_x)).max() > 1e-2
        if inner.proximal:
            assert solution.stopped_by == "tolerance" and 0 < solution.steps < 20


def test_training_goes_on_with_the_learned_weight(tmp_path):
    def make():
        learner, tasks = regression(ProximalGradientDescent(4, 0.02, 2.0, learn="weight"))
        learner.model.set_weights([np.full((3, 1), 0.3)])
        learner.compile(keras.optimizers.Adam(0.1))
        return learner, tf.data.Dataset.from_tensors(tuple(t.astype("float32") for t in tasks)).map(mg.Task).repeat()

    def train(learner, stream, steps, directory=None):
        mg.train(learner, stream, steps, epoch_steps=2, directory=directory, verbose=0)
        return [v.numpy() for v in learner.meta_variables]

    undisturbed = train(*make(), 4)
    first = train(*make(), 2, tmp_path)
    resumed = train(*make(), 4, tmp_path)
    for one, other in zip(undisturbed, resumed, strict=True):
        np.testing.assert_array_equal(one, other)
    assert abs(first[-1] - np.log(2.0)) > 0.05 and abs(undisturbed[-1] - first[-1]) > 0.05
