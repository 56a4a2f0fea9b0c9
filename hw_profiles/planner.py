"""What to measure next: probes where the predictor is unsure, as nn-Meter samples (Zhang et al. 2021).

Without a network at hand the general plan is measured: random chains of kernels, of several drawn always
the ones whose kernels the predictor knows least. With one (kernel batches of policies of interest), every
other probe is a small network around a kernel that matters there: by its share of the latency times its
spread. As the profile grows the model is fitted anew to all that was measured until then.

    planner = Planner(target, interest=[batch], measured=lambda: observations(store.open(facts, 1)))
    profile(device, planner.works(), store, budget_seconds=600, batch=planner.batch)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw_profiles.devices.contract import Work
from hw_profiles.errors import MeasurementError
from hw_profiles.kernel import CONV_OPS, MATMUL_OPS, KernelBatch
from hw_profiles.learned import Learned, Observation, learn
from hw_profiles.probe_chains import Chain, random_probe
from hw_profiles.probes import Graph, probe
from hw_profiles.target import Target

#: Probes of the general plan before anything is chosen.
FIRST = 48
#: Of so many drawn one is measured.
CHOICE = 2
#: The model is fitted anew when so many times the networks are known: fits cost more as profiles grow.
GROWTH = 1.25
#: Runs of a probe in a batch and rounds they come in; two batches at least measure it. Wall time of several
#: threads has fast and slow spells of many runs; rounds that are far apart meet a fast one.
RUNS, ROUNDS = 24, 4
WALL_RUNS, WALL_ROUNDS = 96, 8
#: Squared distance (in units of `residual.FEATURES`) below which two kernels of interest count as one.
_ALIKE = 0.01


def runs_of(threads: int) -> tuple[int, int]:
    """Runs of a network and rounds they come in, by the number of threads."""
    return (RUNS, ROUNDS) if threads == 1 else (WALL_RUNS, WALL_ROUNDS)


@dataclass
class Planner:
    """Yields works without end, in batches of `batch`; whoever profiles ends it by a budget.

    `measured` tells what is known by now; `interest` are kernels of policies that matter, any number of
    batches with any number of policies; `single`: what was learned of one thread, where there are several.
    Deterministic by seed and by what `measured` tells.
    """

    target: Target
    threads: int = 1
    interest: Sequence[KernelBatch] = ()
    measured: Callable[[], Sequence[Observation]] = tuple
    batch: int = 16
    seed: int = 0
    single: Learned | None = None
    asked: set[str] = field(default_factory=set, init=False)
    drawn: int = field(default=0, init=False)

    def works(self) -> Iterator[Work]:
        """Works one by one; before each batch `measured` is asked, and the model fitted to what has come."""
        model, fitted, since = None, 0, 0
        while True:
            if (self.drawn >= FIRST or self.interest) and fitted + since >= GROWTH * fitted:
                known = self.measured()  # which takes longer the more there is: no oftener than it may matter
                if len(known) > GROWTH * fitted:
                    model = learn(
                        known, self.target, self.threads, self.seed, calibrated=False, single=self.single
                    )
                    fitted, since = len(known), 0
            batch = self.next_batch(model)
            since += len(batch)
            yield from batch

    def anchor(self) -> Work:
        """A network of middling size to be measured along with every batch: see `hw_profiles.pace`."""
        return Work("anchor", probe("resnet20", self.seed), self.threads, *runs_of(self.threads))

    def next_batch(self, model: Learned | None) -> list[Work]:
        """The next works by what a model knows; None is the general plan's beginning."""
        model = model if model is not None else learn((), self.target, self.threads)
        wanted = self._of_interest(model, self.batch // 2) if self.interest else []
        while len(wanted) < self.batch:
            wanted.append(self._general(model))
        return wanted

    # ------------------------------------------------------------------------------------ the general plan

    def _general(self, model: Learned) -> Work:
        """The probe that the model is least sure of among the next few."""
        if self.drawn < FIRST or not model.networks:
            return self._work(f"chain#{self.drawn}", random_probe(self._next()))
        seeds = [self._next() for _ in range(CHOICE)]
        probes = [random_probe(seed) for seed in seeds]
        best = int(np.argmax([self._difficulty(model, probe) for probe in probes]))
        return self._work(f"chain#{seeds[best]}", probes[best])

    def _next(self) -> int:
        self.drawn += 1
        return self.seed * 1_000_000 + self.drawn - 1

    def _difficulty(self, model: Learned, probe: bytes) -> float:
        """Expected log spread of a probe as this machine's runtime would run it; least where it cannot."""
        from hw_profiles.onnx_kernels import kernels_of

        try:
            return float(model.price(kernels_of(probe))[1][0])
        except MeasurementError:
            return 0.0

    def _work(self, key: str, probe: bytes) -> Work:
        return Work(key, probe, self.threads, *runs_of(self.threads), kernels=True)

    # ------------------------------------------------------------------------------- the network at hand

    def _of_interest(self, model: Learned, count: int) -> list[Work]:
        """Small networks around the kernels whose spread moves the policies' latencies most."""
        found = []
        for batch, row, k in self._ranked(model):
            key = kernel_key(batch, row, k)
            if key in self.asked:
                continue
            probe = kernel_probe(batch, row, k, self.seed)
            if probe is not None:
                self.asked.add(key)
                found.append(self._work(key, probe))
            if len(found) == count:
                break
        return found

    def _ranked(self, model: Learned) -> Iterator[tuple[KernelBatch, int, int]]:
        """(batch, policy, kernel), the one that matters most first, none much like one before it."""
        places: list[tuple[float, int, int, int]] = []
        shapes: list[NDArray[np.float32]] = []
        for b, batch in enumerate(self.interest):
            costs, _ = model.price(batch)
            view = model.view(batch)
            _, sigma, _, _ = model.residual(view, model.threads)
            kernel = costs.busy_us + costs.overhead_us
            weight = kernel / kernel.sum(axis=1, keepdims=True) * sigma
            shapes.append(view.shapes)
            rows, columns = np.nonzero(weight > 0.0)
            places += [(-float(weight[r, k]), b, int(r), int(k)) for r, k in zip(rows, columns, strict=True)]
        taken: dict[str, list[NDArray[np.float32]]] = {}
        for _, b, r, k in sorted(places):
            kind, x = self.interest[b].kinds[k], shapes[b][r, k]
            near = taken.setdefault(f"{kind.op}/{kind.precision}", [])
            if all(float(((x - y) ** 2).sum()) > _ALIKE for y in near):
                near.append(x)
                yield self.interest[b], r, k


def kernel_key(batch: KernelBatch, row: int, k: int) -> str:
    """Name of a kernel's probe, the same for the same shapes."""
    kind = batch.kinds[k]
    names = ("batch", "cin", "cout", "groups", "kernel_h", "kernel_w", "stride_h", "in_h", "in_w")
    shape = "x".join(f"{batch[name][row, k]:g}" for name in names)
    return f"kernel#{kind.op}/{kind.precision}/{'+'.join(kind.fused)}/{shape}"


def kernel_probe(batch: KernelBatch, row: int, k: int, seed: int = 0) -> bytes | None:
    """A small network around one kernel; None for kinds that only come between others (reorders, adds)."""
    kind = batch.kinds[k]
    shape = {name: int(batch[name][row, k]) for name in batch.columns}
    share = 1.0 if kind.precision == "int8" else 0.0
    g = Chain(np.random.default_rng([seed, k]), act_share=share)
    g.layers_only = share if kind.op == "MatMulIntegerToFloat" else 0.0
    if kind.op in CONV_OPS and kind.op != "ConvTranspose":
        g.shapes["input"] = (shape["batch"], shape["cin"], shape["in_h"], shape["in_w"])
        return g.finish(_convolution(g, g.quantised("input"), shape, kind.fused), "input")
    if kind.op in MATMUL_OPS and kind.weight_bearing:
        rows = shape["in_h"] * shape["in_w"]
        if kind.op == "DynamicQuantizeMatMul":
            found = Graph(g.rng, dynamic=True, shapes={"input": (shape["batch"], rows, shape["cin"])})
            return found.finish(found.project("input", shape["cout"]), "input")
        if "Gemm" in kind.op:
            g.shapes["input"] = (max(shape["batch"], rows), shape["cin"])
            return g.finish(g.dense(g.quantised("input"), shape["cout"], "relu" in kind.fused), "input")
        g.shapes["input"] = (shape["batch"], rows, shape["cin"])
        x = "input" if g.layers_only else g.quantised("input")
        if g.layers_only:
            g.act_share = 0.0
        return g.finish(g.project(x, shape["cout"]), "input")
    return None


def _convolution(g: Chain, x: str, shape: dict[str, int], fused: Sequence[str]) -> str:
    window = (shape["kernel_h"], shape["kernel_w"])
    arguments: dict[str, Any] = {"stride": shape["stride_h"], "groups": shape["groups"]}
    relu = 6 if "clip" in fused else "relu" in fused
    g.padded = (shape["out_h"] - 1) * shape["stride_h"] + shape["kernel_h"] > shape["in_h"]
    return g.conv(x, shape["cout"], window, relu=relu, **arguments)


__all__ = ["Planner", "kernel_key", "kernel_probe"]
