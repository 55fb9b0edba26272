"""A Celery worker with a pool of processes, and who sends it tasks: run by test_celery, it prints what was measured."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time

import celery
from celery.exceptions import TimeLimitExceeded

import otel_perf
from otel_perf import conventions as c
from otel_perf.telemetry import operation, runtime


def counts() -> dict[str, int]:
    """How many runs there were in all processes, by name and error."""
    found: dict[str, int] = {}
    for figures in runtime.current.exchange.metrics().of_reader("metrics"):
        if figures.metric.name == c.JOB_DURATION.name:
            for point in figures.points.values():
                error = point.attributes.get(c.ERROR_TYPE)
                name = f"{point.attributes[c.JOB_NAME]} {error}" if error else point.attributes[c.JOB_NAME]
                found[name] = found.get(name, 0) + point.count
    return dict(sorted(found.items()))


def main(url: str, directory: str) -> None:
    """Sends tasks to a worker in this process, whose pool is of others."""
    app = celery.Celery("prefork", broker=url, backend=url)
    app.conf.update(task_default_queue="celery-prefork", worker_hijack_root_logger=False,
                    worker_redirect_stdouts=False, broker_connection_retry_on_startup=True)  # fmt: skip
    home = os.getpid()

    @app.task(name="add")
    def add(x: int, y: int) -> list:
        return [operation.current().name, x + y, os.getpid() != home]

    @app.task(name="bad")
    def bad() -> None:
        raise LookupError

    @app.task(name="slow", time_limit=1)
    def slow() -> None:
        time.sleep(60)

    otel_perf.configure(traces_exporter="none", metrics_exporter="none", workers_dir=directory)
    otel_perf.instrument("celery")
    worker = app.Worker(pool="prefork", concurrency=2, loglevel=logging.CRITICAL, without_gossip=True,
                        without_mingle=True, without_heartbeat=True)  # fmt: skip
    told: dict = {}
    sender = celery.Celery("sender", broker=url, backend=url, set_as_current=False)

    def ask(name: str, *args: int) -> list:
        return sender.send_task(name, args, queue="celery-prefork").get(timeout=20, disable_sync_subtasks=False)

    def send() -> None:
        try:
            told["answers"] = [ask("add", 1, 2) for _ in range(4)]
            for name, error in (("bad", LookupError), ("bad", LookupError), ("slow", TimeLimitExceeded)):
                with contextlib.suppress(error):
                    ask(name)
            wanted = 7
            deadline = time.monotonic() + 10
            while sum(counts().values()) < wanted and time.monotonic() < deadline:
                time.sleep(0.1)
            told["counts"] = counts()
            told["several"] = runtime.current.exchange.has_others
        finally:
            os.kill(home, signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    with contextlib.suppress(SystemExit):
        worker.start()
    thread.join()
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
