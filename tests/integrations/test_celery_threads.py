"""Celery in a pool of threads; apart from test_celery, as the end of one worker in a process ends others too."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker

from otel_perf import conventions as c
from otel_perf import instrument
from otel_perf.integrations import celery
from tests.integrations.test_celery import QUIET, count, leave_logging


@pytest.fixture
def threads(redis_server) -> Iterator[Celery]:
    """An app whose worker runs four tasks at once."""
    made = Celery("threads", set_as_current=False)
    made.conf.update(broker_url=redis_server.url, result_backend="cache+memory://", **QUIET)
    made.conf.task_default_queue = "celery-threads"
    together = threading.Barrier(3)

    @made.task(name="same", shared=False)
    def same(bad):
        together.wait(10)
        if bad:
            raise LookupError

    signals.setup_logging.connect(leave_logging)
    try:
        with start_worker(made, perform_ping_check=False, pool="threads", concurrency=4):
            yield made
    finally:
        signals.setup_logging.disconnect(leave_logging)
    made.close()


def test_one_id_several_times_at_once(telemetry, threads):
    """A task that is delivered again while it runs is as many runs, each with its own end."""
    with instrument(threads):
        for bad in (False, True, False):
            threads.tasks["same"].apply_async((bad,), task_id="same")
        deadline = time.monotonic() + 10
        while (count(telemetry, c.JOB_DURATION, "same") < 3 or celery._open) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert count(telemetry, c.JOB_DURATION, "same") == 3
    assert count(telemetry, c.JOB_DURATION, "same", error__type="LookupError") == 1
    assert count(telemetry, c.JOBS_ACTIVE, "same") == 0
    assert celery._open == {}
