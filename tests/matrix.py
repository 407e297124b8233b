"""Run quick tests on every supported Python that is installed, with the oldest and the newest supported packages.

  python tests/matrix.py                            all that are found
  python tests/matrix.py --python 3.10 --end oldest one of them
  python tests/matrix.py --tests tests/test_inner.py  other tests

Each gets an environment of its own in .matrix/, which is removed afterwards; what was run is appended to
.matrix/results.md, a table. The exit status is 1 where any of them failed, 2 where no interpreter was found.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORK = ROOT / ".matrix"
MINORS = range(10, 14)
TESTS = [
    "tests/test_versions.py", "tests/test_layout.py", "tests/test_checks.py", "tests/test_linear_solve.py",
    "tests/test_export.py", "tests/test_hostile.py", "tests/test_second_order.py", "tests/test_batch_norm.py",
    "tests/test_batches.py", "tests/test_evaluation.py", "tests/data/test_episodes.py",
    "tests/data/test_sinusoid.py", "tests/data/test_mini_imagenet.py", "tests/data/test_mini_imagenet_hostile.py",
    "tests/data/test_pickles.py", "tests/data/test_mini_imagenet_errors.py", "tests/data/test_tiered_imagenet.py",
    "tests/data/test_cifar_fs.py", "tests/data/test_from_folder.py", "tests/data/test_from_tfds.py",
    "--deselect=tests/test_second_order.py::test_hvp_equals_central_differences[LSTM]",
    "--deselect=tests/test_second_order.py::test_hvp_equals_central_differences[GRU]",
]  # fmt: skip
SHOWN = "import tensorflow, keras, numpy; print(tensorflow.__version__, keras.__version__, numpy.__version__)"


def interpreters() -> dict[str, str]:
    """Return {"3.10": path} of what is on PATH or, where pyenv is used, among its versions."""
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT") or pathlib.Path.home() / ".pyenv") / "versions"
    found = {}
    for minor in MINORS:
        version = f"3.{minor}"
        own = sorted(pyenv.glob(f"{version}.*/bin/python"), key=lambda path: release(path.parents[1].name))
        for candidate in [shutil.which(f"python{version}"), *map(str, reversed(own))]:
            if candidate and version_of(candidate) == version:  # a shim may be there without its interpreter
                found[version] = candidate
                break
    return found


def release(name: str) -> list[int]:
    """Return the numbers in a name such as 3.10.13."""
    return [int(number) for number in re.findall(r"\d+", name)]


def version_of(python: str) -> str | None:
    """Return what the interpreter says it is."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def requirements(end: str) -> list[str]:
    """Return pip's arguments for an end of the range: the pins, with those of requirements-oldest.txt put in place."""
    newest = ["-r", str(ROOT / "requirements-test.txt")]
    if end == "newest":
        return newest
    old = [line for line in (ROOT / "requirements-oldest.txt").read_text().splitlines() if line and line[0] != "#"]
    named = {re.split("[=<>]", line)[0] for line in old}
    pins = []
    for name in ("requirements.txt", "requirements-test.txt"):
        lines = (ROOT / name).read_text().splitlines()
        pins += [line for line in lines if line and line[0] not in "#-" and line.split("==")[0] not in named]
    path = WORK / "oldest.txt"
    path.write_text("\n".join(old + pins) + "\n")
    return ["-r", str(path)]


def run(python: str, version: str, end: str, tests: list[str]) -> dict[str, str]:
    """Make the environment, import the library, run the tests, remove the environment; return a row of the table."""
    folder = WORK / f"python{version}-{end}"
    shutil.rmtree(folder, ignore_errors=True)
    inside = str(folder / "bin" / "python")
    log = WORK / f"python{version}-{end}.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    row = {"Python": version, "end": end, "TensorFlow, Keras, NumPy": "-", "result": "not installed"}
    started = time.time()
    try:
        with log.open("w") as out:
            to_log = {"stdout": out, "stderr": subprocess.STDOUT, "cwd": ROOT, "env": environment}
            pip = [inside, "-m", "pip", "install", "--quiet"]
            subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True, **to_log)
            subprocess.run([*pip, "--upgrade", "pip", "setuptools", "wheel"], check=True, **to_log)
            subprocess.run([*pip, "--no-build-isolation", *requirements(end)], check=True, **to_log)
            shown = subprocess.run([inside, "-c", SHOWN], capture_output=True, text=True, env=environment)
            row["TensorFlow, Keras, NumPy"] = ", ".join(shown.stdout.split())
            row["install"], started = f"{time.time() - started:.0f} s", time.time()
            row["result"] = "the import fails"
            subprocess.run([inside, "-c", "import tf_metagrad"], check=True, **to_log)
            pytest = [inside, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-q", *tests]
            subprocess.run(pytest, **to_log)
        row["result"] = "no summary"
        for line in log.read_text(errors="replace").splitlines():
            if re.search(r"\d+ (passed|failed|errors?)\b.* in [\d.]+s", line):
                row["result"] = line.strip("= ")
    except subprocess.CalledProcessError:
        print("\n".join(log.read_text().splitlines()[-15:]), file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    row["tests"] = f"{time.time() - started:.0f} s"
    return row


def main() -> int:
    """Run all that was asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", help="a version such as 3.10; more than once [all found]")
    parser.add_argument("--end", action="append", choices=("oldest", "newest"), help="end of the range [both]")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="what pytest is given [quick tests]")
    asked = parser.parse_args()
    found = {version: path for version, path in interpreters().items() if version in (asked.python or [version])}
    if not found:
        print("No Python from 3.10 to 3.13 was found on PATH or in pyenv. Install one.", file=sys.stderr)
        return 2
    WORK.mkdir(exist_ok=True)
    columns = ["Python", "end", "TensorFlow, Keras, NumPy", "result", "install", "tests"]
    table, good = WORK / "results.md", True
    if not table.exists():
        table.write_text(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n")
    for version, python in found.items():
        for end in asked.end or ("oldest", "newest"):
            print(f"Python {version}, {end} packages ...", flush=True)
            row = run(python, version, end, asked.tests)
            line = f"| {' | '.join(row.get(column, '-') for column in columns)} |"
            print(line, flush=True)
            with table.open("a") as file:
                file.write(line + "\n")
            good &= " passed" in row["result"] and "failed" not in row["result"] and "error" not in row["result"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
