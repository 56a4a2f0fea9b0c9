"""A gymnasium environment over a compression problem, for anybody's reinforcement learning.

One episode is one policy, one step one layer (`agents.sites`). For example::

    env = CompressionEnv(problem, evaluate)
    state, info = env.reset(seed=0)
    while True:
        state, reward, done, _, info = env.step(env.action_space.sample())
        if done:
            break
    info["policy"], info["accuracy"], info["costs"]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from compressors.policy import ResolvedPolicy

from .contract import Problem
from .episode import MODES, Course, Progress
from .errors import AgentError
from .observation import STATES
from .pricing import Pricer
from .repair import require_feasible
from .rewards import REWARDS
from .sites import KINDS, K, Vector


class CompressionEnv(gymnasium.Env[Vector, Vector]):
    """Decides a network's policy layer by layer; the reward comes at the end.

    Observation: float32 in [0, 1], shape (STATES,), entries as `agents.observation.FEATURES` names them.
    Action: float32 in [0, 1], shape (K,), entries as `agents.sites.KINDS`; 1 leaves the layer as it is, 0 is
    the smallest. ``info["mask"]`` (K,) is 1 for the entries that the next step reads, the others are ignored.

    ``mode`` "amc": every limit of the budget holds after rounding, whatever is asked for; reward: the metric.
    "amc-accuracy": nothing holds the limits, reward ``-error log(latency)``. "haq": two steps a layer, bits
    are walked down at the end until the limits hold, reward ``0.1 (metric - metric before)`` in points.

    The last step's ``info`` has ``policy`` (resolved), ``point`` (in [0, 1]^d, decodes to it), ``accuracy``,
    ``costs`` and ``feasible``. ``evaluate`` maps a resolved policy to the metric, in the task's own unit.

    Raises NothingFeasibleError when no policy found holds the budget.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012  as gymnasium declares it

    def __init__(
        self,
        problem: Problem,
        evaluate: Callable[[ResolvedPolicy], float],
        *,
        mode: str = "amc",
        render_mode: str | None = None,
    ) -> None:
        if mode not in MODES:
            raise AgentError(f"unknown {mode=}. Modes: {', '.join(MODES)}.")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise AgentError(f"unknown {render_mode=}. Use None or 'ansi'.")
        self.problem = problem
        self.evaluate = evaluate
        self.render_mode = render_mode
        self.pricer = Pricer(problem)
        self.course = Course(self.pricer, MODES[mode])
        if self.course.mode.budget != "reward" and self.course.witness is None:
            require_feasible(problem, self.pricer)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (STATES,), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (K,), np.float32)
        self._at: Progress | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Vector, dict[str, Any]]:
        """Start an episode. ``seed`` seeds the environment's generator, which nothing here draws from."""
        super().reset(seed=seed)
        self._at = self.course.start()
        return self.course.observe(self._at), self._info(self._at)

    def step(self, action: Vector) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        """Decide one site. Raises AgentError after the end and for an action that is not K finite numbers."""
        if self._at is None or self.course.done(self._at):
            raise AgentError("the episode is over. Call reset() first.")
        asked = np.asarray(action, dtype=float)
        if asked.shape != (K,) or not np.isfinite(asked).all():
            raise AgentError(f"an action is {K} finite numbers, got {action!r}.")
        self._at = self.course.decide(self._at, asked)
        if not self.course.done(self._at):
            return self.course.observe(self._at), 0.0, False, False, self._info(self._at)
        self._at = Progress(self._at.step, self.course.finish(self._at, held=False))
        reward, outcome = self._score(self._at)
        return self.course.observe(self._at), reward, True, False, {**self._info(self._at), **outcome}

    def render(self) -> str | None:
        """What was decided so far, a line per layer (render_mode "ansi"); None in other modes."""
        if self.render_mode != "ansi" or self._at is None:
            return None
        return "\n".join(self._line(k) for k in range(self._at.step))

    def _info(self, at: Progress) -> dict[str, Any]:
        """Mask and layer of the next step; after the last one, of that."""
        site = self.course.sites[min(at.step, len(self.course.sites) - 1)]
        return {"mask": site.mask, "layer": site.layer}

    def _score(self, at: Progress) -> tuple[float, dict[str, Any]]:
        policy = self.pricer.policy(at.indices)
        metric = float(self.evaluate(policy))
        if not math.isfinite(metric):
            raise AgentError(f"evaluate gave {metric!r} for policy {policy.digest}, not a finite number.")
        costs = self.pricer.exact(at.indices)
        latency = costs[self.problem.budget.latency_key]
        reward = REWARDS[self.course.mode.reward](self.problem, self.problem.gain(metric), latency)
        return float(reward), {
            "policy": policy,
            "point": np.array(self.pricer.point(at.indices)),
            "accuracy": metric,
            "costs": costs,
            "feasible": not self.problem.budget.why_not(costs),
        }

    def _line(self, step: int) -> str:
        site, at = self.course.sites[step], self._at
        if at is None:
            return ""
        choices = self.problem.space.choices
        shown = [
            f"{kind} {choices[i].subject} = {choices[i].values[int(at.indices[i])]}"
            for kind, found in zip(KINDS, site.coordinates, strict=True)
            for i in found
        ]
        return f"{site.layer}: {', '.join(shown) or 'nothing to decide'}"
