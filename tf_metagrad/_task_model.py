"""A `keras.Model` that learns from tasks; what Keras offers for single examples refuses."""

from typing import Any, NoReturn

import keras


class TaskModel(keras.Model):
    """Refuses the methods of `keras.Model` that have another meaning here, with a pointer to what to call instead."""

    def fit(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse, with a pointer to `mg.train`."""
        raise NotImplementedError("A MetaLearner learns from tasks. Use mg.train(learner, tasks, steps) for `fit`.")

    def train_on_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse, with a pointer to `mg.train`."""
        raise NotImplementedError("A MetaLearner learns from tasks. Use mg.train for `train_on_batch`.")

    def evaluate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse, with a pointer to `evaluate_tasks`."""
        raise NotImplementedError("A MetaLearner is judged on tasks. Use learner.evaluate_tasks(tasks) for `evaluate`.")

    def test_on_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse, with a pointer to `evaluate_tasks`."""
        raise NotImplementedError("A MetaLearner is judged on tasks. Use evaluate_tasks for `test_on_batch`.")

    def export(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse, with a pointer to `mg.export`."""
        raise NotImplementedError("A MetaLearner is exported with what adapts it. Use mg.export(learner, path).")

    def save(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse, with a pointer to what can be saved."""
        self.get_config()

    def get_config(self) -> NoReturn:
        """Refuse, as `save` does: the loss and the model need not be serialisable."""
        raise NotImplementedError(
            "A MetaLearner is not saved as a Keras model. Use mg.export(learner, path) to serve it, "
            "learner.model.save(path) for the initialisation, or mg.train(..., directory=...) to go on training."
        )
