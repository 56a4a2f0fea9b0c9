"""Building the results document from what a run found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agents.contract import Outcome
from agents.pareto import front
from agents.registry import list_agents
from compressors.factors import FACTORISATIONS
from compressors.graph import Layer, Node, Structure
from compressors.policy import FLOAT, Factor, ResolvedPolicy
from compressors.resolve import weight_shape
from compressors.skeleton import concrete, unknowns
from compressors.structure import macs_of

from .results import (
    KernelTime,
    LayerRow,
    LimitFacts,
    Network,
    Number,
    Point,
    Results,
    RunFacts,
    SearchFacts,
    TargetFacts,
    TaskFacts,
)
from .results import Score as ScoreFacts

if TYPE_CHECKING:
    from .candidates import Candidate
    from .score import Score
    from .setup import Setup
    from .study import Study

#: Costs that follow from the policy and are not predicted.
_EXACT = frozenset({"size_bytes", "macs"})
CONFIDENCE = 0.9


def numbers(costs: Mapping[str, float]) -> dict[str, Number]:
    """Costs with their source and, for latency, the interval."""
    found: dict[str, Number] = {}
    for name, value in costs.items():
        if name in ("latency_low_ms", "latency_high_ms"):
            continue
        found[name] = Number(value=value, source="exact" if name in _EXACT else "predicted")
    if "latency_low_ms" in costs:
        found["latency_ms"] = Number(
            value=costs["latency_ms"],
            source="predicted",
            low=costs["latency_low_ms"],
            high=costs["latency_high_ms"],
        )
    return found


def score_facts(score: Score) -> ScoreFacts:
    """A score as the document has it."""
    return ScoreFacts(value=score.value, samples=score.samples, low=score.low, high=score.high)


def measured(latency_ms: float, load_ms: float | None = None) -> dict[str, Number]:
    """A measured latency as the document has it."""
    found = {"latency_ms": Number(value=latency_ms, source="measured")}
    if load_ms is not None:
        found["load_ms"] = Number(value=load_ms, source="measured")
    return found


def network(setup: Setup, name: str, policy: ResolvedPolicy, score: Score | None) -> Network:
    """A baseline's entry."""
    entry = Network(
        name=name,
        costs=numbers(setup.predicted_of(policy)),
        feasible=not setup.budget.why_not(setup.priced(policy)),
    )
    if policy.digest in setup.measured:
        entry["measured"] = measured(setup.measured[policy.digest])
    if score is not None:
        entry["validation"] = score_facts(score)
        entry["drop"] = setup.problem.drop(score.value)
    return entry


def points(
    setup: Setup, study: Study, candidates: Sequence[Candidate], picked: Candidate | None
) -> list[Point]:
    """The front over searched and recovered networks; the picked one is always there."""
    improved = {c.searched.policy.digest: c for c in candidates}
    outcomes: list[Outcome] = []
    order: dict[str, int] = {}
    for i, o in enumerate(study.outcomes):
        if o.policy.digest in order:
            continue
        order[o.policy.digest] = i
        c = improved.get(o.policy.digest)
        outcomes.append(o if c is None else c.outcome)
    at = front(outcomes, setup.problem)
    chosen = None if picked is None else picked.searched.policy.digest
    shown = [outcomes[i] for i in at]
    if chosen is not None and all(o.policy.digest != chosen for o in shown) and picked is not None:
        shown.append(picked.outcome)
        shown.sort(key=lambda o: -o.costs["latency_ms"])
    numbered = {e.outcome.policy.digest: e.suggestion.number + 1 for e in study.entries}
    found = []
    for i, o in enumerate(shown):
        c = improved.get(o.policy.digest)
        point = Point(
            number=i + 1,
            name=str(i + 1),
            digest=o.policy.digest,
            picked=o.policy.digest == chosen,
            complete=not o.stopped_early,
            costs=numbers(setup.predicted_of(o.policy)),
            policy=o.policy.to_dict(),
            feasible=not setup.budget.why_not(o.costs),
            validation=_outcome_score(setup, o),
            drop=setup.problem.drop(o.accuracy or 0.0),
            layers=layer_rows(setup, o.policy),
            kernels=kernel_times(setup, o.policy),
        )
        if c is not None and c.recovered:
            point["searched"] = _outcome_score(setup, c.searched)
        if o.policy.digest in setup.measured:
            point["measured"] = measured(setup.measured[o.policy.digest])
        if o.policy.digest in numbered:
            point["evaluation"] = numbered[o.policy.digest]
        found.append(point)
    return found


def _outcome_score(setup: Setup, o: Outcome) -> ScoreFacts:
    return ScoreFacts(
        value=o.accuracy or 0.0, samples=len(setup.task.validation), low=o.accuracy_low, high=o.accuracy_high
    )


def kernel_times(setup: Setup, policy: ResolvedPolicy) -> list[KernelTime]:
    """Predicted milliseconds of every kernel."""
    layers = setup.space.structure.layer
    return [
        KernelTime(
            kernel=k.op,
            precision=k.precision,
            latency_ms=k.milliseconds,
            layer=k.layer if k.layer in layers else None,
        )
        for k in setup.lowering.explain(policy)
    ]


