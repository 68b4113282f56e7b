"""HTTP: POST /act and /reset as MolmoAct2's clients speak it, GET /act, /health, /healthz and /metadata."""

from __future__ import annotations

import asyncio
import collections
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from molmoact2_jax.serve import failures, fields, websocket, wire_json
from molmoact2_jax.serve.service import Service, Session

MOST_SESSIONS = 256  # of HTTP, whose clients never say goodbye; the one that was silent longest ends
BODY_TIMEOUT = 10.0  # seconds for a body to arrive
_log = logging.getLogger(__name__)


class State:
    """What the routes share: the service once it is ready, and the sessions of HTTP.

    Attributes:
      service: None until it is ready.
      metadata: of the service.
      loading: what the server does until then, for those who ask.
      ending: no more requests are taken.
      answering: messages of websockets that are being answered.
    """

    def __init__(self, token: str | None = None, max_bytes: int = 64 << 20):
        """Takes the token that clients have to show (None: nothing), and the largest body that is read."""
        self.service: Service | None = None
        self.metadata: dict[str, Any] = {}
        self.loading = "starts"
        self.ending = False
        self.answering = 0
        self.max_bytes = max_bytes
        self._token = token
        self._sessions: collections.OrderedDict[str, Session] = collections.OrderedDict()

    def open(self, service: Service, metadata: Mapping[str, Any]) -> None:
        """Lets requests in."""
        self.metadata = dict(metadata)
        self.service = service

    def ready(self) -> Service:
        """Returns the service.

        Raises:
          NotReadyError: there is none yet, or no longer.
        """
        if self.service is None or self.ending:
            doing = "is ending" if self.ending else self.loading
            raise failures.NotReadyError(f"server: {doing}, expected READY. Try again later.")
        return self.service

    def admit(self, headers: Mapping[str, str]) -> None:
        """Checks who asks.

        Raises:
          AccessError: the token is missing or another one; or a web page asks, which no token vouches for.
        """
        if self._token is None:
            if "origin" in headers:
                raise failures.AccessError("origin: a web page, expected a robot. Start the server with a token file.")
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() not in ("bearer", "api-key") or not hmac.compare_digest(given.encode(), self._token.encode()):
            raise failures.AccessError("authorization: missing or wrong, expected 'Bearer TOKEN' (or 'Api-Key TOKEN').")

    def session(self, name: str) -> Session:
        """Returns the session of that name, made when it is first asked for."""
        if name not in self._sessions:
            self._sessions[name] = Session()
            while len(self._sessions) > MOST_SESSIONS:
                oldest, _ = self._sessions.popitem(last=False)
                _log.warning("session %r was silent longest of %d and has ended", oldest, MOST_SESSIONS + 1)
        self._sessions.move_to_end(name)
        return self._sessions[name]

    def reset(self, name: str, *, prefix: bool) -> int:
        """Ends the session of that name, or all whose name begins so; returns how many there were."""
        ended = [key for key in self._sessions if key == name or (prefix and key.startswith(name))]
        for key in ended:
            del self._sessions[key]
        return len(ended)


def application(state: State) -> Starlette:
    """Returns the application of one server: these routes, and the websocket on every other path."""

    def route(path: str, answer: Answer, method: str, *, free: bool = False) -> Route:
        async def endpoint(request: Request) -> Response:
            return await _guarded(state, request, answer, free=free)

        return Route(path, endpoint, methods=[method])

    async def socket(connection: websocket.WebSocket) -> None:
        await websocket.serve(state, connection)

    return Starlette(
        routes=[
            route("/act", _act, "POST"),
            route("/act", _about, "GET"),
            route("/reset", _reset, "POST"),
            route("/metadata", _metadata, "GET"),
            route("/health", _health, "GET", free=True),
            route("/healthz", _healthz, "GET", free=True),
            WebSocketRoute("/{path:path}", socket),
        ]
    )


Answer = Callable[[State, Request], Awaitable[Response]]


async def _guarded(state: State, request: Request, answer: Answer, *, free: bool) -> Response:
    """Answers, or says in one line why not; nothing that goes wrong with one request ends the server."""
    try:
        if not free:
            state.admit(request.headers)
        return await answer(state, request)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads it
    except Exception as error:  # the border to the robot: everything becomes a line
        status, line = failures.describe(error)
        return _json(line, status)


def _json(value: Any, status: int = 200, *, plain: bool = True) -> Response:
    retry = {"retry-after": "1"} if status == 503 else {}
    return Response(wire_json.dumps(value, plain=plain), status, retry, "application/json")


async def _body(state: State, request: Request) -> Any:
    """Reads and decodes a body, in a thread where decoding takes time.

    Raises:
      SizeError: it is larger than the server reads. TimeoutError: it does not arrive. WireError: it is not JSON.
    """
    data = bytearray()
    async with asyncio.timeout(BODY_TIMEOUT):
        async for part in request.stream():
            data += part
            if len(data) > state.max_bytes:
                raise failures.SizeError(
                    f"body: more than {state.max_bytes} bytes, expected fewer. Send smaller pictures."
                )
    return await asyncio.to_thread(wire_json.loads, bytes(data))


async def _act(state: State, request: Request) -> Response:
    service = state.ready()
    body = await _body(state, request)
    asked = await asyncio.to_thread(fields.request, body, service.settings.cameras)
    name = _session_key(request, asked.session)
    if asked.style == "stateless":
        state.reset(name, prefix=False)
    session = Session() if asked.style == "stateless" else state.session(name)
    answer = await service.act(asked, session, name)
    return _json(answer, plain=fields.plain(body))


def _session_key(request: Request, name: str) -> str:
    """Returns the name, and whose it is where the client did not choose one: "default" of two machines is not one."""
    return f"{name}@{request.client.host}" if name == "default" and request.client else name


async def _reset(state: State, request: Request) -> Response:
    state.ready()
    body = await _body(state, request)
    if not isinstance(body, dict):
        raise fields.FieldError("body: expected {session_id, prefix}.")
    ended = state.reset(_session_key(request, fields.session_of(body)), prefix=body.get("prefix") is True)
    return _json({"status": "ok", "ended": ended})


async def _about(state: State, request: Request) -> Response:
    state.ready()
    told = state.metadata
    return _json(
        {
            "status": "ok",
            "repo_id": told["checkpoint"]["name"],
            "norm_tag": told["norm_tag"],
            "device": told["device"],
            "dtype": told["checkpoint"]["dtype"],
            "num_cameras": len(told["cameras"]),
            "state_dim": len(told["state"]["names"]),
        }
    )


async def _metadata(state: State, request: Request) -> Response:
    state.ready()
    return _json(state.metadata)


async def _health(state: State, request: Request) -> Response:
    service = state.ready()
    latencies = list(service.latencies)
    spread = {f"p{share}": float(np.percentile(latencies, share)) for share in (50, 95, 99)} if latencies else {}
    return _json(
        {
            "status": "ok",
            "calls": service.calls,
            "waiting": service.waiting,
            "latency_ms": spread,
            "guard": service.counts.to_json(),
            "late_compilations": service.late_compilations,
        }
    )


async def _healthz(state: State, request: Request) -> Response:
    state.ready()
    return Response("OK\n", media_type="text/plain")
