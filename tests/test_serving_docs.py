"""docs/serving.md runs as it stands, and its request bodies fit the signatures."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from test_serving import SIGNATURES

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    """What the Python blocks leave, run one after the other in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("docs"))
        names = {}
        for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL):
            exec(compile(code, str(DOCS), "exec"), names)  # noqa: S102
        return names | {"export_folder": pathlib.Path.cwd() / "runs/my_sinusoid/1"}


def bodies():
    """Return the request bodies that curl sends, and those that jq makes of an answer."""
    (shell,) = re.findall(r"```sh\n(.*?)```", DOCS.read_text(), re.DOTALL)
    sent = [json.loads(body) for body in re.findall(r"-d '(.*?)'", shell)]
    made = re.findall(r"jq '(.*?)'", shell)
    made = [re.sub(r"(\w+):", r'"\1":', text).replace(".outputs", '".outputs"') for text in made]
    return sent, [json.loads(text) for text in made]


def ask(served, body, outputs=None):
    """Answer a REST body as the server does: tensors of the signature's types, checked names, one output unnamed."""
    signature = served[body["signature_name"]]
    specs = signature.structured_input_signature[1]
    assert body["inputs"].keys() == specs.keys()
    values = {name: outputs if value == ".outputs" else value for name, value in body["inputs"].items()}
    (answer,) = signature(**{name: tf.constant(values[name], spec.dtype) for name, spec in specs.items()}).values()
    return answer.numpy().tolist()


def test_every_signature_has_a_body_that_it_can_answer(documented):
    served = documented["served"]
    sent, made = bodies()
    answers = {body["signature_name"]: ask(served, body) for body in sent}
    for body in made:
        name = body["signature_name"]
        answers[name] = ask(served, body, answers[name.replace("predict_adapted", "adapt")])
    assert answers.keys() == SIGNATURES
    np.testing.assert_allclose(answers["predict_adapted"], answers["adapt_and_predict"], atol=1e-6)
    np.testing.assert_allclose(answers["predict_adapted_batch"], answers["adapt_and_predict_batch"], atol=1e-6)
    np.testing.assert_allclose(documented["predictions"], answers["adapt_and_predict"], atol=1e-6)


def test_targets_and_divergence_are_checked(documented):
    """As the page says of targets that are numbers."""
    adapt, x = documented["served"]["adapt"], tf.constant([[0.5], [1.0]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="`support_y` must be finite"):
        adapt(support_x=x, support_y=tf.constant([[1.0], [np.nan]]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="Adaptation diverged"):
        adapt(support_x=1e18 * x, support_y=1e18 * x)


def test_command_line_example_runs(documented):
    """As it stands, but for the folders."""
    (text,) = re.findall(r"(\.venv/bin/saved_model_cli run .*(?:\n {8}.*)*)", DOCS.read_text())
    command = shlex.split(text.replace("\\\n", " "))
    folder = documented["export_folder"]
    command[0] = str(pathlib.Path(sys.executable).with_name("saved_model_cli"))
    command[command.index("--dir") + 1] = str(folder)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Result for output key predictions" in done.stdout


def test_messages_are_those_of_the_checks():
    source = (DOCS.parents[1] / "tf_metagrad" / "_request_checks.py").read_text()
    rows = re.search(r"\| request \| message \|\n\|.*?\n(.*?)\n\n", DOCS.read_text(), re.DOTALL)[1]
    ours = [row for row in rows.splitlines() if "another shape" not in row]  # that message is TensorFlow's
    for row in ours:
        message = re.search(r"\| `+ ?(.*?) ?`+(?:,.*)? \|$", row)[1]
        words = max(re.split(r"`[^`]*`|\d+", message), key=len).strip()
        assert len(words) > 9 and words in source, row
