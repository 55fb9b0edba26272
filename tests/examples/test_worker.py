"""The worker, run as a user runs it: jobs from a file, a real receiver of webhooks, a real collector."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from examples.worker.jobs import Queue
from otel_perf.testing import FakeCollector, attributes
from tests.examples.running import ROOT

COMMAND = [sys.executable, "-m", "examples.worker"]


class Receiver:
    """Takes webhooks; while `open` is not set, each of them waits."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.open = threading.Event()
        self.traces: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    def _handler(self):
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.traces.append(self.headers["traceparent"])
                receiver.arrived.release()
                receiver.open.wait(30)
                try:
                    self.send_response(204)
                    self.end_headers()
                except OSError:  # the worker was killed meanwhile
                    pass

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    taking = Receiver()
    yield taking
    taking.close()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "jobs.db"


def _add(file, *jobs) -> None:
    queue = Queue(file)
    for kind, payload in jobs:
        queue.add(kind, payload)
    queue.close()


def _start(file, collector, *arguments) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "--queue", str(file), "run", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
    )


def _ended(process) -> tuple[str, str]:
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert "Traceback" not in err, err
    return out, err


def _results(file) -> list[tuple[str, str | None, int]]:
    connection = sqlite3.connect(file)
    rows = connection.execute("SELECT state, result, attempts FROM jobs ORDER BY id").fetchall()
    connection.close()
    return rows


def _outcomes(collector) -> dict[tuple[str, str], int]:
    points = collector.metric("worker.jobs").points
    return {(attributes(point)["kind"], attributes(point)["outcome"]): point.as_int for point in points}


