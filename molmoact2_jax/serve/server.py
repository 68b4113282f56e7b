"""One port that speaks HTTP and websocket, in a thread of its own: it answers while a checkpoint still loads."""

from __future__ import annotations

import socket
import threading
import time

import uvicorn

from molmoact2_jax.serve import http

_HANDSHAKE = 64 << 10  # bytes of a request line and its headers


class Server:
    """Listens from the start; requests get 503 until `state.open` was called."""

    def __init__(self, state: http.State, host: str = "127.0.0.1", port: int = 8000):
        """Binds the port and starts the thread.

        Args:
          state: shared with the routes.
          host: address to listen on; the default takes this machine's own clients alone.
          port: 0 takes a free one.

        Raises:
          OSError: the address is not this machine's, or the port is taken.
        """
        self.state = state
        self._socket = _listen(host, port)
        self.host, self.port = host, self._socket.getsockname()[1]
        config = uvicorn.Config(
            http.application(state),
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="websockets-sansio",
            ws_max_size=state.max_bytes,
            ws_per_message_deflate=False,
            h11_max_incomplete_event_size=_HANDSHAKE,
            timeout_graceful_shutdown=10,
        )
        config.load()  # a library that is missing is said here, not in the thread
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._uvicorn.run, kwargs={"sockets": [self._socket]}, name="server")
        self._thread.start()

    @property
    def url(self) -> str:
        """Where clients of HTTP find it; those of the websocket write ws:// instead."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def stop(self, timeout: float = 30) -> bool:
        """Takes no more requests, finishes those it has, and ends; says whether it finished them in time."""
        self.state.ending = True
        service, latest = self.state.service, time.monotonic() + timeout
        drained = service is None or service.close(timeout)
        while self.state.answering and time.monotonic() < latest:  # HTTP is waited for by uvicorn, websockets are not
            time.sleep(0.01)
        self._uvicorn.should_exit = True
        self._thread.join(timeout)
        return drained


def _listen(host: str, port: int) -> socket.socket:
    """Returns a bound socket that says it is TCP: asyncio sends small answers at once only over such."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen()
    except OSError as error:
        made.close()
        raise OSError(f"server: cannot listen on {host}:{port}: {error.strerror}. Choose another.") from error
    return made
