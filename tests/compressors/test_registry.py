"""Compressors from outside: by import or by entry point, found by name everywhere, held to the same rules."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from compressors.apply import compress
from compressors.errors import CompressorError, PolicyError
from compressors.factors import FACTORISATIONS
from compressors.graph import Structure
from compressors.importance import CRITERIA
from compressors.network import Network
from compressors.policy import Policy, ResolvedPolicy
from compressors.quantize import RANGES, WEIGHT_SCALES
from compressors.space import Abilities, PolicySpace
from compressors.testing import CHECKS
from tests.compressors.helpers import network_of

ROOT = Path(__file__).parents[2]
OUTSIDE = Path(__file__).with_name("outside.py")
NAMES = {
    "factorisation": "input-svd",
    "criterion": "largest-weight",
    "ranges": "three-sigma",
    "scales": "four-fifths",
}


@pytest.fixture
def outside() -> Iterator[None]:
    """The third party's file, executed as a task's file is; forgotten afterwards."""
    with ExitStack() as stack:
        for known, _ in CHECKS.values():
            stack.enter_context(known.having(next(iter(known)), known[next(iter(known))]))
        for _ in range(2):  # a task's file may be executed more than once
            spec = importlib.util.spec_from_file_location("somebodys", OUTSIDE)
            assert spec is not None
            assert spec.loader is not None
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        yield


@pytest.mark.parametrize("kind", NAMES)
def test_what_comes_from_outside_conforms(kind: str, outside: None) -> None:
    known, check = CHECKS[kind]
    check(NAMES[kind])
    assert list(known)[-1] == NAMES[kind]
    assert len(known.summary(NAMES[kind])) > 20


def test_it_is_searched_resolved_and_applied_by_name(outside: None) -> None:
    network = network_of("residual")
    names = frozenset({"prune", "quantize", "input-svd"})
    able = Abilities(methods=names, criterion="largest-weight", ranges="three-sigma", scales="four-fifths")
    space = PolicySpace(network.structure, able)
    methods = {v[0] for c in space.choices if c.kind == "rank" for v in c.values if isinstance(v, tuple)}
    assert methods == {"input-svd"}
    policy = space.resolve(space.decode(space.smallest))
    assert {f.method for f in policy.factors.values()} == {"input-svd"}
    back = ResolvedPolicy.from_dict(policy.to_dict())
    space.check(back)
    assert (back.criterion, back.ranges, back.scales) == ("largest-weight", "three-sigma", "four-fifths")
    compressed = compress(network, back, able.numerics)
    assert all(bool(torch.isfinite(w).all()) for w in compressed.weights.values())
    usual = PolicySpace(network.structure, Abilities())
    offered = {v[0] for c in usual.choices if c.kind == "rank" for v in c.values if isinstance(v, tuple)}
    assert offered == {"svd", "spatial", "tucker2"}
    assert usual.dimension == _dimension(network.structure)


def _dimension(structure: Structure) -> int:
    named = frozenset({"prune", "quantize", "depth", "svd", "spatial", "tucker2"})
    return PolicySpace(structure, Abilities(methods=named)).dimension


def test_names_are_taken_once_and_unknown_ones_have_a_near_match(outside: None) -> None:
    for known in (FACTORISATIONS, CRITERIA, RANGES, WEIGHT_SCALES):
        first, last = next(iter(known)), list(known)[-1]
        with pytest.raises(CompressorError, match=f"'{first}' is registered already"):
            known.register(first, known[last])
        with pytest.raises(PolicyError, match=f"Did you mean '{last}'"):
            known.find(last + "x")
    space = PolicySpace(network_of("plain").structure, Abilities())
    with pytest.raises(PolicyError, match="Did you mean 'svd'"):
        space.resolve(Policy(rank={"hidden": ("svdd", 0.5)}))


def _run(program: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": ":".join(map(str, (*paths, ROOT))), "PATH": "/usr/bin:/bin"}
    return subprocess.run([sys.executable, "-c", program], cwd="/", env=env, capture_output=True, text=True)


def _package(folder: Path, module: str) -> None:
    """What an installer leaves behind."""
    info = folder / "somebodys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tailorbird.compressors]\nsomebodys = {module}\n")


def test_an_installed_package_needs_an_entry_point_only(tmp_path: Path) -> None:
    shutil.copy(OUTSIDE, tmp_path / "somebodys.py")
    _package(tmp_path, "somebodys")
    program = (
        "import sys\n"
        "from compressors.policy import check_document, policy_schema\n"
        "from compressors.factors import FACTORISATIONS\n"
        "print(list(FACTORISATIONS), 'input-svd' in str(policy_schema()), 'torch' in sys.modules)\n"
        "from compressors.importance import CRITERIA\n"
        "print('largest-weight' in CRITERIA)"
    )
    done = _run(program, tmp_path)
    assert done.stderr == ""
    listed, criteria = done.stdout.splitlines()
    assert "'cp'" in listed
    assert listed.endswith("'input-svd'] True True")  # this file's face needs torch: criteria do
    assert criteria == "True"


def test_a_package_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    _package(tmp_path, "not_there")
    program = (
        "from compressors.factors import FACTORISATIONS\n"
        "from compressors.errors import CompressorError\n"
        "try:\n"
        "    list(FACTORISATIONS)\n"
        "except CompressorError as problem:\n"
        "    print(problem)\n"
        "print(list(FACTORISATIONS))"
    )
    done = _run(program, tmp_path)
    assert done.stderr == ""
    said, left = done.stdout.splitlines()
    assert "'somebodys' (not_there) cannot be loaded: No module named 'not_there'" in said
    assert left == "['svd', 'spatial', 'tucker2', 'cp']"


def test_the_built_in_schemes_are_listed_without_torch() -> None:
    program = (
        "import sys\n"
        "from compressors.factors import FACTORISATIONS\n"
        "print(FACTORISATIONS.summaries())\n"
        "print([m for m in ('torch', 'onnxruntime', 'scipy') if m in sys.modules])"
    )
    done = _run(program)
    assert done.stderr == ""
    summaries, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert all(f"'{name}': '" in summaries for name in ("svd", "spatial", "tucker2", "cp"))


def test_a_network_factorised_from_outside_answers_nearly_alike_at_nearly_full_rank(outside: None) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(16, 64, 3, padding=1), torch.nn.Conv2d(64, 4, 1)).eval()
    x = torch.randn(8, 16, 6, 6, generator=torch.Generator().manual_seed(0))
    network = Network.from_module(module, (x[:2],), (x,))
    space = PolicySpace(network.structure, Abilities(methods=frozenset({"input-svd"})))
    errors = []
    for ratio in (0.25, 0.5, 0.75):
        policy = space.resolve(Policy(rank={"0": ("input-svd", ratio)}))
        assert policy.factors["0"].rank == (16 * ratio,)
        made = compress(network, policy, space.abilities.numerics)
        with torch.no_grad():
            errors.append(float((made_answers(made, x) - module(x)).norm() / module(x).norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5


def made_answers(made: object, x: torch.Tensor) -> torch.Tensor:
    """Outputs of a compressed network."""
    from compressors.compressed import Compressed
    from compressors.simulate import answers

    assert isinstance(made, Compressed)
    return answers(made, (x,))[0]
