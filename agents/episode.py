"""Episodes: a policy decided site by site. Shared by the environment and by the `ddpg` agents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from .errors import NothingFeasibleError
from .observation import Observer
from .pricing import Indices, Pricer
from .repair import hold_exactly, repair
from .sites import Floats, Vector, chosen, sites
from .walls import Walls, walk_down


@dataclass(frozen=True)
class Mode:
    """One published way to run episodes.

    ``budget``: "walls" hold it at every step (AMC, resource-constrained), "walk-down" at the end by fewer
    bits (HAQ), "reward" leaves it to the reward (AMC, accuracy-guaranteed). ``reward`` names one of
    `agents.rewards.REWARDS`. ``two_steps``: a step for weights and one for activations in each layer.
    """

    reward: str
    budget: Literal["walls", "walk-down", "reward"]
    two_steps: bool = False


MODES: Mapping[str, Mode] = {
    "amc": Mode("accuracy", "walls"),
    "amc-accuracy": Mode("accuracy-guaranteed", "reward"),
    "haq": Mode("haq", "walk-down", two_steps=True),
}


@dataclass(frozen=True)
class Progress:
    """An episode under way: steps taken, and a point (d,) that holds what they decided.

    Under walls the point is the witness: a policy that holds the budget and agrees with all decisions.
    """

    step: int
    indices: Indices


class Course:
    """The rules of one problem's episodes in one mode.

    ``exact``: judge every wall by the problem's costs even where it has quicker estimates.
    """

    def __init__(self, pricer: Pricer, mode: Mode, *, exact: bool = True) -> None:
        self.pricer = pricer
        self.mode = mode
        self.exact = exact
        self.sites = sites(pricer.space, two_steps=mode.two_steps)
        self.observer = Observer(pricer, self.sites)
        self.walls = Walls(self.observer, exact=exact)

    @cached_property
    def witness(self) -> Indices | None:
        """A policy that holds the budget, (d,); None when none is found."""
        return self.walls.start()

    def start(self) -> Progress:
        """An episode before its first step. Raises NothingFeasibleError where walls would hold nothing in."""
        if self.mode.budget != "walls":
            return Progress(0, self.pricer.top)
        if self.witness is None:
            raise NothingFeasibleError("no policy found holds the budget, so there is no episode inside it.")
        return Progress(0, self.witness)

    def observe(self, at: Progress) -> Vector:
        """The state before the next step, float32 in [0, 1], shape (STATES,)."""
        return self.observer.observe(at.step, at.indices)

    def decide(self, at: Progress, action: Vector | Floats) -> Progress:
        """Take an action in [0, 1]^K, or as much of it as the walls allow."""
        wanted = chosen(self.sites[at.step], action, self.pricer.space.cardinalities)
        if self.mode.budget == "walls":
            return Progress(at.step + 1, self.walls.keep(at.step, wanted, at.indices))
        point = at.indices.copy()
        point[list(wanted)] = list(wanted.values())
        return replace(at, step=at.step + 1, indices=point)

    def done(self, at: Progress) -> bool:
        """Whether every site has decided."""
        return at.step >= len(self.sites)

    def finish(self, at: Progress, *, held: bool = True) -> Indices:
        """The policy of a finished episode, (d,), by the mode's way to the budget.

        ``held``: make it hold the limits even where the mode leaves that to the reward.
        """
        if self.mode.budget == "walls" or (self.mode.budget == "reward" and not held):
            return at.indices
        if self.mode.budget == "walk-down":
            found = walk_down(self.pricer, self.sites, at.indices)
        else:
            found = repair(self.pricer, at.indices, refill=False)
        if found is not None and self.walls.exact:
            found = hold_exactly(self.pricer, found)
        if found is None:
            return at.indices if self.witness is None else self.witness
        return found
