"""Answers of a compressed network, from onnxruntime where that is the same arithmetic.

The simulation in torch defines the answers. onnxruntime computes them two to four times faster from the
very file that export writes, with integer products as the target has them (`search.integers`); it is believed
for a policy only after both agreed on some of its samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from compressors.compressed import Compressed
    from search.task import Metric, Split

#: Samples at a time: activations of small networks stay in the cache.
BATCH = 64
#: Samples on which simulation and runtime must agree before the runtime is believed.
CHECKED = 4
#: Root mean square difference of the outputs that rounding alone explains, relative to the outputs.
_TOLERANCE = 0.03


class Answers:
    """Scores samples of one compressed network, in batches, in the order asked for.

    ``runtime``: use onnxruntime; ``checked``: without comparing it with the simulation first. ``disagreed``
    is set when the two were compared and the simulation was kept to.
    """

    def __init__(
        self, compressed: Compressed, metric: Metric, runtime: bool = True, checked: bool = False
    ) -> None:
        self.compressed = compressed
        self.metric = metric
        self.checked = checked
        self.disagreed = False
        self._session = _session(compressed) if runtime else None

    @property
    def runtime(self) -> bool:
        """Whether answers come from onnxruntime."""
        return self._session is not None

    def scores(self, split: Split) -> Tensor:
        """Per-sample scores (N,), higher or lower better as the metric says."""
        from compressors.simulate import answers

        if self._session is not None and not self.checked:
            self._check(split[slice(0, CHECKED)])
        if self._session is None:
            return self.metric.score(answers(self.compressed, split.inputs), split.targets)
        return self.metric.score(self._run(split.inputs), split.targets)

    def _check(self, split: Split) -> None:
        """Give the runtime up unless it scores these samples as the simulation does."""
        import torch

        from compressors.simulate import answers

        self.checked = True
        ours, theirs = answers(self.compressed, split.inputs), self._run(split.inputs)
        alike = len(ours) == len(theirs) and all(
            a.shape == b.shape and _differs(a, b) <= _TOLERANCE for a, b in zip(ours, theirs, strict=True)
        )
        mine = self.metric.score(ours, split.targets)
        if not alike or not torch.allclose(mine, self.metric.score(theirs, split.targets), atol=_TOLERANCE):
            self._session, self.disagreed = None, True

    def _run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        import torch

        session: Any = self._session
        step = 1 if self.compressed.dynamic else BATCH  # ranges are those of all that a run is given
        names = [i.name for i in session.get_inputs()]
        parts = [
            session.run(None, {n: x[i : i + step].numpy() for n, x in zip(names, inputs, strict=True)})
            for i in range(0, len(inputs[0]), step)
        ]
        return tuple(torch.cat([torch.from_numpy(p) for p in column]) for column in zip(*parts, strict=True))


def _differs(a: Tensor, b: Tensor) -> float:
    if not a.is_floating_point():
        return float((a != b).double().mean())
    return float((a - b).norm() / a.norm().clamp_min(1e-12))


def _session(compressed: Compressed) -> Any:
    """A session on the exported file; None where onnxruntime cannot run the network."""
    import onnxruntime
    import torch

    from .errors import TailorbirdError
    from .export_onnx import export_model
    from .integers import exact

    if compressed.graph.fixed_batch is not None:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        model = exact(export_model(compressed), compressed.numerics)
    except (TailorbirdError, LookupError, ValueError, RuntimeError):
        return None
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime's own exceptions share no other base
        return None
