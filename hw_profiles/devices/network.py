"""A device whose agent runs there already and answers over HTTP."""

from __future__ import annotations

import http.client
import io
import socket
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, final

from hw_profiles.devices.agent import PATIENCE_SECONDS, Frame, read_frame, write_frame
from hw_profiles.devices.agent_device import AgentDevice
from hw_profiles.devices.replies import plain
from hw_profiles.errors import DeviceError

_CONNECT_SECONDS = 10.0
_START = "Start it there with `python agent.py serve`."


@final
class HttpDevice(AgentDevice):
    """An agent at `http://host:port`, started there with `python agent.py serve`, which prints its token.

    Redirects and proxies are not followed: the token goes to this address and to no other.
    """

    def __init__(
        self, url: str, token: str, name: str | None = None, *, patience: float = PATIENCE_SECONDS + 30.0
    ) -> None:
        super().__init__(name)
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise DeviceError(f"{url!r} is no agent's address; it looks like http://192.168.1.20:8765")
        if not token or not token.isascii() or not token.isprintable():
            raise DeviceError(f"{url} wants a token: the agent prints it when it starts")
        self._url, self._token, self._patience = parts, token, patience

    @property
    def where(self) -> str:
        """Address without anything secret."""
        return f"{self._url.scheme}://{self._url.hostname}:{self._port}"

    @property
    def _port(self) -> int:
        return self._url.port or (443 if self._url.scheme == "https" else 8765)

    def _ask(self, head: Mapping[str, Any], blobs: Sequence[bytes]) -> Iterator[Frame]:
        body = io.BytesIO()
        write_frame(body, head, blobs)
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        with closing(kind(self._url.hostname or "", self._port, timeout=_CONNECT_SECONDS)) as line:
            try:
                line.connect()
                line.sock.settimeout(self._patience)
            except (OSError, UnicodeError) as error:
                raise DeviceError(f"cannot reach the agent at {self.where}: {error}. {_START}") from error
            try:
                headers = {"Authorization": f"Bearer {self._token}"}
                line.request("POST", "/", body.getvalue(), headers)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it may have refused without reading all; its answer says why
            try:
                with line.getresponse() as reply:
                    self._check(reply)
                    while (frame := read_frame(reply)) is not None:
                        yield frame
            except http.client.HTTPException as error:
                text = plain(str(error)) or type(error).__name__
                raise DeviceError(f"{self.where} answers nonsense: {text}") from error
            except socket.timeout as error:  # noqa: UP041  the name says what happened
                raise DeviceError(f"{self.where} shows no sign of life for {self._patience:g} s") from error

    def _check(self, reply: http.client.HTTPResponse) -> None:
        if reply.status == 200:
            return
        if reply.status == 401:
            raise DeviceError(f"{self.where} refuses the token; give the one that the agent printed")
        raise DeviceError(f"{self.where} refuses: HTTP {reply.status}, {plain(reply.reason)}")


__all__ = ["HttpDevice"]
