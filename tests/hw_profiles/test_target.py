"""Target files: names and aliases, the schema, near matches, and files of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hw_profiles.errors import BadTargetError, HwProfilesError, UnknownTargetError
from hw_profiles.target import TARGETS_FOLDER, list_targets, load_target, target_schema

NAMES = [
    "fpga-bitfusion", "fpga-haq-bismo", "fpga-zcu104-dpu", "gpu-a100", "gpu-h100", "gpu-t4", "jetson-nano",
    "jetson-orin-nano", "local", "pixel-3", "pixel-3/ncnn", "raspberry-pi-3", "raspberry-pi-3/ncnn",
    "raspberry-pi-4", "raspberry-pi-4/ncnn", "raspberry-pi-5", "raspberry-pi-5/ncnn", "raspberry-pi-zero-2-w",
    "raspberry-pi-zero-2-w/ncnn", "rk3588", "rk3588/ncnn", "x86-avx2", "x86-avx512-vnni",
]  # fmt: skip


def _edited(tmp_path: Path, **changes: object) -> Path:
    data = yaml.safe_load((TARGETS_FOLDER / "raspberry-pi-4.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**data, **changes}), encoding="utf-8")
    return path


def test_shipped_targets_load_by_name_and_alias() -> None:
    assert list_targets() == NAMES
    assert load_target("raspberry-pi") is load_target("raspberry-pi-4")
    assert load_target("raspberry-pi").default_threads == 4
    assert load_target("gpu").default_batch == 32
    assert {load_target(n).kind for n in NAMES} == {"cpu", "gpu", "fpga"}


def test_unknown_name_gives_the_near_match_and_exit_code() -> None:
    with pytest.raises(UnknownTargetError, match="Did you mean 'raspberry-pi") as caught:
        load_target("rasberry-pi")
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, HwProfilesError)
    with pytest.raises(UnknownTargetError, match=r"Known targets: .*gpu-t4"):
        load_target("zzzzqqqq")


def test_a_file_of_ones_own_loads(tmp_path: Path) -> None:
    target = load_target(_edited(tmp_path, name="mine", default_threads=2))
    assert (target.name, target.default_threads) == ("mine", 2)
    assert target.cost == load_target("raspberry-pi").cost


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "green"}, "colour: Extra inputs"),
        ({"kind": "abacus"}, "kind: Input should be"),
        ({"default_threads": 0}, "default_threads: "),
        ({"device": {"chip": "x", "cores": 4, "clock_ghz": 1.8}}, r"device\.clock_ghz: "),
        ({"device": {"chip": "x", "cores": 4, "clock_ghz": {"value": 1.8, "source": ""}}}, "source: "),
    ],
)
def test_schema_is_enforced(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadTargetError, match=message) as caught:
        load_target(_edited(tmp_path, **changes))
    assert caught.value.exit_code == 3
    assert "mine.yaml" in str(caught.value)


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    broken, listing = tmp_path / "broken.yaml", tmp_path / "list.yaml"
    broken.write_text("a: [1,\n", encoding="utf-8")
    listing.write_text("- 1\n", encoding="utf-8")
    for path, message in (
        (tmp_path / "none.yaml", "cannot read"),
        (broken, "not YAML"),
        (listing, "mapping"),
    ):
        with pytest.raises(BadTargetError, match=message) as caught:
            load_target(path)
        assert len(str(caught.value).splitlines()) == 1


def test_json_schema_names_the_fields() -> None:
    schema = target_schema()
    assert {"name", "device", "runtime", "cost", "abilities"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False
