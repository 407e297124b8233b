"""The inner loop of a problem.

With G_k the gradient of the inner objective at phi^k:

    u_k, s_{k+1} = direction(G_k, s_k, k),     phi^{k+1} = phi^k - D_k u_k.

`_transposed_loop` walks it backwards.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from tf_metagrad import _tree
from tf_metagrad._curvature import Stored
from tf_metagrad._inner_objective import inner_gradient, pulled
from tf_metagrad._linearization import Linearization
from tf_metagrad._loop import repeated
from tf_metagrad._types import Params


class Recorded:
    """What was recorded of one tensor, to be read entry by entry; to stack it would hold it twice for a while."""

    def __init__(self, array: tf.TensorArray):
        """Take over a written array."""
        self._array = array

    def __getitem__(self, index: int | tf.Tensor) -> tf.Tensor:
        """Return an entry, as a stacked tensor would."""
        return self._array.read(index)


class Path(NamedTuple):
    """The inner loop's result: phi^K, the state after it, what was recorded on the way, and how it went.

    Attributes:
        end: phi^K, the adapting weights.
        state: the model's non-trainable state after step K.
        iterates: phi^k of the last `keep` steps, stacked `[keep, ...]` or `Recorded`; so are the next three.
        states: the state that each of those steps read.
        gradients: G_k of those steps; only where the rule turns them, or rates are learned and the HVPs are `stored`.
        slots: s_k of those steps; only where the rule has slots.
        stored: what HVPs at those steps need, see `_curvature`; None where they compute it again.
        directions: u_k of the steps before those, stacked `[K - keep, ...]`; only where rates are learned.
        taken: steps taken, fewer than K where the tolerance stopped the loop; one number for each task.
        residual: |G| at phi^K, for each task; 0 where it is not measured.
        failed_step: the number of steps after which the support loss was not finite, or K where only the weights at
            the end are not, or -1; for each task.
    """

    end: Params
    state: Params
    iterates: Params
    states: Params
    gradients: Params
    slots: Params
    stored: Stored | None
    directions: Params
    taken: tf.Tensor
    residual: tf.Tensor
    failed_step: tf.Tensor


class Position(NamedTuple):
    """Where the loop is: see `Path`; `active` says which tasks have not reached the tolerance."""

    phi: Params
    slots: Params
    state: Params
    active: tf.Tensor
    taken: tf.Tensor
    residual: tf.Tensor
    failed_step: tf.Tensor


def start(problem: Any) -> Position:
    """Return phi^0 with nothing done."""
    phi = problem.initial()
    shape = [phi[0].shape[0]] if problem.stacked else []
    taken = tf.zeros(shape, tf.int32)
    return Position(
        phi, problem.inner.initial_slots(phi), problem.state, tf.ones(shape, tf.bool), taken,
        tf.zeros(shape, phi[0].dtype), taken - 1,
    )  # fmt: skip


def step_from(
    problem: Any, at: Position, step: tf.Tensor, perturbation: tf.Tensor | None = None,
    parts: Linearization | None = None,
):  # fmt: skip
    """Return the position after step k, and what was found on the way, by the names of `Path`, with activations."""
    activations = []
    if parts is not None:
        found, activations = parts.once((list(at.phi), list(at.state)), problem.fixed())
        gradient, state, loss = pulled(problem, found[0], at.phi), *found[1:]
    else:
        gradient, state, loss = inner_gradient(problem, at.phi, at.state, perturbation)
    residual = _norm(problem, gradient) if problem.inner.tolerance else at.residual
    after, u = move(problem, at, step, gradient, state, loss, residual)
    return after, {
        "iterates": at.phi, "states": at.state, "gradients": gradient, "slots": at.slots, "activations": activations,
        "directions": u,
    }  # fmt: skip


def move(
    problem: Any, at: Position, step: tf.Tensor, gradient: Params, state: Params, loss: tf.Tensor, residual: tf.Tensor
):
    """Return `(position after step k, u_k)`, given G_k, the new state, the support loss and the residual."""
    u, slots = problem.inner.direction(gradient, at.slots, step)
    phi = _tree.subtract(at.phi, _tree.multiply(problem.rates_at(step), u))
    active = at.active
    if problem.inner.tolerance:
        active &= ~(residual <= problem.inner.tolerance)  # not finite: goes on, and fails
        phi, state = _tree.select(active, phi, at.phi), _tree.select(active, state, at.state)
    failed = tf.where((at.failed_step < 0) & ~tf.math.is_finite(loss), step, at.failed_step)
    taken = at.taken + tf.cast(active, tf.int32)
    return Position(phi, slots, state, active, taken, residual, failed), u


def path_to(problem: Any, at: Position) -> Path:
    """Return the path that ends here, with nothing recorded."""
    return Path(at.phi, at.state, [], [], [], [], None, [], at.taken, at.residual, _failed_step(problem, at))


def _failed_step(problem: Any, at: Position) -> tf.Tensor:
    """Return `Path.failed_step`; a weight that is not finite stays so, and a layer such as ReLU may hide it."""
    lost = (at.failed_step < 0) & ~_tree.all_finite(at.phi, problem.stacked, problem.execution.jit_compile)
    return tf.where(lost, problem.steps, at.failed_step)


def adapt(
    problem: Any, keep: int = 0, perturbation: tf.Tensor | None = None, stacked: bool = True,
    parts: Linearization | None = None,
) -> Path:  # fmt: skip
    """Run the K inner steps, recording the last `keep` iterates, stacked or `Recorded`; see `Problem.adapt`."""
    first, at = problem.steps - keep, start(problem)
    before = {"directions": at.phi} if problem.learns_rates else {}
    at, recorded = _run(problem, at, range(first), before, perturbation)
    wanted = {"iterates": at.phi, "states": at.state}
    if problem.inner.turns:
        wanted |= {"gradients": at.phi, "slots": at.slots}
    elif parts and problem.learns_rates:
        wanted |= {"gradients": at.phi}
    if parts:
        wanted |= {"activations": parts.activations}
    at, kept = _run(problem, at, range(first, problem.steps), wanted, perturbation, stacked, parts)
    stored = Stored(parts, kept.pop("activations")) if parts else None
    residual = _final_residual(problem, at, perturbation)
    return path_to(problem, at)._replace(**recorded, **kept, stored=stored, residual=residual)


def _norm(problem: Any, gradient: Params) -> tf.Tensor:
    return tf.sqrt(_tree.dot(gradient, gradient, problem.stacked))


def _final_residual(problem: Any, at: Position, perturbation: tf.Tensor | None) -> tf.Tensor:
    """Return |G| at phi^K; where a tolerance stopped a task it is known."""

    def look():
        return _norm(problem, inner_gradient(problem, at.phi, at.state, perturbation)[0])

    if problem.inner.tolerance:
        looked = tf.cond(tf.reduce_any(at.active), look, lambda: at.residual)
        return tf.where(at.active, looked, at.residual)
    return look() if problem.measured else at.residual


def _run(
    problem: Any, at: Position, steps: range, wanted: dict[str, Any], perturbation: tf.Tensor | None,
    stacked: bool = True, parts: Linearization | None = None,
):  # fmt: skip
    """Run the given steps; return the position, and what was recorded, stacked over the steps or not.

    `wanted` has tensors like those to record, by the names of `Path`, and activations, which are never stacked. A loop
    that records nothing ends as soon as every task has reached the tolerance.
    """
    if not steps:
        return at, {}
    arrays = tf.nest.map_structure(lambda t: tf.TensorArray(t.dtype, len(steps), element_shape=t.shape), wanted)

    def going(step, at, arrays):
        return tf.reduce_any(at.active)

    def body(step, at, arrays):
        with tf.name_scope("inner_step"):
            at, found = step_from(problem, at, step, perturbation, parts)
            arrays = {
                name: [a.write(step - steps.start, t) for a, t in zip(own, found[name], strict=True)]
                for name, own in arrays.items()
            }
        return step + 1, at, arrays

    first = tf.constant(steps.start)
    if problem.awaited:  # for XLA, by the counter: a copy of the weights would be held while the loop runs
        first += tf.cast(_tree.after(problem.awaited, [tf.zeros([], at.phi[0].dtype)])[0], first.dtype)
    ends_early = problem.inner.tolerance and not wanted
    with tf.control_dependencies(problem.awaited):
        _, at, arrays = repeated(len(steps), body, (first, at, arrays), going if ends_early else None)
    return at, {
        name: [a.stack() if stacked and name != "activations" else Recorded(a) for a in own]
        for name, own in arrays.items()
    }
