"""Doing a policy to a network: sizes, determinism, removed blocks, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.apply import compress
from compressors.compressed import Compressed
from compressors.errors import NumericsError, PolicyError
from compressors.execute import run
from compressors.network import Network, batched
from compressors.policy import Policy, ResolvedPolicy
from compressors.resolve import Numerics
from compressors.simulate import answers, simulate
from compressors.skeleton import concrete, placement, unknowns
from tests.compressors.helpers import ALL, MIXED, TWELVE, batches, network_of, random_policy, space_of
from tests.compressors.networks import inputs_for

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_random_policies_give_working_networks(name: str, seed: int) -> None:
    network = network_of(name)
    policy = random_policy(space_of(name, MIXED), seed)
    small = compress(network, policy, Numerics())
    skeleton = network.skeletons.of(policy)
    graph = concrete(skeleton.graph, skeleton, unknowns(policy, network.structure))
    assert small.graph == graph
    assert {p: tuple(small.weights[p].shape) for p in graph.params} == {
        p: v.shape for p, v in graph.params.items()
    }
    shapes: dict[str, tuple[int, ...]] = {}

    def look(tensor: str, value: Tensor) -> Tensor:
        shapes[tensor] = tuple(value.shape)
        return value

    batch = batches(name)[-1]
    run(graph, small.weights, inputs_for(name, batch), look)
    assert shapes == {t: tuple(d if d >= 0 else -d * batch for d in graph.tensors[t].shape) for t in shapes}
    for y, whole in zip(simulate(small, inputs_for(name, batch)), _dense(name, batch), strict=True):
        assert y.shape == whole.shape
        assert bool(torch.isfinite(y).all())
    where = placement(network.structure, skeleton, policy)
    assert set(small.activations) == set(where.tensors)
    assert {p: c.bits for p, c in small.codes.items()} == dict(where.params)


def _dense(name: str, batch: int) -> tuple[Tensor, ...]:
    network = network_of(name)
    return run(network.structure.graph, network.weights, inputs_for(name, batch))


@pytest.mark.parametrize("name", TWELVE)
def test_the_dense_policy_changes_no_answer(name: str) -> None:
    network = network_of(name)
    policy = space_of(name).resolve(Policy())
    small = compress(network, policy, Numerics())
    x = inputs_for(name, 5)
    for a, b in zip(simulate(small, x), run(network.structure.graph, network.weights, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert small.activations == {}
    assert small.codes == {}


def fingerprint(small: Compressed) -> str:
    """sha256 of all weights, codes and quantisers."""
    h = hashlib.sha256()
    for name in sorted(small.weights):
        h.update(name.encode() + small.weights[name].detach().contiguous().numpy().tobytes())
    for name in sorted(small.codes):
        h.update(small.codes[name].scale.contiguous().numpy().tobytes())
    h.update(repr(sorted(small.activations.items())).encode())
    return h.hexdigest()


PROGRAM = """
import json, sys, torch
torch.set_num_threads(1)
from compressors.apply import compress
from compressors.policy import ResolvedPolicy
from compressors.resolve import Numerics
from tests.compressors.helpers import network_of
from tests.compressors.test_apply import fingerprint
for name, doc in json.load(sys.stdin):
    print(fingerprint(compress(network_of(name), ResolvedPolicy.from_dict(doc), Numerics())))
