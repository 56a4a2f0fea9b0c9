"""model.onnx, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, final

from search.errors import VerificationError
from search.exporters.contract import Exporter, Files, required
from search.integers import exact, saturates
from search.runfolder import MODEL

if TYPE_CHECKING:
    from torch import Tensor

    from compressors.compressed import Compressed
    from compressors.graph import Graph
    from compressors.resolve import Numerics
    from compressors.skeleton import Skeleton
    from search.kernels_found import FoundKernel
    from search.lowering_template import Template


@final
class OnnxExporter(Exporter):
    """One ONNX file with quantise/dequantise where integers are used; judged in default sessions."""

    runtime = "onnxruntime"
    names = (MODEL,)

    def version(self) -> str:
        """See `Exporter.version`."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    def write(self, compressed: Compressed) -> dict[str, bytes]:
        """See `Exporter.write`."""
        from search.export_onnx import export_model

        return {MODEL: export_model(compressed)}

    def answers(
        self,
        files: Files,
        batches: Iterable[tuple[Tensor, ...]],
        graph: Graph,
        numerics: Numerics | None = None,
    ) -> Iterator[list[Any]]:
        """See `Exporter.answers`."""
        model = required(files, MODEL)
        session = _session(model if numerics is None else exact(model, numerics))
        names = [i.name for i in session.get_inputs()]
        for part in batches:
            yield session.run(None, {n: x.numpy() for n, x in zip(names, part, strict=True)})

    def apart(self, numerics: Numerics) -> str:
        """See `Exporter.apart`."""
        if numerics.weight_reserve or not saturates():
            return ""
        return "weights shifted to unsigned: signed ones saturate on this processor and not on the target"

    def kernels(self, files: Files, method: str = "host") -> list[FoundKernel]:
        """See `Exporter.kernels`: the optimised graph in the order of the profiler's events."""
        from search.kernels_found import read_kernels

        return read_kernels(required(files, MODEL), method)

    def template(self, files: Files, graph: Graph, skeleton: Skeleton, batch: int, method: str) -> Template:
        """See `Exporter.template`."""
        from search.templates import template_of_model

        return template_of_model(required(files, MODEL), graph, skeleton, batch, method)

    def executes(self, compressed: Compressed) -> bool:
        """Only u8 activations of 8 bits are onnxruntime's own; other numerics run as "values only"."""
        bits = {c.bits for c in compressed.activations.values()}
        bits |= {c.bits for c in compressed.codes.values()}
        return compressed.numerics.activations == "u8-affine" and bits <= {8}


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as problem:
        line = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise VerificationError(f"onnxruntime does not load the exported file: {line[:200]}") from problem
