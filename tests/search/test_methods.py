"""Methods by name: what `--methods` takes, what `search methods` lists, what a policy space makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compressors.space import PolicySpace
from hw_profiles.target import load_target
from search.abilities import abilities_of
from search.cli import main
from search.config import load_config, make_config
from search.errors import UsageError
from search.methods import METHODS, known_methods
from search.setup import load_setup
from tests.compressors.helpers import network_of
from tests.search.scoring_task import make_task


def test_schemes_go_by_their_own_names(tmp_path: Path) -> None:
    config = make_config({"target": "local", "methods": "cp,quantize,prune,cp"})
    assert config.methods == ("prune", "quantize", "cp")
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config({}, [], file) == config
    assert make_config({"target": "local"}).methods == METHODS
    assert {"svd", "spatial", "tucker2", "cp", *METHODS} <= set(known_methods())
    with pytest.raises(UsageError, match="Did you mean 'tucker2'"):
        make_config({"target": "local", "methods": "prune,tucker"})


def test_the_default_space_has_the_default_schemes_only() -> None:
    structure, target = network_of("residual").structure, load_target("local")
    offered = {
        key: {
            v[0]
            for c in PolicySpace(structure, abilities_of(target, methods)).choices
            for v in c.values
            if c.kind == "rank" and isinstance(v, tuple)
        }
        for key, methods in {
            "default": None,
            "named": ["prune", "cp"],
            "both": ["factorize", "cp"],
            "none": ["prune"],
        }.items()
    }
    usual = {"svd", "spatial", "tucker2"}
    assert offered == {"default": usual, "named": {"cp"}, "both": {*usual, "cp"}, "none": set()}
    with pytest.raises(UsageError, match="Did you mean 'cp'"):
        abilities_of(target, ["cpp"])


def test_a_users_own_code_may_register_what_it_names() -> None:
    config = make_config({"target": "local", "task": "mine.py:make", "methods": "prune,mine"})
    assert config.methods == ("prune", "mine")
    with pytest.raises(UsageError, match="unknown method 'mine'"):  # it did not
        load_setup(config, make_task())


def test_how_channels_ranges_and_scales_are_found_is_part_of_every_policy() -> None:
    chosen = {"criterion": "taylor", "ranges": "minmax", "scales": "largest"}
    space = load_setup(make_config({"target": "local", **chosen}), make_task()).space
    for policy in (space.dense, space.decode(space.smallest), space.uniform(0.5, act_bits=8)):
        resolved = space.resolve(policy)
        assert (resolved.criterion, resolved.ranges, resolved.scales) == ("taylor", "minmax", "largest")
    for key, near in {"criterion": "taylr", "ranges": "minmx", "scales": "largst"}.items():
        with pytest.raises(UsageError, match=f"Did you mean '{chosen[key]}'"):
            load_setup(make_config({"target": "local", key: near}), make_task())


def test_everything_registered_is_listed_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["methods"]
    by_kind: dict[str, list[str]] = {}
    for row in listed:
        by_kind.setdefault(row["kind"], []).append(row["name"])
        assert 0 < len(row["summary"]) <= 120
        assert "\n" not in row["summary"]
    assert list(by_kind) == ["method", "factorisation", "criterion", "ranges", "scales"]
    assert by_kind["factorisation"] == ["svd", "spatial", "tucker2", "cp"]
    usual = {(r["kind"], r["name"]) for r in listed if r["default"]}
    assert ("factorisation", "cp") not in usual
    assert {("criterion", "obs"), ("ranges", "auto"), ("scales", "mse"), ("method", "prune")} <= usual
    assert main(["methods"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == len(listed) + 1
