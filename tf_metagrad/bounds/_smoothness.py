"""The alpha H of a learner's tasks: extreme eigenvalues of the support Hessians along the inner loop, by Lanczos.

Lanczos, with every new vector made orthogonal to all before it: from q_1, for j = 1, 2, ...

    w = H q_j;  a_j = <q_j, w>;  w <- w - sum_i <q_i, w> q_i (twice);  b_j = |w|;  q_{j+1} = w / b_j.

The extreme eigenvalues of the tridiagonal matrix of a and b approach those of H from inside. Where b_j vanishes, the
vectors found span an invariant subspace; the next is a random one, orthogonal to them, and b_j = 0. So as many
iterations as weights give the whole spectrum. The memory is `iterations` times the weights that adapt.

This file is given a learner and imports none, so that `mg.bounds` stays free of the rest of the library.
"""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_metagrad._types import Task


class Smoothness(NamedTuple):
    """Extreme eigenvalues of the support Hessians H^k of the weights that adapt, at phi^0 .. phi^{K-1}.

    Attributes:
        H: the largest absolute eigenvalue.
        h: the smallest eigenvalue; the support losses are convex along the inner loop if it is not negative.
        alpha_H: the largest inner learning rate times H.
        residual: each extreme eigenvalue found is within `residual` of an exact one; where it is not small against H,
            raise `iterations`.
        extremes: `[tasks, steps, 2]`, the smallest and the largest eigenvalue of each task at each step.
    """

    H: float
    h: float
    alpha_H: float
    residual: float
    extremes: np.ndarray


def estimate_smoothness(learner: Any, tasks: Task, iterations: int = 20, seed: int = 0) -> Smoothness:
    """Measure H and h of the theorems behind `smooth`, `convex` and `strongly_convex`, on a batch of tasks.

    One task at a time; the cost is about `iterations` HVPs for each task and inner step. Found by Lanczos, H is a lower
    and h an upper estimate until `residual` is small. Where some layers are shared by all tasks (`adapt=[...]`), H is
    that of the others, and the theorems speak of their part of the meta-gradient. The theorems are for plain gradient
    descent at one rate.

    Args:
        learner: a `MetaLearner`; nothing of it changes.
        tasks: a `Task` whose parts have a leading axis of tasks.
        iterations: Lanczos steps; above the number of adapting weights, that number is used.
        seed: the starting vectors, and the randomness of layers such as Dropout, are a function of it.

    Returns:
        `Smoothness`, the extremes over all tasks and inner steps.

    Raises:
        ValueError: `iterations` is not a whole number of at least 1, or as for `MetaLearner.meta_gradient`.

    Example:
        The loss (2 w - 1)^2 has the second derivative 8.

        >>> import keras, tf_metagrad as mg
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> learner = mg.MetaLearner(model, "mse", mg.inner.GradientDescent(steps=3, learning_rate=0.01))
        >>> tasks = mg.Task(*tf.constant([[[[2.0]]], [[[1.0]]], [[[2.0]]], [[[1.0]]]]))
        >>> print(f"{mg.bounds.estimate_smoothness(learner, tasks).alpha_H:.3f}")
        0.080
    """
    if not isinstance(iterations, int | np.integer) or isinstance(iterations, bool) or iterations < 1:
        raise ValueError(f"`iterations` must be a whole number of at least 1. Received: iterations={iterations!r}.")
    tasks = learner.check_tasks(tasks)
    one_by_one = learner.execution._replace(tasks="map")

    def run(tasks, seed):
        return learner.run_tasks(lambda problem: ([], _along_path(problem, iterations, seed)), tasks, seed,
                                 execution=one_by_one)[1]  # fmt: skip

    function = learner.compiled_function("smoothness", (learner.inner, int(iterations)), run)
    diagonal, off_diagonal = (t.numpy().astype(np.float64) for t in function(tasks, tf.constant(seed, tf.int64)))
    extremes, residual = _extremes(diagonal, off_diagonal)
    learned = [] if learner.inner.proximal else learner.hyperparameters  # a proximal weight is no rate
    rates = [np.abs(rate.numpy()).max() for rate in learned] or [learner.inner.learning_rate]
    largest = float(np.abs(extremes).max())
    return Smoothness(largest, float(extremes.min()), float(max(rates)) * largest, residual, extremes)


