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

from .graph import ChannelGroup, Graph, Layer, Structure
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

    ``solved`` remembers predictors between policies with the same covariances.
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
        full = weights[layer.weight]
        lost = full[rows][:, ~stay].double()
        taken_over = predictor(covariances[tensor], stay, solved, tensor)
        gained = torch.einsum("or...,rk->ok...", lost, taken_over)
        found[layer.weight] = (pruned[layer.weight].double() + gained).to(full.dtype)
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


def elimination_order(
    structure: Structure,
    weights: Mapping[str, Tensor],
    covariances: Mapping[str, Tensor],
    group: ChannelGroup,
) -> Tensor | None:
    """Units of a group in the order in which they are missed least, first to go first; None without evidence.

    Greedy backward elimination as in Optimal Brain Surgeon (Hassibi & Stork 1993; for channels Kurtic et al.
    2023, ZipLM, eq. 5): removing unit u with inputs B costs each layer reading it tr(W_B (H^-1_BB)^-1 W_B'),
    H being the input covariance, after the weights took over what was removed before. Each layer's error
    counts in units of its output variance.
    """
    readers = [
        _Reader(structure, weights, covariances, group, x)
        for x in structure.layers
        if (x.weight, 1) in group.slices
        and reconstructible(structure, x)
        and structure.graph.by_name[x.nodes[0]].inputs[0] in covariances
    ]
    readers = [r for r in readers if r.total > 0]
    if not readers:
        return None
    left = list(range(group.size))
    order = []
    while left:
        cost = torch.stack([r.costs(left) for r in readers]).sum(0)
        gone = left.pop(int(cost.argmin()))
        order.append(gone)
        for r in readers:
            r.remove(gone)
    return torch.tensor(order)


class _Reader:
    """One layer that reads the group: its weights and inverse covariance as units are taken away."""

    def __init__(
        self,
        structure: Structure,
        weights: Mapping[str, Tensor],
        covariances: Mapping[str, Tensor],
        group: ChannelGroup,
        layer: Layer,
    ) -> None:
        cov = covariances[structure.graph.by_name[layer.nodes[0]].inputs[0]]
        weight = (
            weights[layer.weight].detach().double().transpose(0, 1).flatten(1).T.clone()
        )  # (outputs x taps, inputs)
        ridge = RIDGE * cov.diagonal().mean().clamp_min(1e-12)
        self.inverse = torch.linalg.inv(cov + ridge * torch.eye(cov.shape[0], dtype=cov.dtype))
        self.weight = weight
        self.total = float(((weight @ cov) * weight).sum())
        marks = torch.tensor(group.slices[layer.weight, 1])
        self.places = [(marks == u).nonzero().flatten() for u in range(group.size)]
        self.single = all(len(p) == 1 for p in self.places)
        self.first = torch.stack([p[0] for p in self.places])
        even = len({len(p) for p in self.places}) == 1
        self.blocks = torch.stack(self.places) if even else None  # (units, places each)

    def costs(self, units: list[int]) -> Tensor:
        """Error of removing each of the given units next, in units of the layer's output variance."""
        if self.single:
            at = self.first[units]
            alone: Tensor = self.weight[:, at].square().sum(0) / self.inverse.diagonal()[at].clamp_min(1e-18)
            return alone / self.total
        if self.blocks is None:
            return torch.stack([self._cost(self.places[u]) for u in units]) / self.total
        at = self.blocks[units]
        w = self.weight[:, at].transpose(0, 1)  # (units, rows, places)
        inner = self.inverse[at[:, :, None], at[:, None, :]]
        solved = torch.linalg.solve(inner, w.transpose(1, 2) @ w)
        errors: Tensor = solved.diagonal(dim1=1, dim2=2).sum(1)
        return errors / self.total

    def _cost(self, places: Tensor) -> Tensor:
        w = self.weight[:, places]
        inner = self.inverse[places][:, places]
        error: Tensor = torch.linalg.solve(inner, w.T @ w).diagonal().sum()
        return error

    def remove(self, unit: int) -> None:
        """Take a unit away: the rest takes over its part, its rows leave the inverse covariance."""
        b = self.places[unit]
        if self.single:  # in place: a fresh matrix a unit costs several times the update
            at = int(b)
            row = self.inverse[at] / self.inverse[at, at]
            self.weight.addr_(self.weight[:, at].clone(), row, alpha=-1.0)
            self.inverse.addr_(self.inverse[:, at].clone(), row, alpha=-1.0)
        else:
            gain = torch.linalg.solve(self.inverse[b][:, b], self.inverse[b])
            self.weight -= self.weight[:, b] @ gain
            self.inverse -= self.inverse[:, b] @ gain
        self.inverse[b, :] = 0
        self.inverse[:, b] = 0
        self.inverse[b, b] = 1.0
