"""What all devices with an agent have in common: one conversation, however it travels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from hw_profiles.devices.agent import DTYPES, FRAME_LIMIT, Frame, FrameError, pack_array
from hw_profiles.devices.contract import Condition, Device, DeviceFacts, Sample, Work
from hw_profiles.devices.replies import plain, read_condition, read_facts, read_sample
from hw_profiles.errors import DeviceError, MeasurementError

#: Networks of one request together, at most; larger ones go alone.
REQUEST_BYTES = FRAME_LIMIT // 2


class AgentDevice(Device):
    """A device whose networks are run by `hw_profiles.devices.agent`; subclasses carry the frames.

    `name` is what profiles file it under (a target's name); None takes what the device calls itself.
    """

    def __init__(self, name: str | None = None) -> None:
        self._name = name
        self._facts: DeviceFacts | None = None

    @property
    @abstractmethod
    def where(self) -> str:
        """Where it is, for messages."""

    @abstractmethod
    def _ask(self, head: Mapping[str, Any], blobs: Sequence[bytes]) -> Iterator[Frame]:
        """Replies to one request. Raises DeviceError, FrameError or OSError where they cannot travel."""

    def facts(self) -> DeviceFacts:
        """What the device is, asked once."""
        if self._facts is None:
            self._facts = read_facts(self._single("facts"), self._name)
        return self._facts

    def condition(self) -> Condition:
        """Its state now."""
        return read_condition(self._single("condition"))

    def measure(self, works: Sequence[Work]) -> Iterator[Sample]:
        """Samples as the agent sends them; works of one request are interleaved."""
        doubled = sorted({w.key for w in works if sum(w.key == other.key for other in works) > 1})
        if doubled:
            raise MeasurementError(f"works need keys of their own; twice: {', '.join(doubled)}")
        fitting = [work for work in works if len(work.model) <= REQUEST_BYTES]
        for work in works:
            if work not in fitting:
                too_large = f"{len(work.model)} bytes; the agent takes {REQUEST_BYTES}"
                yield Sample(work.key, self.unit, work.threads, error=too_large)
        for request in _requests(fitting):
            yield from self._measured(request)

    def _measured(self, works: Sequence[Work]) -> Iterator[Sample]:
        waiting = {work.key for work in works}
        signs = 1000 + 10 * sum(10 + work.rounds for work in works)
        for head, blobs in self._replies(*_request(works)):
            if "sample" in head:
                sample = read_sample(head["sample"], blobs, works)
                if sample.key not in waiting:
                    raise DeviceError(f"{self.where} answers nonsense: {sample.key!r} twice")
                waiting.discard(sample.key)
                yield sample
            signs -= 1
            if signs < 0:
                raise DeviceError(f"{self.where} answers nonsense: it talks without end")
        if waiting:
            raise DeviceError(
                f"{self.where} left out {len(waiting)} of {len(works)} networks, {min(waiting)!r} for one"
            )

    def _single(self, what: str) -> Any:
        for head, _ in self._replies({"do": what}, []):
            if what in head:
                return head[what]
        raise DeviceError(f"{self.where} answers nonsense: no {what}")

    def _replies(self, head: Mapping[str, Any], blobs: Sequence[bytes]) -> Iterator[Frame]:
        """Replies up to the last; what goes wrong on the way is a DeviceError that says where."""
        replies = self._ask(head, blobs)
        try:
            with closing(replies):  # type: ignore[type-var]
                for reply, parts in replies:
                    if "fault" in reply:
                        raise DeviceError(f"{self.where} refuses: {plain(str(reply['fault']))}")
                    if "done" in reply:
                        return
                    yield reply, parts
                    if head["do"] in reply:
                        return
        except FrameError as error:
            raise DeviceError(f"{self.where} answers nonsense: {plain(str(error))}") from error
        except OSError as error:
            raise DeviceError(f"{self.where} is gone: {plain(str(error) or type(error).__name__)}") from error
        raise DeviceError(f"{self.where} stopped answering half-way; plug it in and run again to go on")


def _requests(works: Sequence[Work]) -> Iterator[list[Work]]:
    """Works in order, as many together as a request may carry."""
    together: list[Work] = []
    for work in works:
        if together and sum(len(w.model) for w in [*together, work]) > REQUEST_BYTES:
            yield together
            together = []
        together.append(work)
    if together:
        yield together


def _request(works: Sequence[Work]) -> tuple[dict[str, Any], list[bytes]]:
    blobs: list[bytes] = []
    entries = []
    for work in works:
        blobs.append(work.model)
        entry: dict[str, Any] = {
            "key": work.key, "model": len(blobs) - 1, "threads": work.threads, "runs": work.runs,
            "rounds": work.rounds, "kernels": work.kernels, "answers": work.answers, "memory": work.memory,
        }  # fmt: skip
        if work.inputs is not None:
            odd = [f"{name!r} of {a.dtype}" for name, a in work.inputs.items() if a.dtype.name not in DTYPES]
            if odd:
                raise MeasurementError(f"inputs of {work.key!r} cannot travel: {', '.join(odd)}")
            entry["inputs"] = {name: pack_array(array, blobs) for name, array in work.inputs.items()}
        entries.append(entry)
    return {"do": "measure", "works": entries}, blobs


__all__ = ["AgentDevice"]
