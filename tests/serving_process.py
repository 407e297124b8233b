"""Run by test_serving.py without tf_metagrad: what SavedModels answer to good, bad and mixed requests."""

import concurrent.futures
import contextlib
import io
import json
import pathlib
import sys

import numpy as np
import tensorflow as tf

SINGLE = ("adapt_and_predict", "adapt", "predict_adapted", "predict")
BATCH = ("adapt_and_predict_batch", "adapt_batch", "predict_adapted_batch")


def ask(served, name, inputs):
    """Return the one output of a signature, which takes what it knows of the inputs."""
    known = served[name].structured_input_signature[1]
    outputs = served[name](**{key: tf.constant(inputs[key]) for key in known})
    return next(iter(outputs.values())).numpy()


def one_task(batch, index):
    return {name: value[index] for name, value in batch.items()}


def answers(served, batch, with_batch):
    """Return what every signature answers to a batch of tasks, single ones asked once for each task."""
    tasks = [one_task(batch, i) for i in range(len(batch["support_x"]))]
    for task in tasks:
        task["weights"] = ask(served, "adapt", task)
    found = {name: np.stack([ask(served, name, task) for task in tasks]) for name in SINGLE}
    if with_batch:  # one function adapts for all signatures, so two models tell enough
        batch = {**batch, "weights": ask(served, "adapt_batch", batch)}
        found |= {name: ask(served, name, batch) for name in BATCH}
    return found


def refusals(served, cases):
    """Return the error message of every bad request, or "" where it got an answer."""
    messages = {}
    for case, (name, inputs) in cases.items():
        try:
            ask(served, name, inputs)
            messages[case] = ""
        except tf.errors.InvalidArgumentError as error:
            messages[case] = str(error)
    return messages


def concurrent_requests(served, clients, count=1000, threads=8):
    """Return how far answers to mixed requests of several threads are from those to the same requests one by one."""
    requests = [(n, c) for c in clients for n in BATCH] + [(n, one_task(c, 0)) for c in clients for n in SINGLE]
    alone = [ask(served, *request) for request in requests]
    assert all(len({a.tobytes() for a in alone[i :: len(BATCH)]}) > 1 for i in range(len(BATCH)))
    order = np.random.default_rng(0).integers(len(requests), size=count)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        together = list(pool.map(lambda i: ask(served, *requests[i]), order))
    return [float(np.abs(a - alone[i]).max()) for i, a in zip(order, together, strict=True)]


def command_line(commands):
    """Return (printed, error) of `saved_model_cli` for each list of arguments."""
    from tensorflow.python.tools import saved_model_cli

    results = []
    for arguments in commands:
        sys.argv, printed, error = ["saved_model_cli", *arguments], io.StringIO(), ""
        with contextlib.redirect_stdout(printed):
            try:
                saved_model_cli.main()
            except SystemExit as stop:
                error = str(stop.code or "")
            except tf.errors.InvalidArgumentError as raised:
                error = str(raised)
        results.append((printed.getvalue(), error))
    return results


def load_arrays(folder):
    return {path.stem: dict(np.load(path)) for path in sorted(folder.glob("*.npz"))}


def main(kind, root):
    root = pathlib.Path(root)
    if kind == "command_line":
        results = command_line(json.loads((root / "commands.json").read_text()))
        (root / "printed.json").write_text(json.dumps(results))
        return
    for folder in (root / "models").iterdir():
        served = tf.saved_model.load(str(folder / "1")).signatures
        tasks, with_batch = dict(np.load(folder / "tasks.npz")), folder.name in ("batch", "tolerance")
        np.savez(folder / "answers.npz", **answers(served, tasks, with_batch))
    served = tf.saved_model.load(str(root / "models" / "batch" / "1")).signatures
    cases = {key: (key.split("--")[0], inputs) for key, inputs in load_arrays(root / "bad").items()}
    clients = list(load_arrays(root / "clients").values())
    for client in clients:
        client["weights"] = ask(served, "adapt_batch", client)
    found = {"refusals": refusals(served, cases), "differences": concurrent_requests(served, clients)}
    (root / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
    assert all(sys.modules[name] is None for name in ("keras", "tf_keras", "tf_metagrad"))
