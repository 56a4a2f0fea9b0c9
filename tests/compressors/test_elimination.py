from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressors import elimination
from compressors.elimination import elimination_order
from compressors.graph import ChannelGroup
from compressors.network import Network


def network_with(width: int) -> Network:
    """Two linear layers with ``width`` channels between them, some of which are all but the same."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(24, width), nn.Tanh(), nn.Linear(width, 40)).eval()
    x = torch.randn(400, 24)
    return Network.from_module(module, (x[:1],), (x,))


def between(network: Network) -> ChannelGroup:
    (group,) = network.structure.groups
    return group


def order_of(network: Network) -> Tensor:
    found = elimination_order(network.structure, network.weights, network.covariances(), between(network))
    assert found is not None
    return found


@pytest.mark.parametrize("block", [1, 7, 64])
def test_matrices_updated_in_blocks_give_the_same_order(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    network = network_with(150)
    plain = order_of(network)
    assert sorted(plain.tolist()) == list(range(150))
    monkeypatch.setattr(elimination, "WIDE", 100)
    monkeypatch.setattr(elimination, "BLOCK", block)
    assert order_of(network).tolist() == plain.tolist()


def test_costs_are_those_of_removing_each_unit_and_solving_anew() -> None:
    """Derived anew: the least-squares error of the layer's output with one unit more taken away."""
    network = network_with(20)
    group = between(network)
    layer = network.structure.layers[1]
    reader = elimination._WideReader(
        elimination._Reader(network.structure, network.weights, network.covariances(), group, layer)
    )
    tensor = network.structure.graph.by_name[layer.nodes[0]].inputs[0]
    cov = network.covariances()[tensor]
    ridged = cov + 3e-3 * cov.diagonal().mean() * torch.eye(20, dtype=cov.dtype)
    weight = network.weights[layer.weight].double()

    def error(gone: list[int]) -> float:
        """tr(W_R (H^-1_RR)^-1 W_R') of all that went, from the first inverse and weight."""
        inverse = torch.linalg.inv(ridged)[gone][:, gone]
        lost = weight[:, gone]
        return float((lost @ torch.linalg.inv(inverse) @ lost.T).trace())

    gone = [3, 11, 17]
    for unit in gone:
        reader.remove(unit)
    left = [u for u in range(20) if u not in gone]
    costs = reader.costs(left) * reader.total
    for unit, cost in zip(left, costs.tolist(), strict=True):
        assert cost == pytest.approx(error([*gone, unit]) - error(gone), rel=1e-6, abs=1e-9)
