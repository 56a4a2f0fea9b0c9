"""model.ncnn.param and model.ncnn.bin, run by ncnn in 32-bit floats and 8-bit integers."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from search.errors import InputError, VerificationError
from search.exporters.contract import Exporter, Files, required

if TYPE_CHECKING:
    from torch import Tensor

    from compressors.compressed import Compressed
    from compressors.graph import Graph
    from compressors.resolve import Numerics
    from compressors.skeleton import Skeleton
    from search.kernels_found import FoundKernel
    from search.lowering_template import Template

PARAM, BIN = "model.ncnn.param", "model.ncnn.bin"
#: Options that trade precision for speed, on by default. 16-bit storage moves answers by about 1e-3.
_SHORTER = (
    "use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage", "use_bf16_packed",
)  # fmt: skip


@final
class NcnnExporter(Exporter):
    """ncnn's pair of files: layers as text, weights as floats or 8-bit codes. One sample at a time."""

    runtime = "ncnn"
    names = (PARAM, BIN)
    extra = "ncnn"

    def version(self) -> str:
        """See `Exporter.version`."""
        import ncnn

        return f"ncnn {ncnn.__version__}"

    def write(self, compressed: Compressed) -> dict[str, bytes]:
        """See `Exporter.write`."""
        from compressors.compressed import ActivationCode
        from search.emit_ncnn import emit_ncnn

        narrow = compressed.numerics.at_reads and compressed.numerics.narrow
        if compressed.dynamic or (compressed.activations and not narrow):
            raise InputError(
                f"ncnn does not round activations as {compressed.numerics.key}"
                f"{' with ranges found as it runs' if compressed.dynamic else ''}.",
                "Search for a target whose runtime is ncnn.",
            )
        c = compressed
        static = {t: a for t, a in c.activations.items() if isinstance(a, ActivationCode)}
        program = emit_ncnn(c.graph, c.weights, static, c.codes)
        return {PARAM: program.text.encode(), BIN: program.binary}

    def answers(
        self,
        files: Files,
        batches: Iterable[tuple[Tensor, ...]],
        graph: Graph,
        numerics: Numerics | None = None,
    ) -> Iterator[list[Any]]:
        """See `Exporter.answers`; the batch is put back where the graph has it."""
        net = load(files)
        for part in batches:
            samples = [_run(net, [x[i : i + 1] for x in part], graph) for i in range(len(part[0]))]
            yield [np.concatenate(c) for c in zip(*samples, strict=True)]

    def kernels(self, files: Files, method: str = "program") -> list[FoundKernel]:
        """See `Exporter.kernels`: the layers of the loaded net, their sizes from a run on zeros."""
        from search.ncnn_found import read_layers

        return read_layers(load(files, InputError), required(files, PARAM).decode())

    def template(self, files: Files, graph: Graph, skeleton: Skeleton, batch: int, method: str) -> Template:
        """See `Exporter.template`."""
        from search.lowering_shapes import Source
        from search.templates import exact_template

        source = Source(graph, skeleton.sizes, skeleton.layer_of, batch)
        return exact_template(self.kernels(files), source, method)

    def executes(self, compressed: Compressed) -> bool:
        """Always: every layer runs as it stands in the file."""
        return True


def load(files: Files, error: type[InputError] | type[VerificationError] = VerificationError) -> Any:
    """The loaded net, single-threaded, in 32-bit floats. Raises ``error``.

    ncnn says on stderr why it does not load a file and goes on; that is silenced and looked for here.
    """
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    for name in _SHORTER:
        setattr(net.opt, name, False)
    with tempfile.TemporaryDirectory() as folder, silenced():
        for name in (PARAM, BIN):
            Path(folder, name).write_bytes(required(files, name))
        failed = net.load_param(str(Path(folder, PARAM)))
        which = PARAM if failed else BIN
        failed = failed or net.load_model(str(Path(folder, BIN)))
    if failed:
        raise error(f"ncnn {ncnn.__version__} does not load {which}: cut short, or a layer it does not know.")
    return net


def extract(net: Any, feed: dict[str, Any], names: Iterable[str]) -> list[Any]:
    """Blobs of one run, as arrays without batch. Raises VerificationError where ncnn gives none."""
    import ncnn

    run = net.create_extractor()
    run.set_light_mode(False)
    for name, value in feed.items():
        run.input(name, ncnn.Mat(value))
    found = []
    for name in names:
        with silenced():
            code, blob = run.extract(name)
        if code != 0 or blob.empty():
            raise VerificationError(f"ncnn cannot compute {name!r} of {PARAM} (code {code})")
        found.append(np.array(blob))
    return found


def _run(net: Any, sample: list[Tensor], graph: Graph) -> list[Any]:
    """Outputs of one sample in the graph's shapes at batch 1."""
    feed = {f"in{i}": _array(x) for i, x in enumerate(sample)}
    found = extract(net, feed, [f"out{i}" for i in range(len(graph.outputs))])
    shapes = [tuple(abs(d) for d in graph.type_of(t).shape) for t in graph.outputs]
    try:
        return [value.reshape(shape) for value, shape in zip(found, shapes, strict=True)]
    except ValueError as problem:
        raise VerificationError(f"ncnn gives {found[0].shape} where {shapes[0]} is due") from problem


def _array(x: Tensor) -> Any:
    value = np.ascontiguousarray(x.squeeze(0).numpy())
    return value.astype(np.int32 if value.dtype.kind in "iub" else np.float32).reshape(value.shape or (1,))


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """No output on the process's stderr meanwhile: ncnn writes there by itself."""
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
