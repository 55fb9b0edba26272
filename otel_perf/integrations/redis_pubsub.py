"""What a subscriber does with messages: the handlers that it was given, each run of one a step.

Waiting for a message is no work, so it is no operation and has no span. A step is named by the handler's function and
never by the channel: channels have ids and names of people in them. The sender's trace is not known, since a message
carries no context.
"""

from __future__ import annotations

import functools
from typing import Any

from otel_perf import guard
from otel_perf.integrations.patch import Begin, Patches
from otel_perf.integrations.redis_calls import pool_of
from otel_perf.telemetry import operation, runtime
from otel_perf.telemetry.operation import STEP, Operation

__all__ = ["of_handler"]

_TABLES = {
    "message": "channels", b"message": "channels",
    "pmessage": "patterns", b"pmessage": "patterns",
    "smessage": "shard_channels", b"smessage": "shard_channels",
}  # fmt: skip
_ATTRIBUTES = {"messaging.system": "redis", "messaging.operation.type": "process"}


def of_handler(patches: Patches) -> Begin:
    """Starts the handler of a message, around the method that takes the message apart and calls it."""

    def begin(pubsub: Any, args: tuple[Any, ...]) -> Operation | None:
        try:
            response: Any = args[0] if args else None
            if runtime.current is None or not response or isinstance(response, bytes):  # a bare answer to PING
                return None
            table = _TABLES.get(response[0])
            handler = None if table is None else getattr(pubsub, table).get(response[1])
            if handler is None or not patches.measures(pool_of(pubsub)):
                return None
            name = _name(handler)
            return operation.start(STEP, name, (name, "pubsub"), _ATTRIBUTES)
        except Exception:
            guard.note("starting the handler of a Redis message")
            return None

    return begin


def _name(handler: Any) -> str:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return str(getattr(handler, "__qualname__", type(handler).__qualname__))
