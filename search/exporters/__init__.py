"""Exporters by runtime: the files a user deploys, and the proof that they do what was searched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search.exporters.contract import Exporter, Files
from search.exporters.ncnn_files import NcnnExporter
from search.exporters.onnx_files import OnnxExporter

if TYPE_CHECKING:
    from hw_profiles.target import Target

#: By the name of the target's runtime. Runtimes without an exporter of their own get the portable ONNX file.
EXPORTERS: dict[str, Exporter] = {e.runtime: e for e in (OnnxExporter(), NcnnExporter())}


def exporter_of(target: Target | str) -> Exporter:
    """The exporter of a target, or of a runtime's name."""
    name = target if isinstance(target, str) else target.runtime.name
    return EXPORTERS.get(name, EXPORTERS[OnnxExporter.runtime])


__all__ = ["EXPORTERS", "Exporter", "Files", "NcnnExporter", "OnnxExporter", "exporter_of"]
