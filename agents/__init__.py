"""Agents: propose policies, learn from their outcomes. Importing this is cheap; agents load when made."""

from .contract import Agent, Budget, Costs, Outcome, Problem, Suggestion
from .errors import AgentError, NothingFeasibleError
from .registry import DEFAULT, check_name, list_agents, make_agent, register

__all__ = [
    "DEFAULT",
    "Agent",
    "AgentError",
    "Budget",
    "Costs",
    "NothingFeasibleError",
    "Outcome",
    "Problem",
    "Suggestion",
    "check_name",
    "list_agents",
    "make_agent",
    "register",
]
