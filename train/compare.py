"""Compare meta-gradient estimators on a task, before any training, and name the cheapest inside a budget.

  python train/compare.py                                              MNIST-1D, the library's choice of estimators
  python train/compare.py --estimators="MAML; FOMAML; BinomMAML(1)"    these
  python train/compare.py --task=sinusoid --max_error=0.05             regression of sine waves, a stricter budget
  python train/compare.py --inner_steps=20 --estimators='MAML; MAML("unrolled")' --max_memory=50

It prints a table and a recommendation; the output folder holds comparison.csv, comparison.json and comparison.png.
Where no estimator fits the budget, it says which one comes nearest and exits with status 1. Most of the time goes into
compilation. A flag left out takes the default of its task, in brackets: [mnist1d, sinusoid, omniglot, mini_imagenet,
tiered_imagenet, cifar_fs, fc100].
"""

import contextlib
import csv
import io
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import settings
from absl import app, flags

import train

COMPARISON = "Comparison"
GROUPS = settings.TASK, settings.ADAPTATION, COMPARISON, settings.FILES

flags.DEFINE_string(
    "estimators",
    None,
    'Separated by semicolons, such as "MAML; TruncMAML(1)" [those that fit].',
    module_name=COMPARISON,
)
flags.DEFINE_string("reference", "MAML", "What counts as exact.", module_name=COMPARISON)
flags.DEFINE_integer("batches", 8, "Batches of --meta_batch tasks.", 1, module_name=COMPARISON)
flags.DEFINE_integer("repeats", 10, "Timed steps of each estimator.", 1, module_name=COMPARISON)
flags.DEFINE_float("max_error", 0.1, "Budget: relative error of the mean estimate.", 0, module_name=COMPARISON)
flags.DEFINE_float("max_memory", None, "Budget: peak memory of a step, in MiB.", 0, module_name=COMPARISON)
flags.DEFINE_float("max_bias_to_noise", None, "Budget: bias over the noise of one batch.", 0, module_name=COMPARISON)


def read() -> tuple[dict, dict, dict]:
    """Return the settings of the learner and its tasks, the options of FILES, and what was asked of the comparison.

    Raises:
        ValueError: flags of training, or that do not go together.
    """
    for group in (settings.TRAINING, settings.RUN):
        for flag in flags.FLAGS.get_flags_for_module(group):
            if flag.present:
                raise ValueError(f"--{flag.name} means nothing to compare.py, which does not train. Leave it out.")
    return *settings.read(), {flag.name: flag.value for flag in flags.FLAGS.get_flags_for_module(COMPARISON)}


def parse_estimators(text: str | None) -> list | None:
    """Return the estimators of a list with semicolons; None where there is no list."""
    from tf_metagrad.estimators import parse

    try:
        return None if text is None else [parse(part) for part in text.split(";") if part.strip()]
    except ValueError as error:
        raise ValueError(f"{error} Several are written with semicolons between them.") from error


def run(configuration: dict[str, Any], options: dict[str, Any], asked: dict[str, Any]) -> None:
    """Compare, save, print, recommend."""
    pipeline = train.load()

    import tf_metagrad as mg

    reference = mg.estimators.parse(asked["reference"])
    estimators = parse_estimators(asked["estimators"])
    learner = pipeline.make_learner(configuration, reference)
    for estimator in estimators or ():
        learner.check_estimator(estimator)
    tasks = pipeline.stream("train", configuration, options)
    output = pathlib.Path(options["output"] or f"runs/compare-{configuration['task']}")
    with output_folder(output):
        print(f"Comparing estimators on {configuration['task']}. Output: {output}", flush=True)
        sizes = {name: asked[name] for name in ("batches", "repeats")}
        comparison = mg.compare_estimators(learner, tasks, estimators, reference, seed=configuration["seed"], **sizes)
        print(f"\n{comparison}\n", flush=True)
        save(output, comparison, configuration | asked)
    budgets = {name: asked[name] for name in ("max_error", "max_memory", "max_bias_to_noise")}
    print(f"Recommended: {mg.recommend(comparison, **budgets)}")


@contextlib.contextmanager
def output_folder(path: pathlib.Path) -> Iterator[None]:
    """Make the folder where it is not there; where nothing gets into it, it goes again."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"The output folder {str(path)!r} cannot be made: {error.strerror}. Choose another --output."
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            path.rmdir()


def save(output: pathlib.Path, comparison: Any, configuration: dict[str, Any]) -> None:
    """Write comparison.csv, comparison.json and comparison.png."""
    import run_folder

    columns = comparison.to_dict()
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    run_folder.write_whole(output / "comparison.csv", table.getvalue())
    run_folder.write_json(output / "comparison.json", {"settings": configuration, "columns": columns})
    comparison.plot(output / "comparison.png")


def main(argv: list[str]) -> None:
    """Run what the flags say; bad input ends in one sentence and exit status 1."""
    if len(argv) > 1:
        sys.exit(f"compare.py takes flags only. Received: {' '.join(argv[1:])}. See --help.")
    try:
        run(*read())
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        sys.exit(f"compare.py: {error}")
    except KeyboardInterrupt:
        sys.exit("compare.py: interrupted.")


if __name__ == "__main__":
    app.run(main, flags_parser=lambda argv: settings.parse(argv, __doc__, GROUPS))
