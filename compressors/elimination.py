"""In which order a group's channels are missed least: greedy elimination with reconstruction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .graph import ChannelGroup, Layer, Structure
from .reconstruct import RIDGE, reconstructible

#: Units from which on a group's matrices no longer fit the cache: they are then updated in blocks.
WIDE = 512
#: Units taken away between two updates of a wide group's matrices.
BLOCK = 64


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
        _reader(structure, weights, covariances, group, x)
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


def _reader(
    structure: Structure,
    weights: Mapping[str, Tensor],
    covariances: Mapping[str, Tensor],
    group: ChannelGroup,
    layer: Layer,
) -> _Reader | _WideReader:
    reader = _Reader(structure, weights, covariances, group, layer)
    return _WideReader(reader) if reader.single and group.size >= WIDE else reader


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


class _WideReader:
    """As `_Reader` of one place a unit, matrices being updated once in `BLOCK` units.

    What elimination asks of them, the inverse's diagonal and the squared norms of the weight's columns, is
    kept up to date by vectors; the sums are the same but for the order in which they are added.
    """

    def __init__(self, reader: _Reader) -> None:
        self.inverse, self.weight, self.first = reader.inverse, reader.weight, reader.first
        self.total = reader.total
        columns, outputs = self.inverse.shape[0], self.weight.shape[0]
        self.rows = self.inverse.new_zeros(BLOCK, columns)  # of the inverse, as each unit went
        self.parts = self.inverse.new_zeros(BLOCK, outputs)  # its column of the weight
        self.pivots = self.inverse.new_ones(BLOCK)
        self.gone: list[int] = []
        self._settle()

    def costs(self, units: list[int]) -> Tensor:
        """See `_Reader.costs`."""
        at = self.first[units]
        alone: Tensor = self.norms[at] / self.diagonal[at].clamp_min(1e-18)
        return alone / self.total

    def remove(self, unit: int) -> None:
        """See `_Reader.remove`."""
        at, k = int(self.first[unit]), len(self.gone)
        rows, parts = self.rows[:k], self.parts[:k]
        shares = rows[:, at] / self.pivots[:k]
        row, part = self.inverse[at] - shares @ rows, self.weight[:, at] - shares @ parts
        pivot = row[at].clone()
        products = part @ self.weight - ((parts @ part) / self.pivots[:k]) @ rows
        gain = row / pivot
        self.norms += gain * (gain * (part @ part) - 2.0 * products)
        self.norms.clamp_(min=0.0)
        self.diagonal -= gain * row
        self.rows[k], self.parts[k], self.pivots[k] = row, part, pivot
        self.gone.append(at)
        if len(self.gone) == BLOCK:
            self._settle()

    def _settle(self) -> None:
        """Bring the matrices up to date."""
        k = len(self.gone)
        gains = self.rows[:k] / self.pivots[:k, None]
        self.weight.addmm_(self.parts[:k].T, gains, alpha=-1.0)
        self.inverse.addmm_(self.rows[:k].T, gains, alpha=-1.0)
        for at in self.gone:
            self.inverse[at] = 0.0
            self.inverse[:, at] = 0.0
            self.weight[:, at] = 0.0
        self.diagonal = self.inverse.diagonal().clone()
        self.norms = self.weight.square().sum(0)
        self.gone = []
