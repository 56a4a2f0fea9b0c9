"""What bears weights and cannot be compressed: listed with its bytes, an error with `--strict`."""

from __future__ import annotations

import pytest
import torch

from compressors.apply import compress
from compressors.network import Network
from compressors.space import Abilities, PolicySpace
from hw_profiles.target import load_target
from search.abilities import abilities_of
from search.config import make_config
from search.errors import InputError
from search.export_onnx import export_model
from search.setup import load_setup, untouched
from search.task import Split, Task
from search.tasks.metrics import metric_by_name
from search.verify import verify
from tests.compressors.helpers import TWELVE, network_of
from tests.compressors.loose_networks import loose_case


def task_of(name: str) -> Task:
    """The network with labels it gives itself."""
    module, x = loose_case(name)
    with torch.no_grad():
        labels = module(x).argmax(1)
    return Task(name, module, (x[:1],), (x,), Split((x,), labels), metric_by_name("top1"))


@pytest.mark.parametrize("name", ["tokens", "image"])
def test_embeddings_tables_norms_and_scales_are_no_error(name: str) -> None:
    setup = load_setup(make_config({"target": "local", "strict": True}), task_of(name))
    assert untouched(setup.space) == []
    assert len(setup.space.structure.notes) >= 3


def test_a_free_matrix_that_multiplies_is_an_error_with_strict() -> None:
    setup = load_setup(make_config({"target": "local"}), task_of("mixer"))
    (name, why), *rest = untouched(setup.space)
    assert (name, rest) == ("mix", [])
    assert why.startswith("144 bytes stay as they are: matmul")
    with pytest.raises(InputError, match="nothing can be done to layer 'mix': 144 bytes") as caught:
        load_setup(make_config({"target": "local", "strict": True}), task_of("mixer"))
    assert caught.value.exit_code == 3
    skipping = load_setup(make_config({"target": "local", "skip": "fc"}), task_of("mixer"))
    assert [n for n, _ in untouched(skipping.space)] == ["mix"]


@pytest.mark.parametrize("name", TWELVE)
def test_something_can_be_done_to_every_layer_of_the_twelve(name: str) -> None:
    space = PolicySpace(network_of(name).structure, abilities_of(load_target("local")))
    assert untouched(space) == []
    only = PolicySpace(space.structure, Abilities(methods=frozenset({"factorize"})))
    ranked = {c.subject for c in only.choices}
    left = dict(untouched(only))
    assert set(left) == set(space.structure.layer) - ranked
    assert all("bytes stay as they are: " in why for why in left.values())


@pytest.mark.parametrize("name", ["tokens", "image", "mixer"])
def test_such_networks_are_exported_and_verified(name: str) -> None:
    module, x = loose_case(name)
    network = Network.from_module(module, (x[:2],), (x,))
    abilities = abilities_of(load_target("local"))
    space = PolicySpace(network.structure, abilities)
    for seed in range(3):
        point = torch.rand(space.dimension, generator=torch.Generator().manual_seed(seed)).numpy()
        compressed = compress(network, space.resolve(space.decode(point)), abilities.numerics)
        found = verify(compressed, export_model(compressed), (x,))
        assert found.samples == len(x)
        assert found.agree >= found.samples - 1
