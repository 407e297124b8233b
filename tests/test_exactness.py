"""Meta-gradients of real nets against references that share no code with them, in float64."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from references import binomial_sum, directional_derivative, ravel, relative_error
from test_frozen import answered

import tf_metagrad as mg
from tf_metagrad.estimators import FOMAML, MAML, BinomMAML, BinomTruncMAML, Reptile, TruncMAML
from tf_metagrad.estimators._binomial import binomial

CROSSENTROPY = "sparse_categorical_crossentropy"


def net(kind):
    """Return a small net and the shape of its input."""
    if kind == "tanh":
        return keras.Sequential(
            [keras.Input((2,)), layers.Dense(4, "tanh", name="body"), layers.Dense(3, "softmax", name="head")]
        ), (2,)
    if kind == "conv":
        body = [
            layers.Conv2D(3, 3),
            layers.BatchNormalization(),
            layers.Activation("tanh"),
            layers.Dropout(0.3, seed=1),
        ]
        head = [layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(3, "softmax")]
        return keras.Sequential([keras.Input((6, 6, 2)), *body, *head]), (6, 6, 2)
    if kind == "attention":
        x = start = keras.Input((4, 4))
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 3)(x, x))
        return keras.Model(start, layers.Dense(3, "softmax")(layers.Flatten()(x))), (4, 4)
    return keras.Sequential([keras.Input((4, 3)), layers.LSTM(4), layers.Dense(3, "softmax")]), (4, 3)


def tasks_for(shape, count=3, query=4):
    rng = np.random.default_rng(3)
    labels = np.tile(np.arange(3), (count, 2))
    return mg.Task(
        rng.normal(size=(count, 6, *shape)), labels, rng.normal(size=(count, query, *shape)),
        rng.integers(0, 3, (count, query)),
    )  # fmt: skip


def learner_for(kind, steps=3, learn=None, **options):
    model, shape = net(kind)
    options = {"execution": "map", "jit_compile": False} | options
    learner = mg.MetaLearner(model, CROSSENTROPY, mg.inner.GradientDescent(steps, 0.3, learn), **options)
    return learner, tasks_for(shape)


def check_against_differences(learner, tasks, tolerance=1e-8, step=1e-4):
    """Compare <meta-gradient, direction> with the central difference of the loss after adaptation.

    Kinks (ReLU, max-pool) need a step short enough to cross none.
    """
    rng = np.random.default_rng(4)
    direction = [rng.normal(size=v.shape) for v in learner.meta_variables]
    learner.estimator = MAML()
    gradient = ravel(learner.meta_gradient(tasks, seed=5).gradients)
    learner.estimator = FOMAML()  # its loss is the same, and cheaper
    reference = directional_derivative(
        lambda: learner.meta_gradient(tasks, seed=5).loss, learner.meta_variables, direction, step
    )
    assert abs(gradient @ ravel(direction) - reference) < tolerance * abs(reference)


@pytest.mark.parametrize("kind", ["tanh", "conv", "attention", "lstm"])
def test_maml_equals_central_differences(float64, kind):
    check_against_differences(*learner_for(kind, learn="per_layer_and_step"))


@pytest.mark.parametrize("learn", ["scalar", "per_parameter"])
def test_shared_weights_and_rates_equal_central_differences(float64, learn):
    learner, tasks = learner_for("tanh", learn=learn, adapt=["head"])
    check_against_differences(learner, tasks)
    assert answered(learner) == {"body"}


def test_stored_statistics_equal_central_differences(float64):
    check_against_differences(*learner_for("conv", normalization="stored"), step=1e-6)


def test_omniglot_net_equals_central_differences(float64):
    """28x28 images, four blocks of convolution, batch norm, ReLU and max-pool."""
    learner = mg.MetaLearner(
        mg.models.conv2d(ways=3, filters=6), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        mg.inner.GradientDescent(3, 0.1), jit_compile=False,
    )  # fmt: skip
    check_against_differences(learner, tasks_for((28, 28, 1), count=2, query=6), tolerance=1e-6, step=1e-7)


@pytest.mark.parametrize("steps", range(1, 7))
def test_recursion_equals_the_brute_force_sum(steps):
    """Eq. (8) and eq. (39), term by term, on random Hessians that do not commute, for every order and horizon."""
    rng = np.random.default_rng(steps)
    hessians = [h + h.T for h in rng.normal(size=(steps, 4, 4))]
    rates, g = rng.uniform(0.1, 0.5, size=(steps, 4)), rng.normal(size=4)

    def parallel_curvature(phi, state, step, adjoint):
        products = tf.einsum("pij,pj,pj->pi", tf.gather(tf.stack(hessians), step), tf.gather(rates, step), adjoint[0])
        return [tf.zeros_like(products)], [products]

    problem = SimpleNamespace(
        steps=steps, learned=[], parallel_curvature=parallel_curvature, adapting=lambda full: full,
        rate_gradients=lambda *_: [], support=SimpleNamespace(widened=list),
    )  # fmt: skip
    factors = [-h * d for h, d in zip(hessians, rates, strict=True)]
    for horizon in range(1, steps + 1):
        path = SimpleNamespace(iterates=[tf.zeros([horizon, 4])], states=[], directions=[], stored=None)
        for order in range(1, horizon + 1):
            result, _ = binomial(problem, path, [tf.constant(g)], order)
            assert relative_error(result, [binomial_sum(factors[steps - horizon :], order, g)]) < 1e-12


def test_binomial_equals_explicit_hessians_of_a_net(float64):
    """The same sum end to end: Hessians by `tape.jacobian` at the iterates of a hand-written inner loop."""
    learner, tasks = learner_for("tanh", steps=3, estimator=BinomMAML(2))
    model, shapes = learner.model, learner.adapting_weights.shapes
    sizes = [int(np.prod(s)) for s in shapes]

    def loss(w, x, y):
        parts = [tf.reshape(p, s) for p, s in zip(tf.split(w, sizes), shapes, strict=True)]
        hidden = tf.tanh(x @ parts[0] + parts[1])
        return tf.reduce_mean(
            keras.losses.sparse_categorical_crossentropy(y, tf.nn.softmax(hidden @ parts[2] + parts[3]))
        )

    def derivatives(w, x, y):
        with tf.GradientTape() as outer:
            outer.watch(w)
            with tf.GradientTape() as inner:
                inner.watch(w)
                value = loss(w, x, y)
            gradient = inner.gradient(value, w)
        return gradient, outer.jacobian(gradient, w).numpy()

    expected = []
    for xs, ys, xq, yq in zip(*tasks, strict=True):
        w, factors = tf.constant(ravel(model.trainable_variables)), []
        for _ in range(3):
            gradient, hessian = derivatives(w, xs, ys)
            factors.append(-0.3 * hessian)
            w -= 0.3 * gradient
        expected.append(binomial_sum(factors, 2, derivatives(w, xq, yq)[0].numpy()))
    assert relative_error(learner.meta_gradient(tasks).gradients, [np.mean(expected, axis=0)]) < 1e-12


@pytest.mark.parametrize(("kind", "steps"), [("tanh", 3), ("conv", 2), pytest.param("lstm", 2, marks=pytest.mark.slow)])
def test_limits_hold_exactly(float64, kind, steps):
    learner, tasks = learner_for(kind, steps, learn="per_layer_and_step")

    def gradient(estimator):
        learner.estimator = estimator
        return ravel(learner.meta_gradient(tasks, seed=1).gradients)

    maml, fomaml = gradient(MAML()), gradient(FOMAML())
    assert relative_error([gradient(MAML(mode="unrolled"))], [maml]) < 1e-10
    for estimator in (BinomMAML(steps), TruncMAML(steps), BinomTruncMAML(steps, steps)):
        assert relative_error([gradient(estimator)], [maml]) < 1e-12
    for estimator in (BinomMAML(0), TruncMAML(0), BinomTruncMAML(0, 2)):
        assert np.array_equal(gradient(estimator), fomaml)
    assert relative_error([gradient(BinomTruncMAML(1, steps))], [gradient(BinomMAML(1))]) < 1e-12
    assert relative_error([gradient(BinomTruncMAML(1, 1))], [gradient(TruncMAML(1))]) < 1e-12
    assert relative_error([fomaml], [maml]) > 1e-3


RUN = [(kind, e) for kind in ("tanh", "conv", "attention") for e in (MAML(), BinomMAML(2), Reptile())]
RUN += [("attention", MAML("unrolled"))]  # one graph for XLA, which wants constant shapes in second derivatives
SLOW = [("attention", BinomMAML(2)), ("attention", MAML("unrolled"))]


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [pytest.param(*each, marks=pytest.mark.slow if each in SLOW else ()) for each in RUN],
    ids=str,
)
def test_every_way_to_run_gives_the_same_numbers(float64, kind, estimator):
    results = {}
    ways = [("loop", False), ("map", False), ("vectorize", False)]
    if kind != "conv":  # XLA has no second derivative of max-pooling in float64
        ways += [("vectorize", True), ("map", True)]
    for way, jit in ways:
        keras.utils.set_random_seed(0)
        learner, tasks = learner_for(kind, estimator=estimator, execution=way, jit_compile=jit)
        learner.compile("sgd", metrics=["accuracy"])
        result = learner.meta_gradient(tasks, seed=2)
        results[way, jit] = ravel(result.gradients), result.loss.numpy(), result.metrics["accuracy"].numpy()
    reference = results["loop", False]
    for gradients, loss, accuracy in results.values():
        assert relative_error([gradients], [reference[0]]) < 1e-10
        assert abs(loss - reference[1]) < 1e-12 and accuracy == reference[2]


@pytest.mark.parametrize("estimator", [MAML(), BinomMAML(1), BinomMAML(3)], ids=str)
def test_a_batch_of_one_task(float64, estimator):
    vectorized, tasks = learner_for("conv", estimator=estimator, execution="vectorize")
    looped, _ = learner_for("conv", estimator=estimator, execution="loop")
    for a, b in zip(vectorized.meta_variables, looped.meta_variables, strict=True):
        b.assign(a)
    one = mg.Task(*[t[:1] for t in tasks])
    expected = ravel(looped.meta_gradient(one).gradients)
    assert relative_error(vectorized.meta_gradient(one).gradients, [expected]) < 1e-10


@pytest.mark.parametrize("way", ["vectorize", "map"])
def test_compiled_step_follows_weights_and_data(float64, way):
    """Compiled once, the step still sees new weights and new tasks."""
    compiled, tasks = learner_for("tanh", execution=way, jit_compile=True)
    plain, _ = learner_for("tanh", execution="loop")
    for shift in (0.0, 0.5):
        moved = mg.Task(tasks[0] + shift, tasks[1], tasks[2] - shift, tasks[3])
        for a, b in zip(compiled.meta_variables, plain.meta_variables, strict=True):
            a.assign(a + shift)
            b.assign(a)
        expected = ravel(plain.meta_gradient(moved).gradients)
        assert relative_error(compiled.meta_gradient(moved).gradients, [expected]) < 1e-10
        assert np.linalg.norm(expected) > 0.1


def test_auto_chooses_by_the_kind_of_model(float64):
    chosen = {kind: learner_for(kind, execution="auto", jit_compile="auto")[0].execution for kind in
              ("tanh", "conv", "attention", "lstm")}  # fmt: skip
    assert chosen["tanh"][:2] == ("vectorize", True)
    assert chosen["conv"] == chosen["attention"] == ("loop", False, "auto")
    assert chosen["lstm"][:2] == ("map", True)
    logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    pooled = mg.MetaLearner(mg.models.conv1d(3), logits, mg.inner.GradientDescent(1))
    assert pooled.execution[:2] == ("vectorize", False)  # float64: XLA lacks a derivative
    with pytest.raises(ValueError, match="max-pooling in float64"):
        learner_for("conv", jit_compile=True)
    with pytest.raises(ValueError, match="recurrent"):
        learner_for("lstm", execution="vectorize", jit_compile=True)
    with pytest.raises(ValueError, match="`execution` must be"):
        learner_for("tanh", execution="parallel")


def test_dropout_is_a_function_of_the_seed(float64):
    learner, tasks = learner_for("conv")
    first, again, other = (ravel(learner.meta_gradient(tasks, seed=s).gradients) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert relative_error([other], [first]) > 1e-2


@pytest.mark.parametrize("way", ["loop", "vectorize"])
def test_dropout_layers_draw_apart(float64, way):
    """E[mean of two independent dropouts of ones] = 1; equal masks would give 2."""
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dropout(0.5), layers.Dropout(0.5), layers.Dense(8, "linear", use_bias=False)]
    )
    model.layers[-1].set_weights([np.eye(8)])
    learner = mg.MetaLearner(
        model, lambda y, p: tf.reduce_mean(p), mg.inner.GradientDescent(1, 1e-12), FOMAML(), execution=way,
        jit_compile=False,
    )  # fmt: skip
    ones, y = np.ones((4, 50, 8)), np.zeros((4, 50, 8))
    assert abs(float(learner.meta_gradient(mg.Task(ones, y, ones, y)).loss) - 1) < 0.15


def test_subclassed_model_without_training_argument(float64):
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.body, self.head = layers.Dense(4, "tanh"), layers.Dense(3, "softmax")

        def call(self, x):
            return self.head(self.body(x))

    model = Plain()
    model(np.zeros((1, 2)))
    learner = mg.MetaLearner(model, CROSSENTROPY, mg.inner.GradientDescent(2, 0.3), execution="map", jit_compile=False)
    check_against_differences(learner, tasks_for((2,)))


def test_reptile_gives_shared_weights_the_query_gradient(float64):
    learner, tasks = learner_for("tanh", estimator=Reptile(), adapt=["head"])
    reptile = learner.meta_gradient(tasks).gradients
    learner.estimator = FOMAML()
    fomaml = learner.meta_gradient(tasks).gradients
    assert relative_error(reptile[:2], fomaml[:2]) < 1e-12
    moved = [np.mean([w - learner.adapt(x, y)[i] for x, y in zip(*tasks[:2], strict=True)], axis=0)
             for i, w in list(enumerate(learner.model.trainable_variables))[2:]]  # fmt: skip
    assert relative_error(reptile[2:], [m / (3 * 0.3) for m in moved]) < 1e-10


def standardized(y, predictions):
    """A loss through `tf.nn.moments`, whose own second derivative is wrong."""
    mean, variance = tf.nn.moments(predictions, [0], keepdims=True)
    return tf.reduce_mean(((predictions - mean) / tf.sqrt(variance + 0.1) - tf.one_hot(y, 3, dtype=mean.dtype)) ** 2)


@pytest.mark.parametrize("execution, jit", [("loop", False), ("vectorize", True)])
def test_second_derivatives_through_the_loss(execution, jit, float64):
    model, shape = net("tanh")
    learner = mg.MetaLearner(
        model, standardized, mg.inner.GradientDescent(3, 0.3), execution=execution, jit_compile=jit
    )
    check_against_differences(learner, tasks_for(shape))
