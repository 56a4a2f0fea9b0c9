"""Agents by name. Modules are imported when an agent is made, since some pull in Optuna."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from .contract import Agent, Problem
from .errors import AgentError, UnknownAgentError

Factory = Callable[[Problem, int], Agent]

DEFAULT = "joint"

#: Name to (module, class, one line).
_BUILT_IN: dict[str, tuple[str, str, str]] = {
    "joint": (
        "agents.joint",
        "JointAgent",
        "measured losses, a surrogate for where they do not add up, moves along the budget (default)",
    ),
    "hyper": (
        "agents.hyper",
        "HyperAgent",
        "joint, begun where a network trained on past studies says; without any it is joint",
    ),
    "tpe": ("agents.optuna_agents", "TpeAgent", "tree-structured Parzen estimator (Optuna)"),
    "gp": ("agents.optuna_agents", "GpAgent", "Gaussian process with log expected improvement (Optuna)"),
    "nsga2": ("agents.optuna_agents", "Nsga2Agent", "NSGA-II over accuracy and latency (Optuna)"),
    "random": (
        "agents.random_",
        "RandomAgent",
        "uniformly random policies, repaired to the budget (baseline)",
    ),
    "uniform": (
        "agents.uniform",
        "UniformAgent",
        "the same keep ratio and bits everywhere, nearest to the budget first (baseline)",
    ),
}
_ADDED: dict[str, tuple[Factory, str]] = {}


def register(name: str, factory: Factory, summary: str) -> None:
    """Add an agent: ``factory(problem, seed)``. Raises AgentError when the name is taken."""
    if name in _BUILT_IN or name in _ADDED:
        raise AgentError(f"an agent {name!r} is registered already. Choose another name.")
    _ADDED[name] = (factory, summary)


def list_agents() -> dict[str, str]:
    """Name to one line, the default first."""
    return {**{k: v[2] for k, v in _BUILT_IN.items()}, **{k: v[1] for k, v in _ADDED.items()}}


def check_name(name: str) -> None:
    """Raise UnknownAgentError with the near match unless an agent has this name."""
    if name not in _BUILT_IN and name not in _ADDED:
        raise UnknownAgentError(name, list_agents())


def make_agent(name: str, problem: Problem, seed: int = 0) -> Agent:
    """The agent of that name for one problem."""
    check_name(name)
    if name in _ADDED:
        return _ADDED[name][0](problem, seed)
    module, cls, _ = _BUILT_IN[name]
    made = getattr(importlib.import_module(module), cls)(problem, seed)
    if not isinstance(made, Agent):
        raise AgentError(f"{module}.{cls} is not an Agent.")
    return made
