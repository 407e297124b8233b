"""The layout holds: imports go one way, public names are documented, every dataset has its tests."""

import ast
import inspect
import pathlib

import pytest

import tf_metagrad as mg

PACKAGE = pathlib.Path(mg.__file__).parent
ORDER = [
    "_versions", "_types", "_loop", "_tree", "_masks", "_ends", "_second_order", "_user_derivatives", "_attention",
    "_batch_norm", "_bias", "_products", "_vectorize", "_pfor", "_max_pool", "_forward_rules", "_short_products",
    "_graphs", "_hvp", "_linearization", "_model", "_execution", "_features", "_frozen", "_task_functions",
    "_set_loss", "_losses", "_linear_solve", "inner", "_inner_objective", "_curvature", "_inner_loop", "_problem",
    "_transposed_loop", "_runner", "estimators", "_checks", "_batches", "_task_model", "_diagnostics", "_cluster",
    "_distribution", "_threads", "evaluation", "_shared_update", "_meta_update", "_adaptive_model", "learner",
    "_checkpoints", "_memory", "_tensorboard", "_epochs", "_run_checks", "training", "_request_checks", "_signatures",
    "_model_card", "_folders", "export", "_measure", "_table", "comparison", "recommendation",
]  # fmt: skip
FREE = {"bounds", "data", "models", "optimizers"}  # these import no part of the library but _types


def imported(path: pathlib.Path) -> set[str]:
    """Return the rooms of the package that a file imports."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tf_metagrad":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return rooms


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if room == "__init__":
        return
    if room in FREE:
        assert imported(path) <= {room, "_types"}
        return
    allowed = set(ORDER[: ORDER.index(room) + 1]) | (FREE if room in ("training", "export", "comparison") else set())
    own = {room} if (PACKAGE / room).is_dir() else set()
    assert imported(path) <= (allowed - {room}) | own


@pytest.mark.parametrize("name", [name for name in mg.data.__all__ if name != "from_arrays"])
def test_every_dataset_has_its_tests(name):
    assert (PACKAGE.parent / "tests" / "data" / f"test_{name}.py").exists(), f"{name} has no tests/data/test_{name}.py"


@pytest.mark.parametrize(
    "module",
    [mg, mg.bounds, mg.data, mg.estimators, mg.models, mg.inner, mg.optimizers],
    ids=lambda m: m.__name__,
)
def test_public_names_are_documented(module):
    for name in getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]):
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value) and value.__module__.startswith("tf_metagrad"):
            assert inspect.getdoc(value), name
