"""Operations that the trace does not know: exported one by one with torch's exporter and inlined."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from compressors.execute import OPERATIONS
from compressors.graph import Node
from search.emit.builder import OPSET, Builder, UnsupportedOperationError


class _Single(torch.nn.Module):
    """One operation as a network; constants are buffers."""

    def __init__(self, n: Node, constants: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self.n = n
        self.constants = constants

    def forward(self, *values: torch.Tensor) -> Any:
        rest = iter(values)
        operands = [
            self.constants[i] if i in self.constants else next(rest) for i in range(len(self.n.inputs))
        ]
        return OPERATIONS["aten"](self.n, list(operands), [])


def inline(b: Builder, n: Node) -> None:
    """Export one ``aten`` node with torch.onnx and splice the nodes it becomes into the model."""
    try:
        model = _exported(b, n)
    except Exception as problem:
        line = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise UnsupportedOperationError(
            f"operation {n.attrs['target']} (node {n.name!r}) cannot be written as ONNX: {line[:160]}"
        ) from problem
    _splice(b, n, model.graph)


def _exported(b: Builder, n: Node) -> onnx.ModelProto:
    constants = {
        i: torch.from_numpy(np.array(b.array(t))) for i, t in enumerate(n.inputs) if t in b.graph.params
    }
    batch = b.graph.fixed_batch or 2
    examples, dynamic = [], []
    for t in n.inputs:
        if t in b.graph.params:
            continue
        kind = b.graph.tensors[t]
        sizes = [d if d >= 0 else -d * batch for d in kind.shape]
        examples.append(torch.ones(sizes, dtype=getattr(torch, kind.dtype)))
        dynamic.append({i: torch.export.Dim.DYNAMIC for i, d in enumerate(kind.shape) if d < 0})
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Single(n, constants).eval(),
            tuple(examples),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(tuple(dynamic),) if b.graph.fixed_batch is None else None,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx returned nothing")
    model: onnx.ModelProto = program.model_proto
    return model


def _splice(b: Builder, n: Node, graph: onnx.GraphProto) -> None:
    activations = [t for t in n.inputs if t not in b.graph.params]
    names = {i.name: b.read(t) for i, t in zip(graph.input, activations, strict=True)}
    names |= {o.name: b.write(t) for o, t in zip(graph.output, n.outputs, strict=True)}
    for initializer in graph.initializer:
        names[initializer.name] = b.initializer(
            f"{n.name}/{initializer.name}", numpy_helper.to_array(initializer)
        )
    names[""] = ""
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedOperationError(
                f"operation {n.attrs['target']} (node {n.name!r}) needs the ONNX domain {node.domain!r}"
            )
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{n.name}/{node.name or node.op_type}"
        for field in (copy.input, copy.output):
            renamed = [names.setdefault(t, f"{n.name}/{t}") for t in field]
            del field[:]
            field.extend(renamed)
        b.nodes.append(copy)
