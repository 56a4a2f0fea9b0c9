"""Pure values import neither torch nor onnxruntime: policies are resolved and priced without them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PURE = (
    "policy",
    "space",
    "resolve",
    "graph",
    "skeleton",
    "structure",
    "channels",
    "errors",
    "factors",
    "loose",
    "registry",
)


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_no_runtime(name: str) -> None:
    program = (
        f"import sys, compressors.{name}\n"
        "print(sorted(m for m in ('torch', 'onnxruntime', 'onnx', 'scipy', 'ray') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_the_package_offers_its_face_without_loading_torch() -> None:
    program = (
        "import sys, compressors\n"
        "assert 'torch' not in sys.modules\n"
        "names = list(compressors.__all__)\n"
        "policy = compressors.Policy\n"
        "assert 'torch' not in sys.modules\n"
        "found = [getattr(compressors, n) for n in names]\n"
        "print(len(found), 'torch' in sys.modules, set(names) <= set(dir(compressors)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    count, torch_loaded, listed = done.stdout.split()
    assert int(count) >= 15
    assert torch_loaded == "True"
    assert listed == "True"
