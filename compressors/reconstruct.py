"""Least-squares reconstruction: what removed input channels carried is taken over by those that stay.

A removed channel is predicted linearly from the kept ones, x_R ~ A x_K with A = S_RK (S_KK + l I)^-1 from the
channel covariance S of the uncompressed network on calibration data, and the layer's weights absorb it:
W_K <- W_K + W_R A. This is the reconstruction step of channel pruning (He et al. 2017, eq. 4) with one
matrix per tensor instead of one regression per layer, so that a policy costs a few small solves and no
pass over data. Means are left to batch-norm recalibration and bias correction.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .graph import Graph, Layer, Structure
from .memo import Memo

#: Ridge, in units of the mean variance of the channels.
RIDGE = 3e-3
#: Wider inputs are left as they are: their covariance is neither cheap nor well determined.
WIDEST = 2048


def reconstructible(structure: Structure, layer: Layer) -> bool:
    """Whether a layer's input channels can be reconstructed: dense, one call, not too wide."""
    return (
        layer.groups == 1 and layer.op != "conv_transpose" and len(layer.nodes) == 1 and layer.cin <= WIDEST
    )


def inputs_of(structure: Structure) -> dict[str, int]:
    """Tensors whose channel covariance is wanted, with their channel axis."""
    found: dict[str, int] = {}
    graph: Graph = structure.graph
    for layer in structure.layers:
        if reconstructible(structure, layer):
            found[graph.by_name[layer.nodes[0]].inputs[0]] = -1 if layer.op == "linear" else 1
    return found


def covariance(value: Tensor, axis: int) -> Tensor:
    """Channel covariance (C, C) of an activation over samples and positions, float64."""
    rows = value.transpose(0, axis).flatten(1).T if axis != -1 else value.reshape(-1, value.shape[-1])
    rows = rows - rows.mean(0)
    return (rows.T @ rows).double() / max(1, rows.shape[0] - 1)


def reconstruct(
    structure: Structure,
    weights: Mapping[str, Tensor],
    pruned: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    covariances: Mapping[str, Tensor],
    solved: Memo | None = None,
) -> dict[str, Tensor]:
    """Pruned weights with the contribution of removed input channels folded into the kept ones.

    ``solved`` remembers predictors and what came of them between policies of the same network.
    """
    found = dict(pruned)
    solved = Memo() if solved is None else solved
    for layer in structure.layers:
        if not reconstructible(structure, layer):
            continue
        stay, rows = surviving(structure, layer, 1, kept), surviving(structure, layer, 0, kept)
        tensor = structure.graph.by_name[layer.nodes[0]].inputs[0]
        if bool(stay.all()) or tensor not in covariances or not bool(stay.any()):
            continue
        key = (layer.weight, stay.numpy().tobytes(), rows.numpy().tobytes())
        known = solved.get(key)
        if known is None:
            full = weights[layer.weight]
            lost = full[rows][:, ~stay].double()
            taken_over = predictor(covariances[tensor], stay, solved, tensor)
            gained = torch.einsum("or...,rk->ok...", lost, taken_over)
            known = solved.put(key, ((pruned[layer.weight].double() + gained).to(full.dtype),))
        found[layer.weight] = known[0]
    return found


def surviving(structure: Structure, layer: Layer, dim: int, kept: Mapping[str, Tensor]) -> Tensor:
    """Which positions of a weight's dimension survive, (size,) bool."""
    stay = torch.ones(layer.weight_shape[dim], dtype=torch.bool)
    for name, units in kept.items():
        marks = structure.group[name].slices.get((layer.weight, dim))
        if marks is not None:
            chosen = torch.zeros(structure.group[name].size + 1, dtype=torch.bool)
            chosen[units] = True
            chosen[-1] = True
            stay &= chosen[torch.tensor(marks)]
    return stay


def predictor(cov: Tensor, stay: Tensor, solved: Memo, tensor: str) -> Tensor:
    """A (R, K): a tensor's removed channels from those that ``stay``, (C,) bool; remembered."""
    key = (tensor, stay.numpy().tobytes())
    known = solved.get(key) or solved.put(key, (_predictor(cov, stay, solved, tensor),))
    return known[0]


def _predictor(cov: Tensor, stay: Tensor, solved: Memo, tensor: str) -> Tensor:
    """A (R, K), solved for.

    With the precision P = (S + l I)^-1, found once a tensor, S_RK (S_KK + l I)^-1 = -P_RR^-1 P_RK: of the two
    systems the smaller one is solved.
    """
    keep, gone = stay.nonzero().squeeze(1), (~stay).nonzero().squeeze(1)
    ridge = RIDGE * cov.diagonal().mean().clamp_min(1e-12)
    if len(gone) >= len(keep):
        inner = cov[keep[:, None], keep]
        inner.diagonal().add_(ridge)
        factor = torch.linalg.cholesky(inner)
        return torch.cholesky_solve(cov[keep[:, None], gone], factor).T
    key = (tensor, b"precision")
    known = solved.get(key)
    if known is None:
        whole = cov.clone()
        whole.diagonal().add_(ridge)
        known = solved.put(key, (torch.cholesky_inverse(torch.linalg.cholesky(whole)),))
    precision = known[0]
    factor = torch.linalg.cholesky(precision[gone[:, None], gone])
    return -torch.cholesky_solve(precision[gone[:, None], keep], factor)
