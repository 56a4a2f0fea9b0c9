"""The fit over many boards: it recovers made-up constants, borrows for boards with few rows, no bad rows."""

from __future__ import annotations

import numpy as np

from hw_profiles.boards import all_boards
from hw_profiles.fleet import Noise, Prior, Spread, fit_fleet
from hw_profiles.kernel import Array

NETWORKS, BOARDS, COUNTS = 24, 30, 4


def _made_up(seed: int) -> tuple[Array, Array, Array]:
    """(ms (D, N), counts (D, N, K), log constants (D, K)) of boards that are alike up to a speed."""
    rng = np.random.default_rng(seed)
    counts = np.exp(rng.normal(0.0, 1.0, (NETWORKS, COUNTS)))
    constants = (
        np.array([0.0, 1.0, -1.0, 0.5]) + rng.normal(0, 1, (BOARDS, 1)) + rng.normal(0, 0.1, (BOARDS, COUNTS))
    )
    every = np.broadcast_to(counts, (BOARDS, NETWORKS, COUNTS))
    ms = np.einsum("dnk,dk->dn", every, np.exp(constants)) * np.exp(rng.normal(0, 0.02, (BOARDS, NETWORKS)))
    return ms, every, constants


def _prior() -> Prior:
    wide = Spread(0.5, 0.5, 0.5)
    return Prior(
        np.zeros(COUNTS), ((0, 1), (2, 3)), (0,), board=Spread(0.1, 0.1, 0.1), group=wide, table=wide
    )


def test_constants_and_left_out_networks_are_recovered() -> None:
    ms, counts, constants = _made_up(0)
    hidden = ms.copy()
    hidden[:, 3] = np.nan
    fleet = fit_fleet(
        hidden, counts, [0] * BOARDS, _prior(), Noise(row=0.03, network=0.03, network_in_group=0.02)
    )
    assert np.median(np.abs(fleet.log_constants - constants)) < 0.1
    assert np.median(np.abs(fleet.log_ms(counts)[:, 3] - np.log(ms[:, 3]))) < 0.06
    assert fleet.network[3] == 0.0


def test_a_board_with_one_row_borrows_from_the_others_and_a_bad_row_does_not_spoil_it() -> None:
    ms, counts, _ = _made_up(1)
    hidden = ms.copy()
    hidden[0, 1:] = np.nan
    hidden[1, 5] *= 20.0
    fleet = fit_fleet(hidden, counts, [0] * BOARDS, _prior())
    errors = np.abs(fleet.log_ms(counts) - np.log(ms))
    assert np.median(errors[0, 1:]) < 0.15
    assert np.median(np.delete(errors[1], 5)) < 0.1
    assert np.isfinite(fleet.log_constants).all()


def test_ratios_are_held_to_their_base() -> None:
    ms, counts, constants = _made_up(2)
    base = constants + 0.4
    tight = Spread(0.05, 0.05, 0.05)
    prior = Prior(np.full(COUNTS, -0.4), ((0, 1),), (0,), board=tight, group=tight, table=tight, speed=0.05)
    fleet = fit_fleet(np.full_like(ms, np.nan), counts, [0] * BOARDS, prior, relative_to=base)
    np.testing.assert_allclose(fleet.log_constants, constants, atol=1e-6)
    assert not fleet.network.any()


def test_published_settings_pair_integers_with_their_floats() -> None:
    boards = all_boards()
    assert len(boards.floats) == 124
    assert len(boards.integers) == 120
    for board in boards.integers:
        sibling = boards.floats[board.sibling]
        assert (sibling.device, sibling.threads, sibling.cores) == (board.device, board.threads, board.cores)
        assert sibling.precision in ("fp32", "fp16")
    left = boards.without_network("resnet18")
    n = boards.networks.index("resnet18")
    assert all(np.isnan(b.ms[n]) for b in (*left.floats, *left.integers))
