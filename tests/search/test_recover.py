"""Recovery of networks whose batch-norms no layer can take up, at few bits."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from compressors import quantize
from compressors.apply import finish, reduced
from compressors.policy import ResolvedPolicy
from compressors.space import PolicySpace
from hw_profiles.target import load_target
from search import distil
from search import recover as recover_module
from search.abilities import abilities_of
from search.distil import Distiller, float_stage, folded, rounded_stage
from search.errors import InputError
from search.recover import Recovery, recover
from search.recovering import BEST, TRAINED, State
from search.score import Scorer
from search.task import Split, Task
from search.tasks.metrics import METRICS
from search.tasks.training import cross_entropy


class ReluFirst(nn.Module):
    """(N, 3, 8, 8) -> (N, 4): convolution, ReLU, batch-norm, as CREPE has it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.first = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.two, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(torch.relu(self.one(x)))
        x = self.second(torch.relu(self.two(x)))
        answer: torch.Tensor = self.head(x.mean((2, 3)))
        return answer


def make() -> Task:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ReluFirst()
        with torch.no_grad():
            for _ in range(20):
                network.train()(torch.randn(64, 3, 8, 8))
        x = torch.randn(500, 3, 8, 8)
        with torch.no_grad():
            labels = network.eval()(x).argmax(1)
    train, validation = Split((x[:300],), labels[:300]), Split((x[300:],), labels[300:])
    return Task("relu-first", network, (x[:1],), (x[:128],), validation, METRICS["top1"], train=train)


def test_few_bits_behind_a_batch_norm_that_stays() -> None:
    task = make()
    abilities = abilities_of(load_target("fpga-bitfusion"))
    scorer = Scorer.of(task, abilities.numerics)
    space = PolicySpace(scorer.network.structure, abilities)
    policy = space.resolve(space.uniform(0.75, 4, 4))
    assert min(policy.weight_bits.values()) == 4
    floats = reduced(scorer.network, policy)
    best = finish(scorer.network, policy, abilities.numerics, floats)
    norms = [n for n in best.graph.nodes if n.op == "batch_norm"]
    assert norms
    start = folded(scorer.network, policy, floats)
    stage = rounded_stage(scorer.network, policy, abilities.numerics, start, best)
    outputs = stage.forward(task.validation.inputs)
    assert task.validation.targets is not None
    cross_entropy(outputs, task.validation.targets).backward()
    trained = {k for k, v in stage.leaves.items() if v.requires_grad}
    statistics = {t for n in norms for t in n.inputs[3:5]}
    assert {n.inputs[1] for n in norms} <= trained
    assert not statistics & trained
    assert all(stage.leaves[k].grad is not None for k in trained)
    assert torch.equal(stage.network().weights[norms[0].inputs[3]], best.weights[norms[0].inputs[3]])


def test_recovery_is_never_worse_than_its_start() -> None:
    task = make()
    abilities = abilities_of(load_target("fpga-bitfusion"))
    scorer = Scorer.of(task, abilities.numerics)
    space = PolicySpace(scorer.network.structure, abilities)
    policy = space.resolve(space.uniform(0.5, 4, 4))
    found = recover(task, scorer.network, policy, abilities.numerics, 0.5)
    assert found.after >= found.before


def problem(kept: float = 0.5) -> tuple[Task, Scorer, ResolvedPolicy]:
    abilities = abilities_of(load_target("fpga-bitfusion"))
    task = make()
    scorer = Scorer.of(task, abilities.numerics)
    space = PolicySpace(scorer.network.structure, abilities)
    return task, scorer, space.resolve(space.uniform(kept, 4, 4))


