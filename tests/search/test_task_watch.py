"""The task on a smartwatch's recordings: people kept apart, the network trained once, its file checked."""

import importlib.util
from pathlib import Path

import pytest
import torch

from compressors.space import PolicySpace
from hw_profiles.target import load_target
from search.abilities import abilities_of
from search.errors import InputError
from search.score import Scorer
from search.task import fingerprint, load_task, score_network
from search.tasks import watch
from search.tasks.networks import watch_net
from search.tasks.packages import package_file

pytest.importorskip("seglearn")


def test_nobody_is_in_two_parts_and_windows_are_whole() -> None:
    parts = watch.recordings()
    assert {name: len(part.signals) for name, part in parts.items()} == {
        "train": 84, "validation": 28, "test": 28
    }  # fmt: skip
    people = [set(who) for who in watch.PEOPLE.values()]
    assert set.union(*people) == set(range(1, 11))
    assert sum(map(len, people)) == 10
    train = parts["train"].windows()
    assert train.inputs[0].shape == (2669, 6, 100)
    assert sorted(train.targets.unique().tolist()) == list(range(7))
    signal = parts["train"].signals[0]
    assert torch.equal(train.inputs[0][1], signal[:, 50:150])
    together = torch.cat(list(parts["train"].signals), 1)
    assert float(together.mean().abs()) < 1e-5
    assert torch.allclose(together.std(1), torch.ones(6), atol=1e-3)


def test_training_windows_are_those_of_their_recording_and_repeat_by_seed() -> None:
    part = watch.Recordings([torch.zeros(6, 300), torch.full((6, 120), 10.0)], [0, 1])
    one, same, other = (next(part.batches()(seed, 256)) for seed in (1, 1, 2))
    assert torch.equal(one[0][0], same[0][0])
    assert not torch.equal(one[0][0], other[0][0])
    (x,), labels = one
    assert labels is not None
    means = x.mean((1, 2))
    assert bool((means[labels == 0].abs() < 1).all())
    assert bool((means[labels == 1] > 7).all())
    # as often as they are long: 201 to 21
    assert 0.02 < float(labels.float().mean()) < 0.25


def test_the_network_is_as_described() -> None:
    network = watch_net()
    assert sum(p.numel() for p in network.parameters()) == 53063
    assert network.eval()(torch.zeros(3, 6, 100)).shape == (3, 7)


def test_another_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "DATA_SHA256", "0" * 64)
    with pytest.raises(InputError, match="not the one this task was made with"):
        load_task("seglearn-watch")
    with pytest.raises(InputError, match="cannot be read"):
        package_file("seglearn", "data/none.npy", "0" * 64, watch.INSTALL)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(InputError, match=r"not installed: pip install 'tailorbird\[examples\]'") as caught:
        load_task("seglearn")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_the_task_is_trained_once_and_scores_what_facts_say() -> None:
    task = load_task("seglearn-watch")
    assert fingerprint(task) == fingerprint(load_task("seglearn"))
    assert float(score_network(task, task.network, task.validation).mean()) > 0.85
    assert task.test is not None
    assert float(score_network(task, task.network, task.test).mean()) > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("target", ["raspberry-pi-4", "fpga-bitfusion"])
def test_conv1d_is_pruned_factorised_and_rounded(target: str) -> None:
    abilities = abilities_of(load_target(target))
    scorer = Scorer.of(load_task("seglearn-watch"), abilities.numerics)
    space = PolicySpace(scorer.network.structure, abilities)
    assert {c.kind for c in space.choices} >= {"keep", "rank"}
    bits = max(abilities.act_bits)
    base = scorer.score(space.resolve(space.uniform(1.0, bits, 8)))
    half = scorer.score(space.resolve(space.uniform(0.5, bits, 8)))
    assert base.value > 0.84
    assert half.value < base.value + 0.02
    assert (base.samples, half.samples) == (1006, 1006)
