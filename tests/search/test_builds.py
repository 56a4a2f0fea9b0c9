"""`--max-dsp`, `--max-bram`: the fastest build of the core that fits, or a refusal with the least one."""

from __future__ import annotations

from pathlib import Path

import pytest

import search
from search.cli import main
from search.results import read_results

QUICK = {"task": "mnist5k-lenet300", "evaluations": 4, "recover": "0", "max_latency": "0.9x"}


def test_the_fastest_build_that_fits_is_searched_for(tmp_path: Path) -> None:
    search.run(target="fpga-zcu104-dpu", max_dsp=200, max_bram=125, out=str(tmp_path / "run"), **QUICK)
    results = read_results(tmp_path / "run" / "results.json")
    (told,) = [e["text"] for e in results["events"] if e["kind"] == "build"]
    build = told.split(",")[0]
    assert "the fastest of 4 within 200 DSP and 125 BRAM36" in told
    assert results["target"]["name"] == f"fpga-zcu104-dpu@{build.lower()}"
    assert not results["target"]["validated"]
    latency = results["base"]["costs"]["latency_ms"]["value"]
    for name in ("b512", "b800", "b1024", "b1152"):
        search.run(target=f"zcu104@{name}", out=str(tmp_path / name), dry_run=True, **QUICK)
        other = read_results(tmp_path / name / "results.json")
        assert other["base"]["costs"]["latency_ms"]["value"] >= latency * (1 - 1e-9)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--max-dsp", "60"], 4, "The smallest, B512, takes 66 DSP"),
        (["--max-bram", "0"], 2, "--max-bram"),
        (["--max-dsp", "many"], 2, "--max-dsp"),
        (["--target", "raspberry-pi-4", "--max-dsp", "60"], 2, "nothing is known of the DSP"),
        (["--target", "zcu104@b5"], 2, "has no build 'b5'"),
    ],
)
def test_what_cannot_be_built_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, said: str
) -> None:
    target = [] if "--target" in flags else ["--target", "fpga-zcu104-dpu"]
    given = [*target, *flags, "--task", "mnist5k-lenet300", "--out", str(tmp_path / "run")]
    assert main(given) == code
    text = capsys.readouterr().err
    assert said in text
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists()
