"""Errors of the agents: one root, one class per cause, each with its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AgentError(Exception):
    """Root of this package's errors; ``exit_code`` is what the command line exits with. Usage, by default."""

    exit_code: int = 2


class UnknownAgentError(AgentError):
    """An agent name that nothing is registered under."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.4)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown agent {name!r}.{hint}\nAgents: {', '.join(names)}.")


class BudgetError(AgentError):
    """A budget that cannot be judged: not a positive number, or a cost the target does not give."""


class NothingFeasibleError(AgentError):
    """No policy found that holds the budget; the message says what can be reached."""

    exit_code = 4


class HistoryError(AgentError):
    """A history that is not this agent's: numbers used twice, outcomes without a suggestion."""

    exit_code = 6
