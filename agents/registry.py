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
    "tpe": ("agents.tpe", "TpeAgent", "tree-structured Parzen estimator (Optuna)"),
    "gp": ("agents.gp", "GpAgent", "Gaussian process with log expected improvement (Optuna)"),
    "cmaes": ("agents.cmaes", "CmaesAgent", "CMA-ES warm-started from the best known (Optuna's cmaes)"),
    "nsga2": ("agents.nsga2", "Nsga2Agent", "NSGA-II over accuracy and latency (Optuna)"),
    "evolution": (
        "agents.evolution",
        "EvolutionAgent",
        "evolutionary search over a learned predictor (OFA, APQ)",
    ),
    "exact": (
        "agents.exact",
        "ExactAgent",
        "least summed sensitivity within the budget, by exact allocation",
    ),
    "ddpg": (
        "agents.ddpg",
        "DdpgAgent",
        "deep deterministic policy gradient, layer by layer, walls at the budget (AMC)",
    ),
    "ddpg-accuracy": (
        "agents.ddpg",
        "DdpgAccuracyAgent",
        "ddpg with AMC's accuracy-guaranteed reward, -error log(latency)",
    ),
    "haq": (
        "agents.ddpg",
        "HaqAgent",
        "ddpg as HAQ has it: weights, then activations of each layer, bits walked down to the budget",
    ),
    "gradient": (
        "agents.gradient",
        "GradientAgent",
        "architecture weights trained by gradient on the relaxed network (as ProxylessNAS)",
    ),
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