def test_jobs_are_done_and_measured(file, receiver):
    """Each job is one run, with its call and its write below it; the receiver is in the same trace."""
    added = subprocess.run(
        [*COMMAND, "--queue", str(file), "add", "count_words", "a few words"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (added.returncode, added.stdout) == (0, "1\n"), added.stderr
    _add(file, ("deliver", receiver.url), ("deliver", receiver.url))
    receiver.open.set()
    with FakeCollector() as collector:
        out, err = _ended(_start(file, collector, "--drain"))
        assert (out, err) == ("{'done': 3}\n", "")
        assert _results(file) == [("done", "3", 1), ("done", "204", 1), ("done", "204", 1)]

        by_id = {span.span_id: span for span in collector.spans}
        below = Counter((by_id[span.parent_id].name if span.parent_id else "", span.name) for span in collector.spans)
        assert below == {
            ("", "worker.count_words"): 1,
            ("", "worker.deliver"): 2,
            ("worker.deliver", "webhook deliver"): 2,
            ("worker.count_words", "UPDATE jobs"): 1,
            ("worker.deliver", "UPDATE jobs"): 2,
        }
        calls = {(span.trace_id, span.span_id) for span in collector.spans if span.name == "webhook deliver"}
        assert {tuple(sent.split("-")[1:3]) for sent in receiver.traces} == calls
        assert {span.resource["service.name"] for span in collector.spans} == {"worker"}

        runs = collector.metric("background.job.duration").points
        assert {attributes(run)["background.job.name"]: run.count for run in runs} == {
            "worker.count_words": 1,
            "worker.deliver": 2,
        }
        assert [call.count for call in collector.metric("external.api.duration").points] == [2]
        assert [query.count for query in collector.metric("db.client.operation.duration").points] == [3]
        assert _outcomes(collector) == {("count_words", "done"): 1, ("deliver", "done"): 2}
        assert not collector.errors


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_without_loss(file, receiver, how):
    """The job in hand is finished and told of, the next one stays for the next worker."""
    _add(file, ("deliver", receiver.url), ("count_words", "x"))
    with FakeCollector() as collector:
        worker = _start(file, collector)
        assert receiver.arrived.acquire(timeout=30)
        worker.send_signal(how)
        receiver.open.set()
        out, _ = _ended(worker)
        assert out == "{'done': 1, 'waiting': 1}\n"
        assert _results(file) == [("done", "204", 1), ("waiting", None, 0)]
        assert Counter(span.name for span in collector.spans) == {
            "worker.deliver": 1, "webhook deliver": 1, "UPDATE jobs": 1
        }  # fmt: skip
        assert _outcomes(collector) == {("deliver", "done"): 1}

        _ended(_start(file, collector, "--drain"))
        assert [state for state, _, _ in _results(file)] == ["done", "done"]


def test_a_kill_loses_no_job(file, receiver):
    """What a worker had in hand when it was killed is done by another once its lease is over."""
    _add(file, ("deliver", receiver.url))
    with FakeCollector() as collector:
        killed = _start(file, collector, "--lease-s", "0")
        assert receiver.arrived.acquire(timeout=30)
        killed.kill()
        killed.communicate()
        assert _results(file) == [("waiting", None, 1)]
        receiver.open.set()
        _ended(_start(file, collector, "--drain"))
        assert _results(file) == [("done", "204", 2)]


def test_a_lease_is_kept(file):
    """While one worker has a job, another finds none."""
    _add(file, ("count_words", "x"))
    first, second = Queue(file), Queue(file)
    taken = first.take()
    assert taken is not None
    assert taken.payload == "x"
    assert second.take() is None
    second.close()
    first.close()


def test_a_job_that_fails_is_tried_three_times(file):
    """Three failures are three failed runs and three failed calls; then it is given up, and the next job is done."""
    _add(file, ("deliver", "http://127.0.0.1:9/nobody"), ("count_words", "x"))
    with FakeCollector() as collector:
        _, err = _ended(_start(file, collector, "--drain", "--retry-s", "0.01"))
        assert err.count("job 1 failed (URLError)") == 3
        assert err.count("given up") == 1
        assert _results(file) == [("failed", None, 3), ("done", "1", 1)]
        assert _outcomes(collector) == {
            ("deliver", "given_back"): 2, ("deliver", "given_up"): 1, ("count_words", "done"): 1
        }  # fmt: skip
        for metric in ("background.job.duration", "external.api.duration"):
            failed = [p for p in collector.metric(metric).points if "error.type" in attributes(p)]
            assert [(attributes(p)["error.type"], p.count) for p in failed] == [("urllib.error.URLError", 3)]


def test_a_job_that_failed_waits_longer_each_time(file, monkeypatch):
    """It is not given out until a pause is over that doubles, and is never the same for two jobs."""
    monkeypatch.setattr("examples.worker.jobs.time.time", lambda: now)
    _add(file, *(("count_words", "x"),) * 20)
    queue, now, pauses = Queue(file, retry_s=8.0), 1_000.0, {}
    for attempt in (1, 2):
        for _ in range(20):
            job = queue.take()
            assert job is not None
            assert job.attempt == attempt
            assert queue.give_back(job)
        assert queue.take() is None
        connection = sqlite3.connect(file)
        pauses[attempt] = {at - now for (at,) in connection.execute("SELECT free_at FROM jobs")}
        connection.close()
        assert queue.due_in_s() == min(pauses[attempt])
        now += 100.0
    assert len(pauses[1]) == len(pauses[2]) == 20
    assert all(4.0 <= pause <= 12.0 for pause in pauses[1])
    assert all(8.0 <= pause <= 24.0 for pause in pauses[2])
    jobs = [queue.take() for _ in range(20)]
    assert not any(queue.give_back(job) for job in jobs if job)
    assert queue.due_in_s() is None
    queue.close()


def test_drain_says_what_is_left(file):
    """What is due later than soon is not waited for; it says so, and the job keeps its attempts."""
    _add(file, ("deliver", "http://127.0.0.1:9/nobody"))
    with FakeCollector() as collector:
        out, err = _ended(_start(file, collector, "--drain", "--retry-s", "100"))
    assert out == "{'waiting': 1}\n"
    assert "jobs are left: the next one is due in" in err
    assert _results(file) == [("waiting", None, 1)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["deliver", "file:///etc/hosts"], "deliver needs an address"), (["sing", "x"], "invalid choice: 'sing'")],
)
def test_what_cannot_be_done_is_refused(file, arguments, said):
    """A job that makes no sense is refused when it is added, with exit code 2."""
    done = subprocess.run(
        [*COMMAND, "--queue", str(file), "add", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert not file.exists()