"""


def test_the_same_policy_gives_the_same_network_in_a_fresh_process() -> None:
    cases = [
        (n, random_policy(space_of(n, MIXED), 11)) for n in ("residual", "transformer", "shared-weights")
    ]
    here = [fingerprint(compress(network_of(n), p, Numerics())) for n, p in cases]
    again = [fingerprint(compress(network_of(n), p, Numerics())) for n, p in cases]
    assert here == again
    text = json.dumps([(n, p.to_dict()) for n, p in cases])
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=text,
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == here
    assert len(set(here)) == len(cases)


def test_a_removed_block_passes_its_input_on() -> None:
    network = network_of("residual")
    policy = space_of("residual").resolve(Policy(removed=frozenset({"units.2", "units.3"})))
    small = compress(network, policy, Numerics())
    assert not any("units.2" in w or "units.3" in w for w in small.weights)
    module, _ = ALL["residual"]()
    x = inputs_for("residual", 4)[0]
    assert not any(n.op == "conv" and "units_2" in n.name for n in small.graph.nodes)
    # nothing before the removed blocks changes, and no batch-norm follows them: the trained statistics stay
    module.eval()
    with torch.no_grad():
        for unit in list(module.units)[2:]:
            unit.conv2[1].weight.zero_()
            unit.conv2[1].bias.zero_()
            unit.project = torch.nn.Identity()
        calibration = network.calibration[0]
        expected = module(calibration)
    found = simulate(small, (calibration,))[0]
    head_shift = (found - expected).mean(0)
    torch.testing.assert_close(found - head_shift, expected, rtol=2e-3, atol=2e-3)
    assert simulate(small, (x,))[0].shape == (4, 10)


def test_blocks_removed_around_each_other() -> None:
    network = network_of("transformer")
    for removed in ({"unit"}, {"encoder", "encoder.self_attn"}, {b.name for b in network.structure.blocks}):
        policy = space_of("transformer").resolve(Policy(removed=frozenset(removed)))
        small = compress(network, policy, Numerics())
        dead = {x for r in removed for x in network.structure.block[r].layers}
        assert not any(w.removesuffix(".weight") in dead for w in small.weights)
        assert not dead & set(policy.weight_bits)
        assert simulate(small, inputs_for("transformer", 2))[0].shape == (2, 10)
        assert len(small.graph.nodes) < len(network.structure.graph.nodes)


def test_first_order_scores_follow_a_gradient_by_hand() -> None:
    network = network_of("plain")
    module, _ = ALL["plain"]()
    logits = module(network.calibration[0])
    F.cross_entropy(logits, logits.detach().argmax(1)).backward()
    found = network.gradients()
    torch.testing.assert_close(found["hidden.weight"], module.hidden.weight.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found["body.2.0.weight"], module.body[2][0].weight.grad, rtol=1e-3, atol=1e-6)
    assert network.gradients() is found


def test_bad_criteria_ranges_and_weights_are_refused() -> None:
    network = network_of("plain")
    policy = random_policy(space_of("plain"), 1)
    assert any(k < network.structure.group[g].size for g, k in policy.kept.items())
    with pytest.raises(PolicyError, match="Did you mean 'taylor'"):
        compress(network, ResolvedPolicy(**{**policy.__dict__, "criterion": "tailor"}), Numerics())
    integer = space_of("plain").resolve(space_of("plain").uniform(1.0, act_bits=8))
    with pytest.raises(PolicyError, match="Did you mean 'mse'"):
        compress(network, ResolvedPolicy(**{**integer.__dict__, "ranges": "mss"}), Numerics())
    bad = {**network.weights, "hidden.weight": torch.full((64, 512), float("nan"))}
    broken = Network(network.structure, bad, network.calibration, network.skeletons)
    with pytest.raises(NumericsError, match="NaN"):
        compress(broken, integer, Numerics())
    poisoned = Network(
        network.structure, network.weights, (torch.full((4, 1, 16, 16), float("nan")),), network.skeletons
    )
    with pytest.raises(NumericsError, match="NaN"):
        compress(poisoned, integer, Numerics())


def test_answers_come_in_batches_of_any_size() -> None:
    network = network_of("fixed-batch")
    small = compress(network, random_policy(space_of("fixed-batch"), 2), Numerics())
    x = inputs_for("fixed-batch", 8)
    whole = answers(small, x)[0]
    assert whole.shape == (8, 10)
    torch.testing.assert_close(whole[2:4], simulate(small, (x[0][2:4],))[0])
    assert batched(network.structure.graph, network.weights, x)[0].shape == (8, 10)
    plain = compress(network_of("plain"), random_policy(space_of("plain"), 2), Numerics())
    y = inputs_for("plain", 7)
    torch.testing.assert_close(answers(plain, y, batch=3)[0], simulate(plain, y)[0], rtol=1e-4, atol=1e-5)
