"""What a traceback of a Starlette app says about where an exception came from; asked for on failures only."""

from __future__ import annotations

import sys

from otel_perf import guard

__all__ = ["CLIENT_LEFT", "client_left", "in_background", "unhandled"]

#: The `error.type` where the client left before the end.
CLIENT_LEFT = "client_disconnected"
_CAUSES = 8  # so many exceptions that were raised from one another are looked at


def unhandled() -> BaseException | None:
    """The exception that Starlette is answering 500 for; none where the app's own handler took it."""
    error = sys.exc_info()[1]
    place = error.__traceback__ if error is not None else None
    if place is None or place.tb_frame.f_globals.get("__name__") != "starlette.middleware.errors":
        return None
    return error


def client_left(error: BaseException) -> bool:
    """Whether this is what Starlette raises for a client that left in the middle of its upload, or of a stream."""
    return type(error).__name__ == "ClientDisconnect"


@guard.safe("reading a traceback", fallback=False)
def in_background(error: BaseException) -> bool:
    """Whether this was raised by a background task of Starlette's, after a response that is whole."""
    cause: BaseException | None = error
    for _ in range(_CAUSES):
        place = cause.__traceback__ if cause is not None else None
        while place is not None:
            if place.tb_frame.f_globals.get("__name__") == "starlette.background":
                return True
            place = place.tb_next
        cause = cause.__cause__ if cause is not None else None
    return False