def _along_path(problem: Any, iterations: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return Lanczos' a and b at each inner step of one task, both `[steps, n]`."""
    path = problem.adapt(keep=problem.steps)
    shapes = [phi.shape[1:] for phi in path.iterates]
    sizes = [shape.num_elements() for shape in shapes]

    def at_step(elements):
        phi, state, step = elements

        def product(vector):
            parts = [tf.reshape(part, s) for part, s in zip(tf.split(vector, sizes), shapes, strict=True)]
            hvp = problem.adapting(problem.hessian_product(phi, state, parts)[1])
            return tf.concat([tf.reshape(h, [-1]) for h in hvp], axis=0)

        count = min(iterations, sum(sizes))
        shape = [count, sum(sizes)]
        start = tf.random.stateless_normal(shape, tf.stack([seed, step]), dtype=phi[0].dtype, alg="philox")
        return _lanczos(product, start)

    elements = (path.iterates, path.states, tf.range(problem.steps, dtype=tf.int64))
    dtype = path.iterates[0].dtype
    return tf.map_fn(at_step, elements, fn_output_signature=(dtype, dtype), parallel_iterations=1)


def _lanczos(product, start: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return a_1 .. a_n and b_1 .. b_n of the matrix behind `product`; `start` is n random vectors `[n, weights]`."""
    count, dtype = start.shape[0], start.dtype
    tiny = tf.constant(100 * np.finfo(dtype.as_numpy_dtype).eps, dtype)

    def orthogonal(vector, basis):
        for _ in range(2):
            vector -= tf.linalg.matvec(basis, tf.linalg.matvec(basis, vector), transpose_a=True)
        return vector

    def body(j, basis, vector, scale, a, b):
        basis = tf.tensor_scatter_nd_update(basis, [[j]], [vector])
        image = product(vector)
        diagonal = tf.tensordot(vector, image, 1)
        scale = tf.maximum(scale, tf.norm(image))
        rest = orthogonal(image, basis)
        length = tf.norm(rest)
        exhausted = length <= tiny * scale
        rest = tf.where(exhausted, orthogonal(start[tf.minimum(j + 1, count - 1)], basis), rest)
        vector = tf.math.divide_no_nan(rest, tf.norm(rest))
        return j + 1, basis, vector, scale, a.write(j, diagonal), b.write(j, tf.where(exhausted, 0 * length, length))

    arrays = [tf.TensorArray(dtype, count, element_shape=[]) for _ in range(2)]
    first = start[0] / tf.norm(start[0])
    initial = (0, tf.zeros_like(start), first, tf.zeros([], dtype), *arrays)
    *_, a, b = tf.while_loop(lambda j, *_: j < count, body, initial, maximum_iterations=count, parallel_iterations=1)
    return a.stack(), b.stack()


def _extremes(diagonal: np.ndarray, off_diagonal: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the extreme eigenvalues `[..., 2]` of tridiagonal matrices, and b_n |last entry of their vectors|."""
    count = diagonal.shape[-1]
    matrices = np.zeros((*diagonal.shape, count))
    index = np.arange(count)
    matrices[..., index, index] = diagonal
    matrices[..., index[1:], index[:-1]] = off_diagonal[..., :-1]  # eigh reads the lower triangle
    values, vectors = np.linalg.eigh(matrices)
    residuals = np.abs(vectors[..., -1, :]) * off_diagonal[..., -1:]
    return values[..., [0, -1]], float(residuals[..., [0, -1]].max())
