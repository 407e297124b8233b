"""MAML: the exact meta-gradient.

Finn, Abbeel and Levine, 2017, "Model-agnostic meta-learning for fast adaptation of deep networks", arXiv:1703.03400.

    v <- g^K;   for k = K-1 .. 0:   v <- v - H^k D_k v

Other inner optimisers put the transpose of their update rule in the place of (I - H^k D_k), see `_transposed_loop`.

Mixed mode computes each product by forward-over-reverse autodiff (Kemaev et al., 2025, "Scalable meta-learning via
mixed-mode differentiation", arXiv:2505.00793). Its memory is K|theta| and one HVP's activations; the tape through the
unrolled loop gives the same number and keeps the activations of all K steps.

The multi-step loss of MAML++ (Antoniou, Edwards and Storkey, 2019, section 4, arXiv:1810.09502) judges every iterate:
F = sum_k w_k l_val(phi^k), k = 1 .. K, so that v gets w_k grad l_val(phi^k) at every k on its way back.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from tf_metagrad import _inner_loop, _tree
from tf_metagrad._inner_loop import Path
from tf_metagrad._loop import repeated
from tf_metagrad._losses import Query
from tf_metagrad._problem import Estimate, Problem
from tf_metagrad._transposed_loop import adjoint_at_end, transposed_step
from tf_metagrad._types import Params
from tf_metagrad.estimators._base import Estimator
from tf_metagrad.estimators._truncated import backpropagate
from tf_metagrad.inner import InnerOptimizer
from tf_metagrad.inner._base import is_one_of

_MODES = ("mixed", "unrolled")


def unrolled(problem: Problem, step_weights: tuple[float, ...] = ()) -> Estimate:
    """Return the exact meta-gradient by one tape through all inner steps."""
    problem = problem.whole()
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([problem.theta, problem.learned])
        at, total = _inner_loop.start(problem), 0.0
        for step in range(problem.steps):
            with tf.name_scope("inner_step"):
                at, _ = _inner_loop.step_from(problem, at, tf.constant(step))
            if step_weights and step_weights[step]:
                total += step_weights[step] * problem.query_loss(at.phi, at.state).loss
        query = problem.query_loss(at.phi, at.state)
        (mean,) = problem.mean([total if step_weights else query.loss])
    zero = tf.UnconnectedGradients.ZERO
    gradients = tape.gradient(mean, problem.theta + problem.learned, unconnected_gradients=zero)
    gradients = [tf.convert_to_tensor(g) for g in gradients]
    count = len(problem.theta)
    return Estimate(gradients[:count], gradients[count:], query, problem.diagnostics(_inner_loop.path_to(problem, at)))


def multi_step(problem: Problem, path: Path, query: Query, step_weights: tuple[float, ...]) -> tuple[Params, Params]:
    """Return the gradients of theta and of the hyperparameters under the multi-step loss."""
    weights, count = tf.constant(step_weights, path.end[0].dtype), len(problem.theta)
    last = problem.steps - 1

    def body(step, adjoint, features):
        with tf.name_scope("hvp"):
            phi, state = _tree.at(path.iterates, step), _tree.at(path.states, step)
            adjoint = transposed_step(problem, path, step, step, adjoint)
            judged = _tree.scale(weights[step - 1], problem.query(phi, state).gradient)  # phi^k is judged by w_k
            total = _tree.add(adjoint.weights, problem.support.widened(judged[:count]))
            return step - 1, adjoint._replace(weights=total), _tree.add(features, judged[count:])

    judged = _tree.scale(weights[last], query.gradient)
    adjoint, features = adjoint_at_end(problem, judged[:count]), judged[count:]
    if last:
        _, adjoint, features = repeated(last, body, (tf.constant(last), adjoint, features))
    adjoint = transposed_step(problem, path, tf.constant(0), tf.constant(0), adjoint)
    return adjoint.gradient(problem, features), adjoint.hyperparameters


@keras.saving.register_keras_serializable(package="tf_metagrad")
@dataclasses.dataclass(frozen=True, repr=False)
class MAML(Estimator):
    """The exact meta-gradient, by mixed-mode autodiff (memory flat in the steps) or by the unrolled tape.

    Args:
        mode: `"mixed"` or `"unrolled"`; the numbers agree, the memory does not.
        step_weights: w_1 .. w_K of the multi-step loss, non-negative; empty for the loss after the last step only.
            The reported query loss is the one after the last step in either case.

    Raises:
        ValueError: another mode; weights that are negative, all zero, or (once the inner optimiser is known) not K.

    Example:
        >>> MAML().hvps(steps=5)
        5
    """

    mode: str = "mixed"
    step_weights: tuple[float, ...] = ()

    def __post_init__(self):
        """Check the configuration."""
        if not is_one_of(self.mode, _MODES):
            raise ValueError(f"`mode` must be one of {_MODES}. Received: mode={self.mode!r}.")
        numbers = np.array(self.step_weights, dtype=object).ravel()
        if not all(isinstance(w, int | float | np.number) and 0 <= w < np.inf for w in numbers) or (
            numbers.size and not sum(numbers) > 0
        ):
            raise ValueError(
                "`step_weights` must be non-negative numbers, at least one of them positive. "
                f"Received: step_weights={self.step_weights!r}."
            )
        object.__setattr__(self, "step_weights", tuple(float(w) for w in numbers))  # a list, as JSON gives it, too

    def check(self, inner: InnerOptimizer) -> None:
        """See `Estimator.check`."""
        if self.step_weights and len(self.step_weights) != inner.steps:
            raise ValueError(
                f"`step_weights` must be one weight for each of the {inner.steps} inner steps. "
                f"Received: {len(self.step_weights)} weights. Give {inner.steps}, or none."
            )

    def hvps(self, steps: int) -> int:
        """See `Estimator.hvps`."""
        return steps

    def estimate(self, problem: Problem) -> Estimate:
        """See `Estimator.estimate`."""
        if self.mode == "unrolled":
            return unrolled(problem, self.step_weights)
        problem = problem.judged_often() if self.step_weights else problem
        path = problem.adapt(keep=problem.steps, stacked=False, products=True)
        query = problem.query(path.end, path.state)
        if self.step_weights:
            gradients = multi_step(problem, path, query, self.step_weights)
        else:
            gradients = backpropagate(problem, path, query.gradient, problem.steps)
        return Estimate(*gradients, query, problem.diagnostics(path))


def multi_step_schedule(steps: int, until: int, stages: int = 5) -> dict[int, MAML]:
    """Return a schedule for `mg.train` that anneals the multi-step loss, as MAML++ does, from equal weights to MAML.

    At stage s the first K-1 weights are (1 - s/stages)/K each, and the last one is the rest. Each stage compiles once.

    Args:
        steps: K, the inner steps.
        until: the meta-update from which on only the last iterate is judged.
        stages: how many sets of weights there are before.

    Raises:
        ValueError: not 1 <= stages <= until.

    Example:
        >>> {step: maml.step_weights for step, maml in multi_step_schedule(steps=2, until=100, stages=2).items()}
        {0: (0.5, 0.5), 50: (0.25, 0.75), 100: ()}
    """
    if not 1 <= stages <= until:
        raise ValueError(f"`stages` must be from 1 to `until`. Received: stages={stages}, until={until}.")
    schedule = {}
    for stage in range(stages):
        share = (1 - stage / stages) / steps
        schedule[until * stage // stages] = MAML(step_weights=(share,) * (steps - 1) + (1 - share * (steps - 1),))
    return schedule | {until: MAML()}
