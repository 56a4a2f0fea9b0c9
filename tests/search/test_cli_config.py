from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from search.config import ONE_CALL, RunConfig, config_schema, load_config, make_config
from search.errors import InputError, ResumeError, UsageError


def test_flags_over_sets_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("target: raspberry-pi\nseed: 1\nevaluations: 10\nmax-latency: 0.4x\nskip: [head.*]\n")
    config = load_config({"seed": 3, "evaluations": None}, ["seed=2", "evaluations=20"], file)
    assert (config.seed, config.evaluations) == (3, 20)
    assert config.max_latency == "0.4x"
    assert config.target == ("raspberry-pi",)
    assert config.skip == ("head.*",)
    assert config.workers == 1


def test_stored_config_gives_the_same_config(tmp_path: Path) -> None:
    config = load_config(
        {
            "target": "local,gpu-t4",
            "max_latency": "3ms",
            "max_drop": "1.0",
            "bits": "8,4",
            "methods": "quantize,prune",
        },
        ["min_keep=0.25", "data_size=32,32", "model=a.b:c", "mean=[0.5]", "out=x"],
    )
    assert config.bits == (4, 8)
    assert config.methods == ("prune", "quantize")
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    again = load_config({}, [], file)
    assert again == config.model_copy(update={"out": None})
    assert set(yaml.safe_load(config.to_yaml())) == set(RunConfig.model_fields) - set(ONE_CALL)
    assert "max_latency: 3ms  # " in config.to_yaml()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({}, "which device"),
        ({"target": "local", "max_latency": "3"}, "has no unit"),
        ({"target": "local", "max_size": "200"}, "--max-size 200 has no unit"),
        ({"target": "local", "max_energy": "5ms"}, "no unit of energy"),
        ({"target": "local", "max_drop": "-1"}, "0 or more"),
        ({"target": "local", "timeout": "60"}, "no unit"),
        ({"target": "local", "timeout": "0s"}, "no time"),
        ({"target": "local", "methods": "prun"}, "Did you mean 'prune'"),
        ({"target": "local", "bits": "1,8"}, "--bits 1 is out of range"),
        ({"target": "local", "bits": "four"}, "--bits four"),
        ({"target": "local", "evaluations": 0}, "--evaluations 0"),
        ({"target": "local", "min_keep": 1.5}, "--min-keep 1.5"),
        ({"target": "local", "risk": 1.0}, "--risk 1.0"),
        ({"target": "local", "measure": "always"}, "--measure always"),
        ({"target": "local", "data": "x.npz"}, "--data needs a network"),
        ({"target": "local", "task": "a", "model": "b:c"}, "exclude each other"),
        ({"target": "local", "recover": "-3s"}, "--recover"),
    ],
)
def test_refused_in_one_or_two_lines(flags: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(flags)
    assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    assert caught.value.exit_code == 2


def test_unknown_keys_name_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--set: unknown key 'evaluation'\. Did you mean 'evaluations'"):
        load_config({"target": "local"}, ["evaluation=3"])
    file = tmp_path / "c.yaml"
    file.write_text("target: local\nmax_latncy: 3ms\n")
    with pytest.raises(UsageError, match="Did you mean 'max_latency'"):
        load_config({}, [], file)
    with pytest.raises(UsageError, match="has no '='"):
        load_config({"target": "local"}, ["seed"])
    file.write_text("{a: [")
    with pytest.raises(InputError, match="is not YAML"):
        load_config({}, [], file)
    file.write_text("- a\n")
    with pytest.raises(InputError, match="key: value"):
        load_config({}, [], file)
    with pytest.raises(InputError, match="No such file"):
        load_config({}, [], tmp_path / "missing.yaml")


def test_budget_in_numbers() -> None:
    config = make_config({"target": "local", "max_latency": "0.5x", "max_size": "200kB", "risk": 0.9})
    budget = config.budget({"latency_ms": 6.0})
    assert budget.max_latency_ms == 3.0
    assert budget.max_size_bytes == 200e3
    assert budget.risk == 0.9
    assert config.objective == "accuracy"
    with pytest.raises(UsageError, match="gives no energy_mj"):
        make_config({"target": "local", "max_energy": "0.5x"}).budget({"latency_ms": 6.0})


def test_default_budget_is_half_the_latency_unless_something_else_is_asked() -> None:
    assert make_config({"target": "local"}).limits["latency_ms"].written == "0.5x"
    assert set(make_config({"target": "local", "max_macs": "0.5x"}).limits) == {"macs"}
    least = make_config({"target": "local", "max_drop": 1.0})
    assert least.limits == {}
    assert least.objective == "latency"
    assert least.budget({"latency_ms": 6.0}).max_drop == 1.0


def test_resuming_may_change_the_effort_but_not_the_goal() -> None:
    config = make_config({"target": "local", "max_latency": "3ms", "seed": 4})
    longer = config.with_changes({"evaluations": 400, "workers": 2, "seed": None, "max_latency": "3ms"})
    assert (longer.evaluations, longer.workers, longer.seed) == (400, 2, 4)
    for flags in ({"max_latency": "2ms"}, {"seed": 5}, {"task": "mnist5k"}, {"agent": "tpe"}):
        with pytest.raises(ResumeError) as caught:
            config.with_changes(flags)
        assert "changes the goal" in caught.value.message
        assert "--warm-start" in (caught.value.hint or "")


def test_task_times_and_targets() -> None:
    config = make_config({"target": ["a", "b/c.yaml"], "timeout": "2m", "recover": "0", "out": "o"})
    assert config.timeout_seconds == 120.0
    assert config.recover_seconds == 0.0
    assert config.task_spec().name == "digits32"
    assert [(c.target, c.out) for c in config.for_each_target()] == [(("a",), "o/a"), (("b/c.yaml",), "o/c")]
    own = make_config({"target": "a", "model": "m:f", "data": "d.npz", "data_size": [8, 9]}).task_spec()
    assert (own.name, own.model, own.data, own.data_size) == ("", "m:f", "d.npz", (8, 9))
    assert config_schema()["additionalProperties"] is False
