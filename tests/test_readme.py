"""The code in the README runs as it stands."""

import pathlib
import re

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) <= 15
    exec(compile(code, str(README), "exec"), {})  # noqa: S102
    assert "(100 tasks)" in capsys.readouterr().out
    assert (tmp_path / "runs/my_sinusoid/saved_model.pb").exists()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
