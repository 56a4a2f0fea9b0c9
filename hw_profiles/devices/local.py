"""This machine as a device: the agent's worker in a fresh process, without a wire in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

from hw_profiles.devices.agent import Frame, Jobs
from hw_profiles.devices.agent_device import AgentDevice


@final
class LocalDevice(AgentDevice):
    """onnxruntime on this machine, in processes that have nothing else loaded."""

    where = "this machine"

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self._jobs = Jobs()

    def _ask(self, head: Mapping[str, Any], blobs: Sequence[bytes]) -> Iterator[Frame]:
        return self._jobs.answer(head, blobs)

    def close(self) -> None:
        """End what still runs."""
        self._jobs.stop()


__all__ = ["LocalDevice"]
