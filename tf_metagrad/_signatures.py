"""The signatures of an exported learner: what each takes, returns and means."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from tf_metagrad import _request_checks, _tree
from tf_metagrad._ends import declared, example_shape
from tf_metagrad._execution import Execution
from tf_metagrad._types import Task
from tf_metagrad.learner import MetaLearner

_ONE_TASK = Execution(tasks="loop", jit_compile=False)
_TASKS_AT_ONCE = 8


class Signature(NamedTuple):
    """A function to export, the tensors it takes, and what it does in one sentence."""

    function: Callable
    inputs: list[tf.TensorSpec]
    description: str


class Served:
    """The functions behind the signatures of a learner.

    A task is adapted and predicted by two functions, which every signature shares: so the same request gets the same
    numbers whichever way it comes, alone or in a batch of tasks.

    Args:
        learner: its model has one input and one output tensor, with fixed axes after the first.

    Raises:
        ValueError: another model.
    """

    def __init__(self, learner: MetaLearner):
        """Find the shapes and types; see the class."""
        learner._reader.check_model()
        self.learner, self.normalization = learner, learner._runner.normalization
        x, y = _fixed_shape(learner.model, "inputs"), _fixed_shape(learner.model, "outputs")
        self.variables = [learner.model.trainable_variables[i] for i in learner._runner.adapting]
        self.dtype = tf.as_dtype(keras.backend.result_type(*(v.dtype for v in self.variables)))
        self.size = sum(tf.TensorShape(v.shape).num_elements() for v in self.variables)
        self.predicted = tf.TensorSpec([None, *y])
        self.x = tf.TensorSpec([None, *x], declared(learner.model, "inputs")[0].dtype)
        self.y = tf.TensorSpec([None], tf.int32) if learner.ways else tf.TensorSpec([None, *y], self.dtype)
        if (seen := learner._reader.targets) is not None and not learner._reader.keras_loss:
            self.y = tf.TensorSpec([None, *seen.shape], seen.dtype)  # only the loss knows what it takes
        self._adapt = tf.function(self._adapt_task, [self.x, self.y], autograph=False)
        weights = tf.TensorSpec([self.size], self.dtype)
        self._predict = tf.function(self._predict_task, [weights, self.x], autograph=False)

    def signatures(self) -> dict[str, Signature]:
        """Return the signatures by name; the first is the default."""
        x, y, query = _named(self.x, "support_x"), _named(self.y, "support_y"), _named(self.x, "query_x")
        weights = tf.TensorSpec([None], self.dtype, "weights")  # free, so that the graph can say what is wrong
        xs, ys, queries, many = (tf.TensorSpec([None, *s.shape], s.dtype, s.name) for s in (x, y, query, weights))
        made = [
            Signature(self.adapt_and_predict, [x, y, query], "Adapts to a support set; predicts the query examples."),
            Signature(self.adapt, [x, y], "Adapts to a support set; returns the adapted weights as one vector."),
            Signature(self.predict_adapted, [weights, query], "Predicts with weights that `adapt` returned."),
            Signature(self.predict, [query], "Predicts with the initialisation, not adapted."),
            Signature(self.adapt_and_predict_batch, [xs, ys, queries], "`adapt_and_predict` for each task of a batch."),
            Signature(self.adapt_batch, [xs, ys], "`adapt` for each task of a batch."),
            Signature(self.predict_adapted_batch, [many, queries], "`predict_adapted` for each task of a batch."),
        ]
        return {signature.function.__name__: signature for signature in made}

    # One task ----------------------------------------------------------------------------------------------------

    def adapt_and_predict(self, support_x, support_y, query_x):
        """Adapt to a support set and predict the query examples."""
        x, y = self._support(support_x, support_y)
        return {"predictions": self._predict(self._adapt(x, y), self._query(query_x))}

    def adapt(self, support_x, support_y):
        """Adapt to a support set."""
        return {"weights": self._adapt(*self._support(support_x, support_y))}

    def predict_adapted(self, weights, query_x):
        """Predict with the weights that `adapt` returned."""
        return {"predictions": self._predict(_request_checks.flat_weights(weights, self.size), self._query(query_x))}

    def predict(self, query_x):
        """Predict with the initialisation."""
        full = [tf.convert_to_tensor(v) for v in self.learner.model.trainable_variables]
        return {"predictions": self._predictions(full, self._query(query_x))}

    # Batches of tasks --------------------------------------------------------------------------------------------

    def adapt_and_predict_batch(self, support_x, support_y, query_x):
        """Adapt to each support set and predict its query examples."""
        x, y = self._support(support_x, support_y, lead=1)
        query_x = _request_checks.same_tasks("support_x", support_x, self._query(query_x, lead=1))
        return self._map_predictions(lambda e: self._predict(self._adapt(*e[:2]), e[2]), (x, y, query_x))

    def adapt_batch(self, support_x, support_y):
        """Adapt to each support set."""
        support, spec = self._support(support_x, support_y, lead=1), tf.TensorSpec([self.size], self.dtype)
        return {
            "weights": tf.map_fn(
                lambda e: self._adapt(*e), support, parallel_iterations=_TASKS_AT_ONCE, fn_output_signature=spec
            )
        }

    def predict_adapted_batch(self, weights, query_x):
        """Predict each task's query examples with its weights."""
        query_x = _request_checks.same_tasks("weights", weights, self._query(query_x, lead=1))
        weights = _request_checks.flat_weights(weights, self.size)
        return self._map_predictions(lambda e: self._predict(*e), (weights, query_x))

    def _map_predictions(self, function: Callable, elements: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        one = self._predict.get_concrete_function().structured_outputs
        spec = tf.TensorSpec(one.shape, one.dtype)
        return {
            "predictions": tf.map_fn(function, elements, parallel_iterations=_TASKS_AT_ONCE, fn_output_signature=spec)
        }

    # Parts -------------------------------------------------------------------------------------------------------

    def _support(self, x: tf.Tensor, y: tf.Tensor, lead: int = 0) -> tuple[tf.Tensor, tf.Tensor]:
        lead_axes = [None] * lead
        x, y = tf.ensure_shape(x, [*lead_axes, *self.x.shape]), tf.ensure_shape(y, [*lead_axes, *self.y.shape])
        return _request_checks.support_set(x, y, self.learner.ways, lead)

    def _query(self, x: tf.Tensor, lead: int = 0) -> tf.Tensor:
        return _request_checks.query_set(tf.ensure_shape(x, [*[None] * lead, *self.x.shape]))

    def _adapt_task(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        task = Task(x[None], y[None], x[None], y[None])
        _, phi = self.learner.use(lambda problem: ([], problem.adapt().end), task, 0, execution=_ONE_TASK)
        return _request_checks.converged(_tree.ravel([tf.cast(p[0], self.dtype) for p in phi]))

    def _predict_task(self, weights: tf.Tensor, query_x: tf.Tensor) -> tf.Tensor:
        parts = _tree.unravel(weights, [tuple(v.shape) for v in self.variables])
        phi = [tf.cast(p, v.dtype) for p, v in zip(parts, self.variables, strict=True)]
        return self._predictions(self.learner.full_weights(phi), query_x)

    def _predictions(self, full: list[tf.Tensor], query_x: tf.Tensor) -> tf.Tensor:
        """Return predictions in the type of the weights: JSON has no half precision of a mixed policy."""
        predictions = self.learner.predict_adapted(full, query_x)
        wider = predictions.dtype.is_floating and predictions.dtype.size < self.dtype.size
        return tf.ensure_shape(tf.cast(predictions, self.dtype) if wider else predictions, self.predicted.shape)


def _named(spec: tf.TensorSpec, name: str) -> tf.TensorSpec:
    return tf.TensorSpec(spec.shape, spec.dtype, name)


def _fixed_shape(model: keras.Model, end: str) -> tuple[int, ...]:
    """Return the shape of one example of the model's `"inputs"` or `"outputs"`.

    Raises:
        ValueError: there are several tensors at that end, or a free axis other than the first.
    """
    shape = example_shape(model, end)
    if shape is None or None in shape:
        found = [tuple(t.shape) for t in declared(model, end)]
        advice = "Make the learner with a functional model, keras.Model(keras.Input(...), ...), of fixed axes."
        if len(found) > 1:
            advice = "Join them to one, and take it apart in the model."
        raise ValueError(
            f"`export` needs a model with one tensor of {end} whose axes after the first are fixed. Received: "
            f"shapes {found or 'unknown'}. {advice}"
        )
    return shape
