"""A model that adapts to tasks, in use: adaptation, prediction, evaluation."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from tf_metagrad import _checks, _diagnostics
from tf_metagrad._meta_update import ON_NONFINITE
from tf_metagrad._task_model import TaskModel
from tf_metagrad._types import Solution, Task
from tf_metagrad.evaluation import Evaluation, judge
from tf_metagrad.inner import InnerOptimizer
from tf_metagrad.inner._base import check_count


class AdaptiveModel(TaskModel):
    """What can be done with an initialisation, however it was learned; see `MetaLearner`, which has its parts."""

    def adapt(self, support_x: Any, support_y: Any, steps: int | None = None, seed: int = 0) -> list[tf.Tensor]:
        """Return the weights adapted to one task, in the order of the model's trainable variables.

        Args:
            support_x: `[support, ...]`, the examples.
            support_y: `[support, ...]`, their targets.
            steps: K, if other than the inner optimiser's.
            seed: the randomness of layers such as Dropout is a function of it.

        Raises:
            ValueError: as for `meta_gradient`.
            FloatingPointError: the inner loop diverged.
        """
        return self.solve(support_x, support_y, steps, seed).weights

    def solve(self, support_x: Any, support_y: Any, steps: int | None = None, seed: int = 0) -> Solution:
        """Adapt to one task as `adapt` does; return the weights, the steps taken, and what stopped them."""
        batch, inner = self._reader.support(support_x, support_y), self._inner(steps)

        def body(problem):
            path = problem.adapt()
            return [], (path.end, path.taken, path.residual, path.failed_step)

        function = self.compiled_function("adapt", inner, lambda t, s: self.use(body, t, s, inner=inner)[1])
        adapted, taken, residual, failed = function(batch, _checks.as_seed(seed))
        _diagnostics.check_finite_path(residual, failed, inner, "")
        stopped_by = "tolerance" if inner.tolerance and residual[0] <= inner.tolerance else "steps"
        weights = self.full_weights([phi[0] for phi in adapted])
        return Solution(weights, int(taken[0]), float(residual[0]), stopped_by)

    def full_weights(self, phi: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Return all weights: `phi` for those that adapt, the initialisation's for the shared ones."""
        weights = [tf.convert_to_tensor(v) for v in self.model.trainable_variables]
        for index, value in zip(self._runner.adapting, phi, strict=True):
            weights[index] = value
        return weights

    def predict_adapted(self, weights: Sequence[tf.Tensor], query_x: Any) -> Any:
        """Return the predictions `[query, ...]` of adapted weights; Dropout is off, as in `keras.Model.predict`."""
        weights, query_x = self._reader.weights(weights), self._reader.query(query_x)
        state = self._runner.state(step=self.inner.steps)
        return self._runner.functional(learning=False).predict(weights, state, query_x, training=False)[0]

    def evaluate_tasks(
        self, tasks: Iterable[Task] | Task, count: int = 600, steps: int | None = None, seed: int = 0,
        on_nonfinite: str = "raise",
    ) -> Evaluation:  # fmt: skip
        """Adapt to `count` tasks and judge each on its query set.

        Args:
            tasks: batches of tasks, e.g. a dataset of `mg.data`, or one batch; the first `count` tasks are used.
            count: number of tasks.
            steps: K, if other than the inner optimiser's.
            seed: the randomness of layers such as Dropout during adaptation is a function of it.
            on_nonfinite: what a task does whose inner loop diverged: `"raise"` an error, or `"skip"`: it is named in
                the log and counted in `skipped`, and the means are those of the others of the `count`.

        Returns:
            `Evaluation`: mean and 95 % confidence half-width of the loss and of each compiled metric.

        Raises:
            ValueError: as for `meta_gradient`; or `tasks` ends before `count` tasks.
            FloatingPointError: the inner loop of a task diverged; or, to be skipped, of all tasks.
        """
        return self._judge(tasks, count, steps, seed, on_nonfinite, every_step=False)[-1]

    def adaptation_curve(
        self, tasks: Iterable[Task], count: int = 600, steps: int | None = None, seed: int = 0,
        on_nonfinite: str = "raise",
    ) -> list[Evaluation]:  # fmt: skip
        """Return what `evaluate_tasks` would after 0, 1, .. K inner steps; arguments and errors are the same.

        Example:
            >>> from tf_metagrad import MetaLearner, data, inner, models
            >>> learner = MetaLearner(models.mlp(), "mse", inner.GradientDescent(steps=3, learning_rate=0.01))
            >>> [point.count for point in learner.adaptation_curve(data.sinusoid(meta_batch=4), count=4)]
            [4, 4, 4, 4]
        """
        return self._judge(tasks, count, steps, seed, on_nonfinite, every_step=True)

    def _judge(self, tasks, count, steps, seed, on_nonfinite, every_step: bool) -> list[Evaluation]:
        _checks.check_nonfinite(on_nonfinite, ON_NONFINITE)
        check_count("count", count)
        batches, seed = _checks.as_batches(tasks), _checks.as_seed(seed)
        return judge(self, batches, count, self._inner(steps), seed, on_nonfinite, every_step)

    def _inner(self, steps: int | None) -> InnerOptimizer:
        return self.inner if steps is None else dataclasses.replace(self.inner, steps=steps)
