"""What went wrong with a request, as one line of JSON for the robot and a status for HTTP. Never a traceback."""

from __future__ import annotations

import logging
import re
from typing import Any

from molmoact2_jax.serve import fields, guard, wire
from molmoact2_jax.serve.records import DepthDecodeError
from molmoact2_jax.serve.worker import BusyError
from molmoact2_jax.text.actions import ActionDecodeError

_FIELD = re.compile(r"([A-Za-z_][\w./ \[\]()-]{0,80}?):")
_MOST = 1000  # characters of a message
_log = logging.getLogger(__name__)


class NotReadyError(RuntimeError):
    """The server still loads or compiles."""


class AccessError(RuntimeError):
    """No token, or another one than the server's."""


class SizeError(RuntimeError):
    """A body that is larger than the server reads."""


# the first that fits: error, its type on the wire, HTTP status
KINDS: tuple[tuple[type[BaseException], str, int], ...] = (
    (NotReadyError, "not_ready", 503),
    (BusyError, "busy", 503),
    (AccessError, "unauthorized", 401),
    (SizeError, "too_large", 413),
    (TimeoutError, "timeout", 504),
    (ActionDecodeError, "inference", 500),
    (DepthDecodeError, "inference", 500),
    (guard.ActionError, "inference", 500),
    (wire.WireError, "malformed", 400),
    (fields.FieldError, "bad_request", 400),
    (guard.StateRangeError, "out_of_range", 400),
    (ValueError, "bad_request", 400),
)


def describe(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Returns an HTTP status and {error: one line, type, field}; what nobody expected is logged with its traceback."""
    for kind, name, status in KINDS:
        if isinstance(error, kind):
            message = str(error) or "server: no answer in time, expected one. It is busy, or the model is slow."
            line = " ".join(message.split())[:_MOST]
            return status, {"error": line, "type": name, "field": _field(line)}
    _log.error("request failed", exc_info=error)
    line = f"server: {type(error).__name__}, expected an answer. Its log says more."
    return 500, {"error": line, "type": "internal", "field": "server"}


def _field(line: str) -> str:
    """Returns what the message begins with: our errors name the field first."""
    found = _FIELD.match(line)
    return found[1] if found else "request"
