"""Adds jobs, or works on them: `python -m examples.worker add count_words "a few words"`, `... run`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from opentelemetry import propagate

from otel_perf import catalogue, configure, measure

from .jobs import Job, Queue

_log = logging.getLogger("worker")
_IDLE_S = 0.2
_SOON_S = 10.0
_TIMEOUT_S = 30.0

_handled = catalogue.counter(
    "worker.jobs", unit="{job}", attributes=("kind", "outcome"), about="Jobs: done, given back, or given up"
)


def _count_words(job: Job) -> str:
    return str(len(job.payload.split()))


def _deliver(job: Job) -> str:
    """Send an empty POST to the address in the job; the trace goes on over there."""
    headers: dict[str, str] = {}
    with measure.external("webhook", "deliver", category="webhooks"):
        propagate.inject(headers)
        request = urllib.request.Request(job.payload, data=b"", headers=headers)  # noqa: S310 - checked when it is added
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - the same
            return str(answer.status)


_HANDLERS: dict[str, Callable[[Job], str]] = {"count_words": _count_words, "deliver": _deliver}
_RUNS = {kind: measure.job(f"worker.{kind}") for kind in _HANDLERS}


class _Stop:
    """Set by SIGTERM or Ctrl-C: the job in hand is finished, no other is taken."""

    def __init__(self) -> None:
        self.asked = False
        # A flag and no event: a handler must not take a lock that the interrupted code may hold.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


def _work(queue: Queue, stop: _Stop, *, drain: bool) -> None:
    while not stop.asked:
        job = queue.take()
        if job is not None:
            _handle(queue, job)
        elif drain and not _is_due_soon(queue):
            return
        else:
            time.sleep(_IDLE_S)


def _is_due_soon(queue: Queue) -> bool:
    due_in_s = queue.due_in_s()
    if due_in_s is None:
        return False
    if due_in_s > _SOON_S:
        _log.warning("jobs are left: the next one is due in %.0f s", due_in_s)
        return False
    return True


def _handle(queue: Queue, job: Job) -> None:
    try:
        with _RUNS[job.kind]:
            queue.finish(job, _HANDLERS[job.kind](job))
    except Exception as error:  # whatever a job raises, the next one is worked on
        again = queue.give_back(job)
        _handled.add(1, kind=job.kind, outcome="given_back" if again else "given_up")
        _log.warning("job %d failed (%s)%s", job.id, type(error).__name__, "" if again else ", and is given up")
    else:
        _handled.add(1, kind=job.kind, outcome="done")


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.worker")
    parser.add_argument("--queue", type=Path, default=Path("jobs.db"), help="the file; it is made where there is none")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="write a job")
    add.add_argument("kind", choices=sorted(_HANDLERS))
    add.add_argument("payload", help="a text for count_words, an address for deliver")
    run = commands.add_parser("run", help="work on jobs until SIGTERM")
    run.add_argument("--drain", action="store_true", help=f"end when no job is due within {_SOON_S:.0f} s")
    run.add_argument("--lease-s", type=float, default=60.0, help="a job of a worker that died is free after this time")
    run.add_argument("--retry-s", type=float, default=1.0, help="the pause after a first failure; it doubles each time")
    options = parser.parse_args(argv)
    if options.command == "add":
        if options.kind == "deliver" and not options.payload.startswith(("http://", "https://")):
            parser.error("deliver needs an address that begins with http:// or https://")
        queue = Queue(options.queue)
        print(queue.add(options.kind, options.payload))
        queue.close()
        return 0
    logging.basicConfig(format="%(levelname)s %(message)s")
    configure(service_name="worker")
    stop = _Stop()  # after configure(), which has the signals otherwise; what waits is sent as the process ends
    queue = Queue(options.queue, lease_s=options.lease_s, retry_s=options.retry_s)
    _work(queue, stop, drain=options.drain)
    print(queue.states())
    queue.close()
    return 0


if __name__ == "__main__":
    sys.exit(_main())
