"""Values on their way: large tensors are shared where they lie, small ones copied, layouts kept."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import pytest
import torch

from search.errors import InputError
from search.score import Scorer
from search.task import TaskSpec, load_task
from search.travel import SHARED_BYTES, own_modules, pack, unpack
from tests.search.test_score import ABILITIES, policies_of

SPEC = TaskSpec(name=f"{Path(__file__).parent / 'scoring_task.py'}:make_task")
MANY = SHARED_BYTES // 4


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(4, 8, 4, MANY // 128).contiguous(memory_format=torch.channels_last),
        torch.arange(2 * MANY).reshape(2, -1).t(),
        torch.arange(4 * MANY, dtype=torch.float32)[::2],  # with holes
        torch.arange(4 * MANY, dtype=torch.bfloat16)[MANY:],
        torch.arange(8 * MANY) % 3 == 0,
    ],
    ids=["channels last", "transposed", "holes", "bfloat16", "bool"],
)  # fmt: skip
def test_large_tensors_come_back_as_they_were(tensor: torch.Tensor) -> None:
    packed = pack({"one": tensor, "again": tensor, "small": tensor.flatten()[:3]})
    found = unpack(packed)
    assert len(packed.shared) == 1
    assert torch.equal(found["one"], tensor)
    assert torch.equal(found["small"], tensor.flatten()[:3])
    assert found["one"] is not found["again"]
    assert found["one"].data_ptr() == found["again"].data_ptr() == packed.shared[0].ctypes.data
    if tensor.is_contiguous(memory_format=torch.channels_last) and tensor.dim() == 4:
        assert found["one"].stride() == tensor.stride()


def test_a_scorer_scores_alike_on_the_other_side_and_leaves_the_module_behind() -> None:
    scorer = Scorer.of(load_task(SPEC), ABILITIES.numerics)
    policies = policies_of(scorer)
    expected = [scorer.score(p, 0.9).value for p in policies]
    packed = pack(scorer.for_workers(), own_modules(SPEC))
    assert b"nn.modules.conv" not in packed.body
    found = unpack(packed)
    assert [found.score(p, 0.9).value for p in policies] == expected
    assert scorer.task.spec is not None


def test_what_cannot_travel_is_told_in_a_line() -> None:
    with pytest.raises(InputError, match="cannot be sent to workers") as caught:
        pack({"a lock": threading.Lock()})
    assert caught.value.hint is not None
    assert "\n" not in caught.value.message
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(pack(torch.zeros(MANY)).body)  # noqa: S301
