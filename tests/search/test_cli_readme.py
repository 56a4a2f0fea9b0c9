"""The worked example of README.md is run as a stranger would run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from search.cli import main
from search.config import make_config
from search.task import load_task

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    blocks = re.findall(
        r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 1
    file = tmp_path / "my_task.py"
    file.write_text(blocks[0], encoding="utf-8")
    return file


def test_the_example_task_loads_and_is_trained(example: Path) -> None:
    config = make_config({"target": "local", "task": f"{example}:make_task"})
    task = load_task(config.task_spec())
    outputs = task.network(task.validation.inputs[0])
    value = task.metric.value(task.metric.score((outputs,), task.validation.targets))
    assert task.name == "my-digits"
    assert value > 0.9
    assert task.test is not None
    assert task.loss is not None


def test_commands_and_flags_that_it_names_exist(capsys: pytest.CaptureFixture[str]) -> None:
    text = README.read_text(encoding="utf-8")
    assert main(["--help"]) == 0
    known = capsys.readouterr().out
    for command in set(re.findall(r"^ {4}search ([a-z]+)", text, re.MULTILINE)):
        assert main([command, "--help"]) == 0
        known += capsys.readouterr().out
    elsewhere = {"--all", "--bind", "--address", "--resources"}  # of others
    searching = re.sub(r"`scripts/(bench|fit|roundtrip)[^`]*`", "", text)  # these have flags of their own
    flags = set(re.findall(r"--[a-z][a-z-]+", searching)) - elsewhere
    assert len(flags) > 15
    assert {flag for flag in flags if flag not in known} == set()
