"""What an episode's controller sees: AMC's and HAQ's states, generalised, computed in one place.

AMC's released code computes a part of its state one way on reset and another in a step. Here every state, of
the environment and of the agents, comes from `Observer.observe`, a function of the step and of what was
decided before it, so that an episode can be rebuilt from nothing but its policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from compressors.graph import Layer, Structure

from .pricing import Indices, Pricer
from .repair import anchors
from .sites import KINDS, Floats, Site, Vector, decided, taken

#: Names of an observation's entries, all in [0, 1]. "cost": share of the uncompressed network's load that
#: the layer governs; "rest": that the later ones govern; "reduced": what the decided ones gave up so far;
#: "headroom": share of the budget still free with everything undecided at its cheapest (1 without limits).
FEATURES = (
    *("index", "linear", "depthwise", "cin", "cout", "stride", "kernel", "size", "positions"),
    *("second", "cost", "rest"),
    *(f"has {k}" for k in KINDS),
    *("reduced", "headroom"),
    *(f"last {k}" for k in KINDS),
)
STATES = len(FEATURES)
#: Where an observation holds the mask of its step.
MASK = slice(FEATURES.index("has keep"), FEATURES.index("has removed") + 1)


class Observer:
    """Observations of episodes over ``course``.

    The load of a policy is its largest cost relative to its limit, or, without limits, its latency relative
    to the uncompressed network's. It is priced, not added up: any predictor will do.
    """

    def __init__(self, pricer: Pricer, course: Sequence[Site]) -> None:
        self.pricer = pricer
        self.course = tuple(course)
        self._decided = [np.array(decided(self.course, t), dtype=int) for t in range(len(self.course) + 1)]

    @cached_property
    def cheapest(self) -> Indices:
        """The point of least excess found (of least latency without limits), (d,)."""
        return anchors(self.pricer)[0]

    def prefix(self, step: int, indices: Indices) -> Indices:
        """What the first ``step`` steps decided, everything else at its cheapest; (d,)."""
        point = self.cheapest.copy()
        point[self._decided[step]] = indices[self._decided[step]]
        return point

    def load(self, points: Indices) -> Floats:
        """Load of policies (P, d), shape (P,); at most 1 where every limit holds."""
        costs = self.pricer.price(points)
        if self.pricer.budget.limits:
            found = self.pricer.budget.violations(costs).max(axis=1) + 1.0
        else:
            key = self.pricer.budget.latency_key
            found = costs[key] / max(self.pricer.latency(self.pricer.top[None])[0], 1e-300)
        return np.asarray(np.minimum(found, 1e9), dtype=float)

    def observe(self, step: int, indices: Indices) -> Vector:
        """State before step ``step`` (after the last one: T), from what was decided until then; (STATES,)."""
        return self._row(step, indices, float(self.load(self.prefix(step, indices)[None])[0]))

    def episode(self, indices: Indices) -> Vector:
        """All states of the episode that decided ``indices``, shape (T + 1, STATES)."""
        steps = range(len(self.course) + 1)
        loads = self.load(np.stack([self.prefix(t, indices) for t in steps]))
        return np.stack([self._row(t, indices, float(loads[t])) for t in steps])

    def _row(self, step: int, indices: Indices, load: float) -> Vector:
        full = self._dense_loads[-1]
        reduced = (self._dense_loads[step] - load) / max(full, 1e-300)
        headroom = 1.0 - load if self.pricer.budget.limits else 1.0
        last = (
            taken(self.course[step - 1], indices, self.pricer.space.cardinalities)
            if step
            else np.zeros(len(KINDS))
        )
        static = self._static[min(step, len(self.course) - 1)]
        row = np.concatenate([static, [reduced, headroom], last])
        found: Vector = np.clip(row, 0.0, 1.0).astype(np.float32)
        return found

    @cached_property
    def _dense_loads(self) -> Floats:
        """Load with the first t steps left uncompressed and the others at their cheapest, (T + 1,)."""
        steps = range(len(self.course) + 1)
        return self.load(np.stack([self.prefix(t, self.pricer.top) for t in steps]))

    @cached_property
    def _static(self) -> Floats:
        """What does not change in an episode, (T, STATES without reduced, headroom, last)."""
        structure = self.pricer.space.structure
        count = len(self.course)
        index = np.linspace(0.0, 1.0, count) if count > 1 else np.zeros(1)
        shapes = np.array([_shape(structure, s) for s in self.course])
        spread = np.ptp(shapes[:, 2:], axis=0)
        scaled = (shapes[:, 2:] - shapes[:, 2:].min(axis=0)) / np.where(spread > 0, spread, 1.0)
        loads = self._dense_loads
        full = max(float(loads[-1]), 1e-300)
        return np.column_stack(
            [
                index,
                shapes[:, :2],
                scaled,
                [float(s.second) for s in self.course],
                np.diff(loads) / full,
                (loads[-1] - loads[1:]) / full,
                np.stack([s.mask for s in self.course]),
            ]
        )


def _shape(structure: Structure, site: Site) -> list[float]:
    """Before scaling: linear, depthwise, cin, cout, stride, kernel elements, weights, output positions."""
    if site.layer not in structure.layer:
        return [0.0] * 8
    layer = structure.layer[site.layer]
    weights = float(np.prod(layer.weight_shape))
    return [
        float(layer.op == "linear"),
        float(layer.depthwise),
        float(layer.cin),
        float(layer.cout),
        _stride(structure, layer),
        float(np.prod(layer.kernel)) if layer.kernel else 1.0,
        weights,
        layer.macs / max(weights, 1.0),
    ]


def _stride(structure: Structure, layer: Layer) -> float:
    """Stride of the layer's first call; 0 for linear layers, as HAQ has it."""
    if layer.op == "linear":
        return 0.0
    stride = structure.graph.by_name[layer.nodes[0]].attrs.get("stride", 1)
    return float(np.max(np.asarray(stride, dtype=float))) if np.size(stride) else 1.0
