"""How a fake collector treats what it gets: `collector.behaviour = behaviour.status(503, retry_after=2).times(3)`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from email.utils import format_datetime

__all__ = ["Behaviour", "drip", "hang", "html", "ok", "partial", "redirect", "refuse", "slow", "status"]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One way to treat requests; the functions of this module make them."""

    status: int = 200
    delay_s: float = 0.0
    hangs: bool = False
    refuses: bool = False
    drip_s: float | None = None
    headers: tuple[tuple[str, str], ...] = ()
    #: An answer that is none of OTLP's: its content type and its text.
    page: tuple[str, str] | None = None
    retry_after_s: float | None = None
    rejected: int = 0
    message: str = ""
    #: So many requests are treated like this, and those after them well; None: until something else is set.
    count: int | None = None

    def times(self, count: int) -> Behaviour:
        """The same for so many requests; those after them are treated well."""
        return replace(self, count=count)

    @property
    def takes(self) -> bool:
        """Whether the spans and metrics of a request treated like this are kept."""
        return self.status == 200 and self.page is None and not self.hangs and not self.refuses


def ok() -> Behaviour:
    """Everything is taken at once."""
    return Behaviour()


def slow(seconds: float) -> Behaviour:
    """Everything is taken, after so long; nothing of a client that left meanwhile."""
    return Behaviour(delay_s=seconds)


def hang() -> Behaviour:
    """Connections are accepted, requests are read, and no answer comes."""
    return Behaviour(hangs=True)


def drip(every_s: float = 0.05) -> Behaviour:
    """The answer comes byte by byte, about 2,000 of them, so that no single read ever times out (gRPC: it hangs)."""
    return Behaviour(drip_s=every_s)


def refuse() -> Behaviour:
    """The port is closed and live connections are reset; with `times(n)`, n requests are read and then reset.

    Over gRPC the call fails as it does for a closed port (UNAVAILABLE).
    """
    return Behaviour(refuses=True)


def html(text: str = "<html><body>Please log in</body></html>") -> Behaviour:
    """200 with a page, as from a proxy or a login wall."""
    return Behaviour(page=("text/html; charset=utf-8", text))


def status(code: int, *, retry_after: float | datetime | str | None = None, message: str = "") -> Behaviour:
    """An error; `retry_after` is in seconds, or a date, or sent as it stands (over gRPC seconds, as RetryInfo)."""
    headers: tuple[tuple[str, str], ...] = ()
    wait_s: float | None = None
    if isinstance(retry_after, datetime):
        headers = (("retry-after", format_datetime(retry_after.astimezone(timezone.utc), usegmt=True)),)
    elif isinstance(retry_after, str):
        headers = (("retry-after", retry_after),)
    elif retry_after is not None:
        wait_s = float(retry_after)
        headers = (("retry-after", f"{retry_after:g}"),)
    return Behaviour(status=code, headers=headers, retry_after_s=wait_s, message=message)


def partial(rejected: int, message: str = "") -> Behaviour:
    """Success, except for so many spans, points or log records (the last ones of each request)."""
    return Behaviour(rejected=rejected, message=message)


def redirect(to: str) -> Behaviour:
    """307, elsewhere."""
    return Behaviour(status=307, headers=(("location", to),))
