"""The robot's side: asks a policy server for chunks. Needs numpy, msgpack and websockets, not the model's libraries."""

from __future__ import annotations

import json
import threading
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import websockets.exceptions
import websockets.sync.client

from molmoact2_jax.serve import wire_msgpack

_MAX_BYTES = 64 << 20


class ServerError(RuntimeError):
    """The server answered with an error.

    Attributes:
      type: what kind of error, such as "bad_request", "out_of_range", "inference", "busy".
      field: which part of the request it is about.
    """

    def __init__(self, line: str):
        """Reads the server's line of JSON; other text is the message itself."""
        try:
            told = json.loads(line)
        except ValueError:
            told = {"error": line}
        super().__init__(told.get("error", line))
        self.type, self.field = told.get("type", "unknown"), told.get("field", "request")


class Client:
    """One connection to a policy server, which is one episode until `reset`.

    Several threads may use it: each waits until the one before has its answer.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 60.0):
        """Connects, and waits until the server is ready.

        Args:
          url: ws://HOST:PORT; http:// means the same port.
          token: what the server was started with.
          timeout: seconds for the connection, for the server to become ready, and for each answer.

        Raises:
          ConnectionError: nobody answers there, or not in time, or the token is wrong.
        """
        self.url = _websocket(url)
        self._timeout, self._turn = timeout, threading.Lock()
        headers = {"Authorization": f"Bearer {token}"} if token else None
        try:
            self._socket = websockets.sync.client.connect(
                self.url, compression=None, max_size=_MAX_BYTES, additional_headers=headers, open_timeout=timeout
            )
        except websockets.exceptions.InvalidStatus as error:
            raise ConnectionError(f"{self.url}: {_refusal(error)}") from error
        except (OSError, websockets.exceptions.WebSocketException) as error:
            raise ConnectionError(
                f"{self.url}: {error}, expected a policy server. Start one: molmoact2 serve."
            ) from error
        self.metadata: dict[str, Any] = self._receive()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def act(
        self, images: Sequence[np.ndarray] | Mapping[str, np.ndarray], task: str, state: Any, **options: Any
    ) -> dict[str, Any]:
        """Asks for a chunk.

        Args:
          images: u8[H, W, 3] each, RGB, in the order of `metadata["cameras"]`, or by camera name.
          task: instruction in words.
          state: f32[D] in the robot's units, or None for a model without state.
          **options: seed, n_action_steps.

        Returns:
          The server's answer; `actions` is f32[N, D] in robot units.

        Raises:
          ServerError: the server refused the request or has no actions.
          ConnectionError: the connection broke, or no answer came in time.
        """
        pictures: Any = dict(images) if isinstance(images, Mapping) else list(images)
        message = {"images": pictures, "task": task, **options}
        if state is not None:
            message["state"] = np.asarray(state)
        with self._turn:
            self._send(message)
            return self._receive()

    def reset(self) -> None:
        """Ends the episode: the next call starts without a depth cache."""
        with self._turn:
            self._send({"endpoint": "reset"})
            self._next()

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def _send(self, message: Any) -> None:
        try:
            self._socket.send(wire_msgpack.pack(message))
        except websockets.exceptions.ConnectionClosed as error:
            raise ConnectionError(f"{self.url}: {error}, expected an open connection. Connect again.") from error

    def _receive(self) -> dict[str, Any]:
        message = self._next()
        if isinstance(message, str):
            raise ServerError(message)
        return wire_msgpack.unpack(message)

    def _next(self) -> bytes | str:
        try:
            return self._socket.recv(timeout=self._timeout)
        except TimeoutError as error:
            self.close()  # a late answer would be taken for that of the next request
            raise ConnectionError(f"{self.url}: no answer in {self._timeout:g} s. Connect again.") from error
        except websockets.exceptions.ConnectionClosed as error:
            raise ConnectionError(f"{self.url}: {error}, expected an answer. Connect again.") from error


def _websocket(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if not separator:
        return f"ws://{url}"
    if scheme not in schemes:
        raise ValueError(f"url: {url!r}, expected ws://HOST:PORT or http://HOST:PORT.")
    return f"{schemes[scheme]}://{rest}"


def _refusal(error: websockets.exceptions.InvalidStatus) -> str:
    """Returns the server's own line, where it is one of ours."""
    body = bytes(error.response.body or b"")[:1000]
    if body.startswith(b"{"):
        return str(ServerError(body.decode(errors="replace")))
    return f"{error}, expected a policy server. Check the port."
