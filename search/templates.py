"""Obtaining kernel templates: the network with dummy weights, as the runtime optimises it, read as formulas.

Templates are kept in memory and in the user's cache folder by signature, runtime version, instruction set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressors.graph import DimSize, Graph
from compressors.skeleton import Placement, Skeleton
from hw_profiles.errors import DeviceError
from search.dummies import dummy_model
from search.foreign import PROCESSORS, foreign
from search.lowering_graph import read_template
from search.lowering_shapes import Reading, Source, TemplateError, UnreadableError
from search.lowering_template import (
    SymbolicKernel,
    Template,
    cell,
    count,
    element_width,
    from_json,
    to_json,
)

if TYPE_CHECKING:
    import onnx

    from hw_profiles.target import Target
    from search.kernels_found import FoundKernel

#: Part of every cache key; to be raised when emission or reading of templates changes.
TEMPLATE_VERSION = 7
#: Session configuration by template method of the target. That the arm64 runtime makes the same graphs as
#: this one without blocked layout is what scripts/score_arm_templates.py checks against that runtime.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "host": {},
    "host-without-nchwc": {"disabled": "NchwcTransformer"},
    "x86-avx2": {},
}
#: Methods whose graphs may have onnxruntime's blocked layout (NCHWc), which depends on channel counts.
BLOCKED = frozenset({"host", "x86-avx2"})


# -- asking onnxruntime


def optimised(model: bytes, method: str = "host") -> onnx.ModelProto:
    """The graph onnxruntime's default session makes of a model (less prepacking, which changes no node), on
    this machine or on the one that the method names."""
    import onnx
    import onnxruntime

    device = foreign(method)
    if device is not None:
        try:
            theirs: onnx.ModelProto = onnx.ModelProto.FromString(device.optimised(model))
        except DeviceError as problem:
            raise TemplateError(f"onnxruntime there does not load the network: {problem}") from problem
        return theirs
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")
    if METHODS[method].get("disabled"):
        options.add_session_config_entry(
            "optimization.disable_specified_optimizers", METHODS[method]["disabled"]
        )
    with _scratch() as path:
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as problem:
            line = str(problem).strip().splitlines()[0]
            raise TemplateError(f"onnxruntime does not load the network: {line[:200]}") from problem
        made: onnx.ModelProto = onnx.ModelProto.FromString(path.read_bytes())
        return made


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    memory = Path("/dev/shm")
    folder = str(memory) if memory.is_dir() and os.access(memory, os.W_OK) else None
    handle, name = tempfile.mkstemp(suffix=".onnx", dir=folder)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


@lru_cache(maxsize=8)
def runtime_key(method: str = "host") -> str:
    """onnxruntime's version and the instruction set it is asked on: this machine's, or an emulated one."""
    import onnxruntime

    if foreign(method) is not None:
        return f"{onnxruntime.__version__}/emulated {PROCESSORS[method]}"

    from hw_profiles.local import cpu_flags

    path = Path("/proc/cpuinfo")
    flags = cpu_flags(path.read_text(errors="replace")) if path.exists() else frozenset()
    known = [
        "avx",
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "amx_int8",
        "avx512_bf16",
        "asimddp",
        "i8mm",
        "fphp",
        "sve",
        "bf16",
    ]
    return f"{onnxruntime.__version__}/{os.uname().machine}/{','.join(f for f in known if f in flags)}"


def block_size(method: str = "host") -> int:
    """Channels in a block of onnxruntime's NCHWc layout where it is asked (MlasNchwcGetBlockSize)."""
    return 16 if "avx512f" in runtime_key(method) else 8


def stand_in(target: Target) -> str:
    """In which way the runtime that is asked makes other graphs than the target's; "" where in none.

    Blocks have 16 channels with AVX-512 and 8 with AVX2; what runs in blocks, and how much of one is empty,
    depends on that. The processor asked is this one, unless it can be emulated (`search.foreign`).
    """
    method = target.runtime.templates
    if method not in BLOCKED or target.name == "local":
        return ""
    theirs, ours = (16 if target.isa.startswith("avx512") else 8), block_size(method)
    if theirs == ours:
        return ""
    return f"kernels of a stand-in, whose blocks have {ours} channels where the target's have {theirs}"