def layer_rows(setup: Setup, policy: ResolvedPolicy) -> list[LayerRow]:
    """What was decided for every layer of the uncompressed network."""
    structure = setup.space.structure
    skeleton = setup.scorer.network.skeletons.of(policy)
    graph = concrete(skeleton.graph, skeleton, unknowns(policy, structure))
    after: dict[str, list[Node]] = {}
    for n in graph.nodes:
        if n.name in skeleton.layer_of:
            after.setdefault(skeleton.layer_of[n.name], []).append(n)
    before_ms = _by_layer(kernel_times(setup, setup.base_policy))
    after_ms = _by_layer(kernel_times(setup, policy))
    rows = []
    for layer in structure.layers:
        nodes = after.get(layer.name, [])
        factor = policy.factors.get(layer.name)
        row = LayerRow(
            name=layer.name,
            op=layer.op,
            shape=_shape(setup, layer),
            macs=float(layer.macs),
            macs_after=float(sum(macs_of(graph, n) for n in nodes)),
            channels=layer.cout,
            channels_after=_channels(graph.tensors[nodes[-1].outputs[0]].shape, layer) if nodes else 0,
            weight_bits=policy.weight_bits.get(layer.name, FLOAT),
            act_bits=_act_bits(setup, policy, layer),
            removed=not nodes,
            factor=None if factor is None else f"{factor.method} {','.join(map(str, factor.rank))}",
            rank_ratio=None if factor is None else _rank_ratio(structure, layer, policy.kept, factor),
            latency_ms=before_ms.get(layer.name),
            latency_after_ms=after_ms.get(layer.name, 0.0 if not nodes else None),
            reason="; ".join(f"{k}: {why}" for k, why in layer.fixed.items()),
        )
        rows.append(row)
    return rows


def _rank_ratio(structure: Structure, layer: Layer, kept: Mapping[str, int], factor: Factor) -> float:
    """Share of the full rank, of the first rank where there are several."""
    full = FACTORISATIONS.find(factor.method).full_rank(weight_shape(structure, layer, kept))
    return factor.rank[0] / full[0]


def _by_layer(times: Sequence[KernelTime]) -> dict[str, float]:
    found: dict[str, float] = {}
    for t in times:
        layer = t.get("layer")
        if layer is not None:
            found[layer] = found.get(layer, 0.0) + t["latency_ms"]
    return found


def _channels(shape: tuple[int, ...], layer: Layer) -> int:
    return shape[-1] if layer.op == "linear" else shape[1]


def _act_bits(setup: Setup, policy: ResolvedPolicy, layer: Layer) -> int:
    structure = setup.space.structure
    group = structure.tensor_group_of.get(structure.graph.by_name[layer.nodes[0]].inputs[0])
    return policy.act_bits.get(group, FLOAT) if group is not None else FLOAT


def _shape(setup: Setup, layer: Layer) -> str:
    node = setup.space.structure.graph.by_name[layer.nodes[0]]
    stride = math.prod(node.attrs.get("stride", (1,)))
    kernel = "x".join(map(str, layer.kernel))
    parts = [
        f"{layer.cin}→{layer.cout}",
        kernel,
        f"/{node.attrs['stride'][0]}" if stride > 1 else "",
        f"g{layer.groups}" if layer.groups > 1 else "",
    ]
    return " ".join(p for p in parts if p)


def task_facts(setup: Setup) -> TaskFacts:
    """The task's entry."""
    task = setup.task
    parts = {"calibration": len(task.calibration[0]), "validation": len(task.validation)}
    parts.update({k: len(v) for k, v in (("train", task.train), ("test", task.test)) if v is not None})
    return TaskFacts(
        name=task.name,
        network=_kind(task.network),
        parameters=sum(p.numel() for p in task.network.parameters()),
        macs=float(sum(x.macs for x in setup.space.structure.layers)),
        metric=task.metric.name,
        metric_unit=task.metric.unit,
        higher_is_better=task.metric.higher_is_better,
        samples=parts,
    )


def _kind(module: Any) -> str:
    return type(module).__name__


def target_facts(setup: Setup, backing: str) -> TargetFacts:
    """The target's entry."""
    target = setup.target
    return TargetFacts(
        name=target.name,
        title=target.title,
        threads=setup.lowering.predictor.threads or 1,
        batch=setup.lowering.batch,
        backing=backing,
        confidence=CONFIDENCE,
        validated=target.validation.status == "validated",
        numerics=setup.scorer.numerics.key,
        base_precision=target.base_precision,
    )


def search_facts(setup: Setup, study: Study | None) -> SearchFacts:
    """The search's entry; before the first evaluation without counts."""
    entries = [] if study is None else study.entries
    return SearchFacts(
        agent=setup.config.agent,
        summary=list_agents()[setup.config.agent],
        layers=len(setup.space.structure.layers),
        dimension=setup.space.dimension,
        log10_policies=setup.space.log10_size,
        planned=setup.config.evaluations,
        evaluated=len(entries),
        feasible=sum(e.outcome.feasible for e in entries),
        stopped=sum(e.outcome.stopped_early for e in entries),
        disagreed=sum(e.outcome.disagreed for e in entries),
    )


def document(setup: Setup, run: RunFacts, study: Study | None, backing: str) -> Results:
    """The document without points: enough for the header."""
    from .results import SCHEMA_VERSION

    limits = {
        k: LimitFacts(limit=v.resolve(setup.base_costs.get(k, 0.0)), written=v.written)
        for k, v in setup.config.limits.items()
    }
    return Results(
        schema_version=SCHEMA_VERSION,
        run=run,
        task=task_facts(setup),
        target=target_facts(setup, backing),
        budget={
            "objective": setup.config.objective,
            "limits": limits,
            "max_drop": setup.config.max_drop,
            "risk": setup.config.risk,
        },
        search=search_facts(setup, study),
        base=network(setup, "base", setup.base_policy, setup.base_score),
        points=[],
    )
