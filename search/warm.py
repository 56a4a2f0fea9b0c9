"""What outcomes hang on, and taking over those of an earlier run (`--warm-start`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.contract import Outcome, Suggestion

from .errors import ResumeError
from .journal import Journal, making_sense_of
from .runfolder import RunFolder
from .setup import Setup
from .study import Study, repriced
from .task import fingerprint

#: Numbers of suggestions taken over count down from here; those of baselines stand above.
FIRST = -1000
#: What must be the same for an accuracy to hold, by key of a journal's header.
MARKS: Mapping[str, str] = {
    "network": "the network",
    "task": "the task's weights or data",
    "numerics": "the target's numerics",
}


def marks(setup: Setup) -> dict[str, str]:
    """The marks of a run that is about to begin, for its journal's header."""
    return {
        "network": setup.space.structure.graph.digest,
        "task": fingerprint(setup.task),
        "numerics": setup.scorer.numerics.key,
    }


def difference(header: Mapping[str, Any], own: Mapping[str, str]) -> str:
    """The first thing in which a journal is of something else, as words; "" where it is of the same."""
    return next((what for key, what in MARKS.items() if header.get(key) != own[key]), "")


def earlier(setup: Setup) -> list[tuple[Suggestion, Outcome]]:
    """What the run named by `warm_start` evaluated. Raises ResumeError where it is of something else."""
    name = setup.config.warm_start
    if name is None:
        return []
    old = RunFolder.find(name)
    records = Journal.read(old.journal)
    other = difference(records[0].data, marks(setup))
    if other:
        raise ResumeError(f"cannot warm-start from {old.id}: {other} is not the same.", "Leave it out.")
    waiting: dict[int, Suggestion] = {}
    found: list[tuple[Suggestion, Outcome]] = []
    for r in records:
        with making_sense_of(r):
            if r.kind == "suggested":
                s = Suggestion.from_dict(r.data["suggestion"])
                waiting[s.number] = s
            elif r.kind == "evaluated":
                s = waiting[int(r.data["number"])]
                if len(s.point) == setup.space.dimension:
                    known = Suggestion(FIRST - len(found), s.point, s.policy, f"from {old.id}")
                    found.append((known, Outcome.from_dict(r.data["outcome"])))
    return found


def take_over(study: Study, journal: Journal, found: list[tuple[Suggestion, Outcome]]) -> None:
    """Tell the study of earlier outcomes, repriced for it; journalled: a resumed run knows the same."""
    journalled = next((r for r in journal.records if r.data.get("kind") == "known"), None)
    if journalled is not None:
        with making_sense_of(journalled):
            rows = journalled.data["outcomes"]
            found = [(Suggestion.from_dict(r["suggestion"]), Outcome.from_dict(r["outcome"])) for r in rows]
    elif found:
        rows = [{"suggestion": s.to_dict(), "outcome": o.to_dict()} for s, o in found]
        journal.append("event", {"kind": "known", "outcomes": rows})
    for (suggestion, _), outcome in zip(found, repriced(study.problem, [o for _, o in found]), strict=True):
        if outcome.feasible:
            study.learn(suggestion, outcome)
