"""Lowering: from resolved policies to the kernels a target's runtime executes, and to prices.

Policies with the same structural signature (blocks removed, factorisations, integer tensors and weights,
alignment of channels) share a kernel template; the sizes of all of them follow from one matrix product.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compressors.graph import Graph, Structure
from compressors.policy import DYNAMIC, ResolvedPolicy
from compressors.skeleton import (
    Placement,
    Skeleton,
    SkeletonCache,
    at_reads,
    concrete,
    placement,
    structure_key,
    unknowns,
)
from hw_profiles.kernel import KernelBatch
from hw_profiles.predictor import Predictor
from hw_profiles.target import Target
from search.dummies import small_graph
from search.lowering_sizes import alignment_classes, alignment_dims, parameter_bytes
from search.lowering_template import CompiledTemplate, Formulas, Template
from search.templates import (
    TEMPLATE_VERSION,
    TemplateStore,
    ask,
    collection_paused,
    runtime_key,
    signature_text,
)

if TYPE_CHECKING:
    from search.exporters import Files

Array = NDArray[np.float64]
_PLANS = 4096


@dataclass
class _Plan:
    """What policies of one topology and one placement of integers share."""

    skeleton: Skeleton
    where: Placement
    names: tuple[str, ...]
    signature: tuple[Any, ...]
    alignment: Formulas
    size_bytes: Formulas
    templates: dict[tuple[bytes, bytes], CompiledTemplate] = field(default_factory=dict)
    exact: set[bytes] = field(default_factory=set)  # classes whose templates hold for one policy only


@dataclass(frozen=True)
class KernelCost:
    """One kernel of one policy: what it is and its predicted milliseconds."""

    op: str
    layer: str
    precision: str
    milliseconds: float


class Lowering:
    """Kernels and prices of policies for one network on one target at one batch size.

    ``weights`` are the traced network's: constants among them can steer fusions. ``predictor`` defaults to
    the target's own with ``threads``. Not thread-safe; use one per process.
    """

    def __init__(
        self,
        structure: Structure,
        target: Target,
        batch: int = 1,
        threads: int | None = None,
        weights: Mapping[str, Any] | None = None,
        predictor: Predictor | None = None,
        store: TemplateStore | None = None,
    ) -> None:
        self.structure = structure
        self.target = target
        self.batch = structure.graph.fixed_batch or batch
        self.predictor = predictor if predictor is not None else Predictor(target, threads)
        self.constants = _constants(structure, weights or {})
        self.store = store if store is not None else TemplateStore()
        self.asked = 0
        self._skeletons = SkeletonCache(structure)
        self._plans: OrderedDict[Any, _Plan] = OrderedDict()
        self._groups = [(g.name, g.size) for g in structure.groups]
        self._identity = _identity(structure, target, self.batch, self.constants)

    # -- kernels

    def kernels(self, policies: Sequence[ResolvedPolicy]) -> list[tuple[list[int], KernelBatch]]:
        """Kernel batches by template, each with the indices of the policies its rows belong to."""
        return [(i, template.batch(values)) for i, template, values, _ in self._grouped(policies)]

    def template(self, policy: ResolvedPolicy) -> Template:
        """The kernel template of one policy."""
        return next(iter(self._grouped([policy])))[1].template

    def learn(self, policy: ResolvedPolicy, files: Files | bytes) -> Template:
        """Take the kernels of a policy's exported files as the template of all of its signature."""
        from search.exporters import exporter_of

        exporter = exporter_of(self.target)
        if isinstance(files, bytes):
            files = {exporter.names[0]: files}
        plan, values = self._plan(policy), self._values(policy)[None, :]
        whole = concrete(plan.skeleton.graph, plan.skeleton, unknowns(policy, self.structure))
        graph, _ = self._placed(plan, policy, whole)
        method = self.target.runtime.templates
        found = exporter.template(files, graph, plan.skeleton, self.batch, method)
        classes = self._classes(plan, values)[0]
        own = values[0].tobytes() if classes.tobytes() in plan.exact or found.exact else b""
        if own:
            plan.exact.add(classes.tobytes())
        else:
            self.store.learn(self._signature(plan, classes), found)
        plan.templates[classes.tobytes(), own] = found.compiled(plan.names)
        return found

    # -- prices

    def costs(
        self, policies: Sequence[ResolvedPolicy], predictor: Predictor | None = None
    ) -> dict[str, Array]:
        """Prices of P policies, float64 arrays of shape (P,), lower is better.

        latency_ms with latency_low_ms to latency_high_ms (90 %); energy_mj where the target has constants;
        size_bytes of the stored weights; memory_bytes, the peak of live activations; macs of one sample.
        """
        pricing = predictor if predictor is not None else self.predictor
        names = ["latency_ms", "latency_low_ms", "latency_high_ms", "size_bytes", "memory_bytes", "macs"]
        out = {name: np.zeros(len(policies)) for name in names}
        for index, template, values, plan in self._grouped(policies):
            batch = template.batch(values)
            found = pricing.predict(batch)
            out["latency_ms"][index] = found.latency_ms
            out["latency_low_ms"][index] = found.low_ms
            out["latency_high_ms"][index] = found.high_ms
            out["size_bytes"][index] = plan.size_bytes(values)[:, 0]
            out["memory_bytes"][index] = template.memory_bytes(values)
            out["macs"][index] = batch.macs().sum(axis=1) / self.batch
            if found.energy_mj is not None:
                out.setdefault("energy_mj", np.zeros(len(policies)))[index] = found.energy_mj
        return out

    def explain(self, policy: ResolvedPolicy, predictor: Predictor | None = None) -> list[KernelCost]:
        """Predicted milliseconds of every kernel of one policy, in order of execution."""
        pricing = predictor if predictor is not None else self.predictor
        batch = self.kernels([policy])[0][1]
        found = pricing.predict(batch)
        return [
            KernelCost(k.op, k.layer, k.precision, float(ms))
            for k, ms in zip(batch.kinds, found.kernel_ms[0], strict=True)
        ]

    def unknown_operations(self, policy: ResolvedPolicy) -> tuple[str, ...]:
        """Operations of a policy's kernels that the cost model has no constants for."""
        return self.predictor.predict(self.kernels([policy])[0][1]).unknown

    # -- templates

    def _grouped(
        self, policies: Sequence[ResolvedPolicy]
    ) -> list[tuple[list[int], CompiledTemplate, Array, _Plan]]:
        with collection_paused():
            return self._grouped_by_plan(policies)

    def _grouped_by_plan(
        self, policies: Sequence[ResolvedPolicy]
    ) -> list[tuple[list[int], CompiledTemplate, Array, _Plan]]:
        by_plan: dict[int, tuple[_Plan, list[int]]] = {}
        for i, policy in enumerate(policies):
            plan = self._plan(policy)
            by_plan.setdefault(id(plan), (plan, []))[1].append(i)
        found: list[tuple[list[int], CompiledTemplate, Array, _Plan]] = []
        for plan, members in by_plan.values():
            values = np.array([self._values(policies[i]) for i in members])
            parts: dict[tuple[bytes, bytes], list[int]] = {}
            for j, row in enumerate(self._classes(plan, values)):
                own = values[j].tobytes() if row.tobytes() in plan.exact else b""
                parts.setdefault((row.tobytes(), own), []).append(j)
            for at in parts.values():
                found += self._matched(plan, policies, members, values, at)
        return found

    def _matched(
        self,
        plan: _Plan,
        policies: Sequence[ResolvedPolicy],
        members: list[int],
        values: Array,
        at: list[int],
    ) -> list[tuple[list[int], CompiledTemplate, Array, _Plan]]:
        """Policies of one alignment with their template; each with its own, where templates are exact."""
        classes = self._classes(plan, values[at[:1]])[0]
        key = classes.tobytes()
        own = values[at[0]].tobytes() if key in plan.exact else b""
        template = plan.templates.get((key, own))
        if template is None:
            template = self._obtain(plan, classes, policies[members[at[0]]])
            if template.template.exact and not own:
                plan.exact.add(key)
                return [x for j in at for x in self._matched(plan, policies, members, values, [j])]
            plan.templates[key, own] = template
        return [([members[j] for j in at], template, values[at], plan)]

    def _plan(self, policy: ResolvedPolicy) -> _Plan:
        key = (
            policy.removed,
            tuple((k, f.method) for k, f in policy.factors.items()),
            tuple(policy.act_bits.items()),
            tuple(policy.weight_bits.items()),
            policy.ranges == DYNAMIC,
        )
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._made(policy)
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        else:
            self._plans.move_to_end(key)
        return plan

    def _made(self, policy: ResolvedPolicy) -> _Plan:
        skeleton = self._skeletons.of(policy)
        where = placement(self.structure, skeleton, policy)
        names = tuple(unknowns(policy, self.structure))
        signature = (
            structure_key(policy),
            sorted(where.tensors.items()),
            sorted(where.params.items()),
            *([DYNAMIC] if policy.ranges == DYNAMIC else []),
        )
        dims = alignment_dims(skeleton, where, self.target)
        return _Plan(
            skeleton,
            where,
            names,
            signature,
            Formulas([((d,),) for d in dims], names),
            Formulas([parameter_bytes(skeleton, where)], names),
        )

    def _values(self, policy: ResolvedPolicy) -> Array:
        kept = policy.kept
        row = [kept.get(name, size) for name, size in self._groups]
        for factor in policy.factors.values():
            row.extend(factor.rank)
        return np.array(row, dtype=np.float64)

    def _classes(self, plan: _Plan, values: Array) -> NDArray[np.int8]:
        return alignment_classes(plan.alignment(values), self.target)

    def _signature(self, plan: _Plan, classes: NDArray[np.int8]) -> str:
        return signature_text([*self._identity, plan.signature, classes.tolist()])

    def _obtain(self, plan: _Plan, classes: NDArray[np.int8], policy: ResolvedPolicy) -> CompiledTemplate:
        def make() -> Template:
            self.asked += 1
            return self._ask(plan, policy, exact)

        signature, exact = self._signature(plan, classes), classes.tobytes() in plan.exact
        if exact:
            signature += str(sorted(unknowns(policy, self.structure).items()))
        return self.store.get(signature, make).compiled(plan.names)

    def _placed(self, plan: _Plan, policy: ResolvedPolicy, graph: Graph) -> tuple[Graph, Placement]:
        """A concrete graph as it is exported, and where its integers are; ncnn's templates see to it."""
        return at_reads(graph, plan.where) if policy.ranges == DYNAMIC else (graph, plan.where)

    def _ask(self, plan: _Plan, policy: ResolvedPolicy, exact: bool) -> Template:
        values = unknowns(policy, self.structure)
        whole = concrete(plan.skeleton.graph, plan.skeleton, values)
        graph, where = self._placed(plan, policy, whole)
        method = self.target.runtime.templates
        if method == "rules":
            from search.rules import rules_template

            return rules_template(graph, plan.skeleton, where, self.target, self.batch)
        if method == "program":
            from search.lowering_ncnn import program_template

            return program_template(graph, plan.skeleton, where, self.batch, self.constants)
        return ask(
            graph,
            where,
            DYNAMIC if policy.ranges == DYNAMIC else self.target.numerics.activations,
            plan.skeleton.sizes,
            plan.skeleton.layer_of,
            method,
            self.batch,
            self.constants,
            None if exact else self._placed(plan, policy, small_graph(plan.skeleton, values))[0],
        )


def _constants(structure: Structure, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Small parameters of no layer: numbers in formulas, indices, which optimisers look at."""
    owned = {p for x in structure.layers for p in (x.weight, x.bias)}
    return {
        k: v
        for k, v in weights.items()
        if k not in owned and k in structure.graph.params and (k.startswith("constant_") or v.numel() == 1)
    }


def _identity(
    structure: Structure, target: Target, batch: int, constants: Mapping[str, Any]
) -> tuple[Any, ...]:
    digest = hashlib.sha256()
    for name in sorted(constants):
        digest.update(name.encode() + constants[name].detach().cpu().numpy().tobytes())
    method = target.runtime.templates
    runtime = {"rules": target.name, "program": target.runtime.name}.get(method) or runtime_key(method)
    numerics = target.numerics.activations
    return (
        TEMPLATE_VERSION,
        structure.graph.digest,
        method,
        runtime,
        numerics,
        batch,
        digest.hexdigest()[:16],
    )
