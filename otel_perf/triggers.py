"""What had a job run over HTTP: Google's Cloud Scheduler, Cloud Tasks and App Engine cron are known by their headers.

Headers are a stranger's: what they say is bounded, is put on spans and never becomes a label, and a time that cannot
be is no time.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import datetime

from otel_perf.telemetry.operation import JOB, REQUEST, Operation

__all__ = ["ATTEMPT", "QUEUE_NAME", "SCHEDULER_JOB", "TASK_NAME", "Trigger", "above"]

SCHEDULER_JOB = "background.job.scheduler.name"
QUEUE_NAME = "background.job.queue.name"
TASK_NAME = "background.job.task.name"
ATTEMPT = "background.job.attempt"

_LONGEST = 128
# Parts of a second are read apart: not every Python reads them with any number of digits.
_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?P<parts>\.\d{1,12})?(?P<zone>[Zz]|[+-]\d\d:\d\d)?", re.ASCII
)
_TASKS = (b"x-cloudtasks-", b"x-appengine-")


@dataclass(frozen=True, slots=True)
class Trigger:
    """What had a run begin: `kind` is schedule, queue or http; `asked_at_s` is Unix time, where that is known."""

    kind: str
    asked_at_s: float | None = None
    attributes: dict[str, str | int] = field(default_factory=dict[str, "str | int"])


def above(operation: Operation | None) -> Trigger | None:
    """The trigger of a job that begins here; None outside of a request, and within another job."""
    while operation is not None and operation.kind is not JOB:
        if operation.kind is REQUEST:
            return _of(operation)
        operation = operation.parent
    return None


def _of(request: Operation) -> Trigger:
    if _text(request, b"x-cloudscheduler") == "true":
        return _told("schedule", _moment(_text(request, b"x-cloudscheduler-scheduletime")), {
            SCHEDULER_JOB: _text(request, b"x-cloudscheduler-jobname"),
        })  # fmt: skip
    if _text(request, b"x-appengine-cron") == "true":
        return Trigger("schedule")
    for prefix in _TASKS:
        queue = _text(request, prefix + b"queuename")
        if queue is not None:
            retries = _number(_text(request, prefix + b"taskretrycount"))
            return _told("queue", _number(_text(request, prefix + b"tasketa")), {
                QUEUE_NAME: queue,
                TASK_NAME: _text(request, prefix + b"taskname"),
                ATTEMPT: int(retries) + 1 if retries is not None and retries < 1_000_000 else None,
            })  # fmt: skip
    return Trigger("http")


def _told(kind: str, asked_at_s: float | None, attributes: dict[str, str | int | None]) -> Trigger:
    return Trigger(kind, asked_at_s, {key: value for key, value in attributes.items() if value is not None})


def _text(request: Operation, name: bytes) -> str | None:
    value = request.header(name)
    if value is None:
        return None
    text = value[: 2 * _LONGEST].decode("latin-1").strip()
    return text[:_LONGEST] if text.isprintable() and text else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None and len(text) < 32 else math.nan
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


def _moment(text: str | None) -> float | None:
    found = _MOMENT.fullmatch(text) if text is not None else None
    if found is None:
        return None
    try:
        zone = "+00:00" if found["zone"] in {None, "Z", "z"} else found["zone"]
        moment_s = datetime.fromisoformat(found[1] + zone).timestamp() + float(found["parts"] or 0)
    except (ValueError, OverflowError):
        return None
    return moment_s if moment_s >= 0 else None