def test_a_recovery_goes_on_where_another_process_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every comparison of two cycles through both stages: the same weights, moments, networks, counts."""
    ticks = count()
    monkeypatch.setattr(recover_module, "time", SimpleNamespace(perf_counter=lambda: 0.01 * next(ticks)))
    task, scorer, policy = problem()
    where = (task, scorer.network, policy, scorer.numerics, 2.0)
    one = Recovery(*where, shares=(0.4, 0.6))
    parts = []
    while not one.over:
        one.advance()
        folder = tmp_path / f"{len(parts)}"
        folder.mkdir()
        state = one.left()
        state.write(folder, policy)
        assert {p.suffix for p in folder.iterdir()} == {".safetensors"}
        back = State.read(folder, scorer.network, policy, scorer.numerics)
        assert (back.part, back.steps, back.checks, back.spent) == (
            state.part,
            state.steps,
            state.checks,
            state.spent,
        )
        for a, b in (
            (state.floats, back.floats),
            (state.leaves or {}, back.leaves or {}),
            (state.moments, back.moments),
            (state.best.compressed.weights, back.best.compressed.weights),
            (state.reference.compressed.weights, back.reference.compressed.weights),
        ):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[k], b[k]) for k in a)
        assert back.rate == state.rate
        assert back.reference.compressed.activations == state.reference.compressed.activations
        again = Recovery(*where, shares=(0.4, 0.6), state=back)
        assert again.progress == one.progress
        assert again.state.best.value == one.state.best.value
        parts.append(back.part)
        if back.moments:
            again.advance()
            assert again.state.steps >= back.steps
            assert again.result.after >= one.state.best.value
    assert parts[-1] == 4
    assert sorted(set(parts)) == list(range(5))


def test_what_was_cut_short_is_refused(tmp_path: Path) -> None:
    _, scorer, policy = problem()
    one = Recovery(problem()[0], scorer.network, policy, scorer.numerics, 0.1)
    one.left().write(tmp_path, policy)
    where = (scorer.network, policy, scorer.numerics)
    with pytest.raises(InputError, match="another policy"):
        State.read(tmp_path, scorer.network, problem(1.0)[2], scorer.numerics)
    for name in (BEST, TRAINED):
        content = (tmp_path / name).read_bytes()
        for cut in (0, 7, len(content) // 2, len(content) - 1):
            (tmp_path / name).write_bytes(content[:cut])
            with pytest.raises(InputError):
                State.read(tmp_path, *where)
        (tmp_path / name).unlink()
        with pytest.raises(InputError):
            State.read(tmp_path, *where)
        (tmp_path / name).write_bytes(content)
    assert State.read(tmp_path, *where).before == one.state.before


def test_training_that_diverges_costs_nothing() -> None:
    task, scorer, policy = problem()
    one = Recovery(task, scorer.network, policy, scorer.numerics, 1.0, rate=1e30)
    while not one.over:
        one.advance()
    assert one.result.after >= one.result.before  # short cycles at sane rates may have helped
    assert all(bool(torch.isfinite(v).all()) for v in one.result.floats.values() if v.is_floating_point())


def test_the_learning_rate_is_the_one_that_a_short_cycle_shows_to_be_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, scorer, policy = problem()
    where = (scorer.network, policy, scorer.numerics)
    for rates, wanted in (((1e-9, 3e-3, 1e4), 3e-3), ((1e-9, 1e4), 1e-9)):
        monkeypatch.setattr(distil, "RATES", rates)
        distiller, stage = Distiller(task, scorer.network, 0), float_stage(*where, reduced(*where[:2]))
        before = distiller._judged(stage, [next(task.batches(7, 64))])
        assert distiller.tried_rate(stage, 1.0, 0.1) == wanted
        after = distiller._judged(stage, [next(task.batches(7, 64))])
        assert after < before or wanted == 1e-9
        assert stage.finite


def test_slow_steps_get_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    task, scorer, policy = problem()
    where = (scorer.network, policy, scorer.numerics)
    seen = list[int]()

    def batches(seed: int, size: int) -> Any:
        for inputs, targets in task.batches(seed, size):
            seen.append(len(inputs[0]))
            yield inputs, targets

    watched = replace(task, train_batches=batches)
    for step, seconds, wanted in ((1e-3, 10.0, 64), (0.1, 10.0, 32), (5.0, 60.0, 16)):
        distiller, stage = Distiller(watched, scorer.network, 0), float_stage(*where, reduced(*where[:2]))
        monkeypatch.setattr(distiller, "_timed", lambda _, step=step: step)
        assert distiller.warm(stage, seconds) == step
        assert distiller.step(stage, distiller.optimiser(stage), 1e-3)
        assert seen[-1] == wanted


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, but those that move one and those of plain numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_flatten((args, kwargs or {}))[0]
        devices = {x.device.type for x in leaves if isinstance(x, torch.Tensor) and x.dim()}
        assert len(devices) < 2 or "copy" in func.__name__, f"{func} on {devices}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["float", "rounded"])
def test_a_step_lies_on_one_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's device without values stands for a GPU: nothing of a step is on the CPU."""
    task, scorer, policy = problem()
    task = replace(task, loss=cross_entropy)
    other = torch.device("meta")
    floats = reduced(scorer.network, policy)
    best = finish(scorer.network, policy, scorer.numerics, floats)
    where = (scorer.network, policy, scorer.numerics)
    # the one value that is asked for
    monkeypatch.setattr(quantize.torch, "isfinite", lambda x: torch.ones(()))
    with OneDevice():
        with pytest.raises(AssertionError, match="convolution"):
            nn.functional.conv2d(torch.ones(1, 1, 3, 3, device=other), torch.ones(1, 1, 3, 3))
        distiller = Distiller(task, scorer.network, 0, other)
        if kind == "float":
            stage = float_stage(*where, floats, other)
        else:
            stage = rounded_stage(*where, folded(scorer.network, policy, floats), best, other)
        adam = distiller.optimiser(stage)
        assert distiller.step(stage, adam, 0.01)
    assert all(v.grad is not None and v.grad.device == other for v in stage.trained.values())
    assert all(adam.state[v]["exp_avg"].device == other for v in stage.trained.values())
