"""What trainings ask a cluster for: they fit, all at once, and leave nothing that they could have used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.shares import Share, share_of


@pytest.mark.parametrize(
    ("nodes", "count", "most", "expected"),
    [
        ([{"CPU": 2.0}], 2, 2, Share(1.0)),
        ([{"CPU": 2.0}], 3, 2, Share(0.5)),
        ([{"CPU": 2.0}], 1, 2, Share(2.0)),
        ([{"CPU": 16.0}], 3, 16, Share(5.0)),
        ([{"CPU": 16.0}], 3, 6, Share(2.0)),
        ([{"CPU": 4.0}, {"CPU": 4.0}, {"CPU": 4.0}], 2, 12, Share(4.0)),
        ([{"CPU": 1.0}, {"CPU": 8.0}], 3, 9, Share(2.0)),
        ([{"CPU": 4.0, "GPU": 1.0}], 1, 4, Share(4.0, 1.0)),
        ([{"CPU": 4.0, "GPU": 1.0}], 3, 4, Share(1.0, 0.3333)),
        ([{"CPU": 4.0, "GPU": 2.0}, {"CPU": 32.0}], 2, 8, Share(2.0, 1.0)),
        ([{"CPU": 4.0, "GPU": 8.0}], 2, 4, Share(2.0, 1.0)),
        ([{"GPU": 1.0}, {"CPU": 3.0}], 3, 3, Share(1.0)),
        ([{"CPU": 2.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}], 2, 1, Share(0.5, 1.0)),
        ([{"CPU": 0.0}], 2, 4, Share(0.5)),
        ([], 3, 4, Share(0.3333)),
    ],
)
def test_shares(nodes: list[dict[str, float]], count: int, most: int, expected: Share) -> None:
    assert share_of(nodes, count, most) == expected


@given(
    st.lists(
        st.fixed_dictionaries({"CPU": st.integers(1, 40), "GPU": st.integers(0, 8)}), min_size=1, max_size=5
    ),
    st.integers(1, 9),
    st.integers(1, 64),
)
def test_all_fit_at_once(nodes: list[dict[str, int]], count: int, most: int) -> None:
    """Laid on the nodes one by one, every training finds room, and all of them stay below the limit."""
    share = share_of(nodes, count, most)
    assert share.cpus > 0
    assert share.cpus * count <= most + 1e-9
    left = [{k: float(v) for k, v in node.items()} for node in nodes]
    for _ in range(count):
        room = next(
            (n for n in left if n["CPU"] >= share.cpus - 1e-9 and n["GPU"] >= share.gpus - 1e-9), None
        )
        assert room is not None
        room["CPU"] -= share.cpus
        room["GPU"] -= share.gpus
    if sum(node["GPU"] for node in nodes) >= count:
        assert share.gpus == 1.0
