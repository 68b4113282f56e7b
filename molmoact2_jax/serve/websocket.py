"""The websocket protocol of openpi: a first frame of metadata, then one msgpack answer per msgpack observation."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from molmoact2_jax.serve import failures, fields, wire, wire_msgpack
from molmoact2_jax.serve.service import Session

if TYPE_CHECKING:
    from molmoact2_jax.serve.http import State

_POLL = 0.05  # seconds between looks at whether the server is ready


async def serve(state: State, socket: WebSocket) -> None:
    """Serves one connection, which is one session: its depth cache ends with it, or with a reset.

    Clients of openpi do not retry: one that connects early gets its first frame when the server is ready. An error is
    a text frame of one line, which they raise; the connection stays.
    """
    try:
        state.admit(socket.headers)
    except failures.AccessError as error:
        status, line = failures.describe(error)
        await socket.send_denial_response(Response(json.dumps(line), status, media_type="application/json"))
        return
    await socket.accept()
    while state.service is None and not state.ending:
        await asyncio.sleep(_POLL)
    session = Session()
    try:
        await socket.send_bytes(wire_msgpack.pack(state.metadata))
        while True:
            message = await socket.receive()
            state.answering += 1
            try:
                answer = await _answer(state, session, message)
                await (socket.send_bytes(answer) if isinstance(answer, bytes) else socket.send_text(answer))
            finally:
                state.answering -= 1
    except WebSocketDisconnect:
        return


async def _answer(state: State, session: Session, message: Any) -> bytes | str:
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    try:
        service = state.ready()
        if message.get("bytes") is None:
            raise wire.WireError("message: text, expected a binary frame of msgpack.")
        body = await asyncio.to_thread(wire_msgpack.unpack, message["bytes"])
        if isinstance(body, dict) and body.get("endpoint") == "reset":
            session.reset()
            return "reset successful"
        asked = await asyncio.to_thread(fields.request, body, service.settings.cameras)
        if asked.style == "stateless":  # a connection is a session
            asked = dataclasses.replace(asked, style="chunk")
        answer = await service.act(asked, session, id(session))
        return wire_msgpack.pack(answer | {"server_timing": {"infer_ms": answer["latency_ms"]}})
    except Exception as error:  # the border to the robot: everything becomes a line
        return json.dumps(failures.describe(error)[1])
