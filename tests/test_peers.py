"""`benchmarks/peers`: all libraries are given the same problem, and what is printed is what was measured."""

import importlib
import importlib.util
import pathlib

import numpy as np
import pytest
from references import relative_error

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
VARIANTS = {"torch": ["create_graph, by task", "float64"], "jax": ["mixed, scan, tasks map"]}


@pytest.fixture(scope="module")
def peers():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        names = ("workloads", "ours", "driver", "report")
        yield {name: importlib.import_module(f"peers.{name}") for name in names}


def written(peers, folder, name):
    """Return a small workload and the file of its arrays."""
    work = peers["workloads"].workload(name, small=True)
    peers["workloads"].write(work, folder / "arrays.npz")
    return work, folder / "arrays.npz"


def our_gradient(peers, work, path):
    runs, vector = peers["ours"].prepare(work, path, double=False)
    return vector(runs["as chosen"]())


def mlp_step(weights, x, y):
    """Return the mean squared error of a ReLU net, and its gradient, in NumPy."""
    inputs, (*hidden, head) = [x], list(zip(weights[::2], weights[1::2], strict=True))
    for kernel, bias in hidden:
        inputs.append(np.maximum(inputs[-1] @ kernel + bias, 0))
    error = inputs[-1] @ head[0] + head[1] - y
    gradients, back = [], 2 * error / error.size
    for i in reversed(range(len(inputs))):
        gradients = [inputs[i].T @ back, back.sum(0), *gradients]
        back = back @ weights[2 * i].T * (inputs[i] > 0)
    return np.mean(error**2), gradients


def test_ours_is_the_derivative_of_the_query_loss_after_adaptation(peers, tmp_path):
    work, path = written(peers, tmp_path, "sinusoid")
    tasks, weights = peers["workloads"].read(path)
    theta = [w.astype("float64") for w in weights.values()]
    rng = np.random.default_rng(1)
    direction = [rng.normal(size=w.shape) for w in theta]

    def objective(t):
        losses = []
        for sx, sy, qx, qy in zip(*tasks.values(), strict=True):
            phi = [w + t * d for w, d in zip(theta, direction, strict=True)]
            for _ in range(work.steps):
                phi = [p - work.rate * g for p, g in zip(phi, mlp_step(phi, sx, sy)[1], strict=True)]
            losses.append(mlp_step(phi, qx, qy)[0])
        return np.mean(losses)

    gradient, loss = our_gradient(peers, work, path)
    expected = (objective(1e-6) - objective(-1e-6)) / 2e-6
    assert loss == pytest.approx(objective(0.0), rel=1e-5)
    assert gradient @ np.concatenate([d.ravel() for d in direction]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow  # half a minute
@pytest.mark.parametrize("name", ["omniglot", "transformer"])
@pytest.mark.parametrize("library", VARIANTS)
def test_peers_agree(peers, tmp_path, library, name):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    work, path = written(peers, tmp_path, name)
    gradient, loss = our_gradient(peers, work, path)
    with peers["driver"].Worker(library, name, path, "--small") as worker:
        for variant in VARIANTS[library]:
            theirs, their_loss = worker.gradient(variant, tmp_path / "gradient.npz")
            assert relative_error([gradient], [theirs]) < 1e-4
            assert loss == pytest.approx(their_loss, rel=1e-5)


def test_times_of_one_run_are_never_beside_those_of_another(peers, tmp_path):
    report, steps = peers["report"], ("median", "least", "rounds")
    old = [report.Row("a", "ours", "as chosen", 2.0, first=1.0), report.Row("a", "jax", "x", 1.0, first=0.5),
           report.Row("b", "jax", "x", 3.0)]  # fmt: skip
    report.write(report.merge(old, [report.Row("a", "ours", "as chosen", 0.25)], steps), tmp_path / "rows.csv")
    rows = {row.key: (row.median, row.first) for row in report.read(tmp_path / "rows.csv")}
    assert rows == {
        ("a", "ours", "as chosen"): (0.25, 1.0), ("a", "jax", "x"): (None, 0.5), ("b", "jax", "x"): (3.0, None)
    }  # fmt: skip


def test_summary_compares_with_the_best_peer_and_leaves_the_reference_out(peers):
    report = peers["report"]
    rows = [report.Row("a", "ours", "as chosen", 0.5, first=2.0), report.Row("a", "ours", "map", 0.1, first=0.1),
            report.Row("a", "torch", "x", 0.8, first=0.01), report.Row("a", "torch", "float64", 0.2),
            report.Row("a", "jax", "x", 1.0, first=4.0), report.Row("a", "jax", "y", 2.0, first=1.0)]  # fmt: skip
    expected = "| a | 500 ms | 800 ms | 1000 ms | 0.62 | 2.00 s | 1.00 s | 2.00 |"
    assert report.summary(rows).splitlines()[-1] == expected