def ask(
    graph: Graph,
    where: Placement,
    activations: str,
    sizes: Mapping[str, tuple[DimSize, ...]],
    layer_of: Mapping[str, str],
    method: str,
    batch: int,
    constants: Mapping[str, Any],
    small: Graph | None = None,
) -> Template:
    """The template of a concrete graph, by asking the runtime of this machine.

    ``small``: the same network with fewer channels (`search.dummies`), which is asked about first. The graph
    itself is, where the answer cannot be read.
    """
    source = Source(graph, sizes, layer_of, batch, block_size(method))
    if small is not None:
        model = dummy_model(small, where, activations, constants).SerializeToString()
        with contextlib.suppress(TemplateError):
            return read_template(optimised(model, method), dataclasses.replace(source, graph=small), method)
    model = dummy_model(graph, where, activations, constants).SerializeToString()
    return read_or_run(model, source, method)


def read_or_run(model: bytes, source: Source, method: str) -> Template:
    """The template of a model: formulas if the optimised graph can be read, else the sizes of a run."""
    from search.kernels_found import read_kernels

    try:
        return read_template(optimised(model, method), source, method)
    except UnreadableError:
        return exact_template(read_kernels(model, method, batch=source.batch), source, method)


def exact_template(found: Sequence[FoundKernel], source: Source, method: str) -> Template:
    """The template of kernels that a run showed, for its own sizes only."""
    from search.lowering_graph import behind, norm_of
    from search.lowering_onnx import kind_of, row_of

    graph, reading = source.graph, Reading(source, {}, {})
    kernels, tensors, widths = [], {t: count(source.formula(t)) for t in graph.inputs}, {}
    for k in found:
        param = k.weights[0].split("/")[0] if k.weights else ""
        caller = next(iter(graph.consumers.get(param, ())), None)
        if caller is None and k.weight_bearing and norm_of(reading, k.name) is None:
            caller = behind(reading, k.name, k.window or None)
        if caller is not None:
            reading.used.add(caller.name)
        layer = source.layer_of.get(caller.name, "") if caller is not None else ""
        kind = dataclasses.replace(kind_of(k), layer=layer)
        cells = {c: cell(v) for c, v in row_of(k).items()}
        cells |= {c: cell(8.0 if k.precision == "int8" else 32.0) for c in ("weight_bits", "act_bits")}
        kernels.append(SymbolicKernel(kind, cells, k.reads, k.writes))
        for t, shape in zip(k.writes, k.outputs, strict=False):
            tensors[t] = cell(float(math.prod(shape)))
            widths[t] = element_width(kind)
    return Template(tuple(kernels), tensors, tuple(graph.inputs), tuple(graph.outputs), method, True, widths)


def template_of_model(model: bytes, graph: Graph, skeleton: Skeleton, batch: int, method: str) -> Template:
    """The template that an exported file really leads to."""
    source = Source(graph, skeleton.sizes, skeleton.layer_of, batch, block_size(method))
    return read_or_run(model, source, method)


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """No garbage collection meanwhile: a template allocates enough to start several, and with torch loaded
    each takes longer than all the rest."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# -- the store


class TemplateStore:
    """Templates by signature, in memory and on disk. An unreadable or foreign file counts as missing."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder if folder is not None else cache_folder()
        self._known: dict[str, Template] = {}

    def get(self, signature: str, make: Callable[[], Template]) -> Template:
        """The template of a signature, made on first use anywhere."""
        key = hashlib.sha256(signature.encode()).hexdigest()[:32]
        found = self._known.get(key)
        if found is None:
            found = self._load(key)
            if found is None:
                found = make()
                self._save(key, found)
            self._known[key] = found
        return found

    def learn(self, signature: str, template: Template) -> None:
        """Replace what is known of a signature, here and on disk."""
        key = hashlib.sha256(signature.encode()).hexdigest()[:32]
        self._known[key] = template
        self._save(key, template)

    def _path(self, key: str) -> Path | None:
        return None if self._folder is None else self._folder / key[:2] / f"{key}.json"

    def _load(self, key: str) -> Template | None:
        path = self._path(key)
        if path is None:
            return None
        try:
            return from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None

    def _save(self, key: str, template: Template) -> None:
        path = self._path(key)
        if path is None:
            return
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(to_json(template), separators=(",", ":")), encoding="utf-8")
            part.replace(path)


def cache_folder() -> Path:
    """Where templates are kept between runs."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("tailorbird")) / "templates"


def signature_text(parts: Sequence[Any]) -> str:
    """Canonical text of a signature."""
    return json.dumps(parts, sort_keys=True, separators=(",", ":"), default=list)
