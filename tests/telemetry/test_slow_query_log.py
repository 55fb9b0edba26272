"""The slow-query log: whole lines, five files, several writers, and disks that do not play along."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

import otel_perf
from otel_perf.settings import SettingsError
from otel_perf.telemetry import runtime, slow_query_log
from otel_perf.telemetry.callers import Place
from otel_perf.telemetry.operation import QUERY, start
from otel_perf.telemetry.slow_query import SlowQuery
from otel_perf.telemetry.slow_query_log import SlowQueryLog


def query(summary: str = "SELECT users", statement: str = "SELECT * FROM users") -> SlowQuery:
    return SlowQuery(
        time_s=1_700_000_000.25, threshold="slow", duration_s=0.3, system="postgresql", operation="SELECT",
        collection="users", namespace="shop", statement=statement, summary=summary, rows=7, error_type=None,
        caller=Place("app.py", 12), request_id="abc", trace_id="0" * 31 + "1", span_id="0" * 15 + "2",
    )  # fmt: skip


def read(*paths) -> list[dict]:
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def test_lines_of_json(telemetry, tmp_path):
    """One for each slow query, written by the time that a flush returns; a file for its owner alone."""
    path = tmp_path / "slow.log"
    telemetry.restart(slow_query_log=str(path))
    for seconds in (0.1, 0.3, 1.5):
        op = start(QUERY, "SELECT users", ("sqlite", "SELECT", "users"))
        op.stop(ended_ns=op.started_ns + int(seconds * 1e9))
    assert otel_perf.flush()
    assert [(line["threshold"], line["duration_s"]) for line in read(path)] == [("slow", 0.3), ("critical", 1.5)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    otel_perf.shutdown()
    assert len(read(path)) == 2


def test_strange_text_stays_one_line(tmp_path):
    """Line ends, halves of surrogate pairs and other alphabets."""
    log = SlowQueryLog(str(tmp_path / "slow.log"))
    assert log.write([query("a\nb \ud800 é\u2028")]) == 0
    log.close()
    raw = (tmp_path / "slow.log").read_bytes()
    assert raw.count(b"\n") == 1
    assert json.loads(raw)["summary"].startswith("a\nb ")


def test_five_files_of_one_size(tmp_path):
    """What is full is moved aside, and the oldest goes."""
    path = tmp_path / "slow.log"
    log = SlowQueryLog(str(path), size_bytes=1000)
    for number in range(40):
        log.write([query(str(number))])
    log.close()
    files = [path, *(tmp_path / f"slow.log.{number}" for number in range(1, 5))]
    assert sorted(tmp_path.iterdir()) == sorted([*files, tmp_path / "slow.log.lock"])
    assert all(each.stat().st_size <= 1000 for each in files)
    summaries = [int(line["summary"]) for line in read(*reversed(files))]
    assert summaries == list(range(40 - len(summaries), 40))


def test_the_size_is_ten_megabytes(monkeypatch):
    """As the setting says."""
    assert (slow_query_log._SIZE_BYTES, slow_query_log._FILES) == (10_000_000, 5)


def test_several_processes_write_one_file(tmp_path):
    """No line is lost or torn while all of them write and move the file aside."""
    path = tmp_path / "slow.log"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(str(path), f"w{number}")) for number in range(3)]
    for each in writers:
        each.start()
    for each in writers:
        each.join(50)
        assert each.exitcode == 0
    lines = read(*(each for each in tmp_path.iterdir() if each.suffix != ".lock"))
    assert sorted(line["summary"] for line in lines) == sorted(f"w{w} {n}" for w in range(3) for n in range(100))
    assert len(list(tmp_path.iterdir())) > 4


def test_who_waited_for_the_lock_looks_again(tmp_path, monkeypatch):
    """Another process has moved the file aside meanwhile: it is not moved a second time."""
    path = tmp_path / "slow.log"
    log = SlowQueryLog(str(path), size_bytes=600)
    log.write([query("first")])
    locked: list[tuple[str, int]] = []

    def flock(opened: int, how: int) -> None:
        locked.append((os.fspath(Path(f"/proc/self/fd/{opened}").readlink()), how))
        path.rename(tmp_path / "slow.log.1")
        path.write_text("", encoding="utf-8")

    monkeypatch.setattr(slow_query_log.fcntl, "flock", flock)
    log.write([query("second")])
    log.close()
    assert locked == [(f"{path}.lock", slow_query_log.fcntl.LOCK_EX)]
    assert [line["summary"] for line in read(tmp_path / "slow.log.1", path)] == ["first", "second"]


def _write_many(path: str, name: str) -> None:
    log = SlowQueryLog(path, size_bytes=8000, files=100)
    for number in range(100):
        assert log.write([query(f"{name} {number}")]) == 0
    log.close()


def test_somebody_else_may_move_it_aside(tmp_path):
    """As logrotate does: the next line goes into a new file of the name."""
    path = tmp_path / "slow.log"
    log = SlowQueryLog(str(path))
    log.write([query("first")])
    path.rename(tmp_path / "old.log")
    log.write([query("second")])
    log.close()
    assert [line["summary"] for line in read(path)] == ["second"]
    assert [line["summary"] for line in read(tmp_path / "old.log")] == ["first"]


@pytest.mark.parametrize("name", ["missing/slow.log", ".", "file/slow.log"])
def test_a_path_that_cannot_be_written(telemetry, tmp_path, name):
    """It is told at the start, with the remedy, and what was configured before stays in force."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    before = runtime.current
    with pytest.raises(SettingsError, match=r"slow_query_log is .*cannot be written .*name a file in a directory"):
        otel_perf.configure(slow_query_log=str(tmp_path / name))
    assert runtime.current is before


def test_nothing_is_opened_where_all_is_switched_off(tmp_path):
    """`disabled` leaves no file behind."""
    otel_perf.configure(disabled=True, slow_query_log=str(tmp_path / "slow.log"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_once_and_counted(tmp_path, monkeypatch, caplog):
    """A line that was cut short does not spoil the next one, which is written as soon as there is room."""
    path = tmp_path / "slow.log"
    log = SlowQueryLog(str(path))
    room = [30]

    def write_all(opened: int, written: bytes) -> None:
        os.write(opened, written[: room[0]])
        if len(written) > room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(slow_query_log, "write_all", write_all)
    with caplog.at_level(logging.WARNING, "otel_perf"):
        assert log.write([query(), query()]) == 2
        room[0] = 0
        assert log.write([query()]) == 1
        [record] = caplog.records
        assert record.getMessage() == (
            f"otel_perf: slow queries cannot be written to {path} (No space left on device); they are counted as lost "
            "until they can be"
        )
        room[0] = 10_000
        assert log.write([query("after")]) == 0
    log.close()
    cut, *whole = path.read_text(encoding="utf-8").splitlines()
    assert len(cut) == 30
    assert [json.loads(line)["summary"] for line in whole] == ["after"]


def test_the_loss_is_a_metric(telemetry, tmp_path, monkeypatch):
    """What could not be written is counted as dropped, and the flush says so."""
    telemetry.restart(slow_query_log=str(tmp_path / "slow.log"))

    def write_all(_opened: int, _written: bytes) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(slow_query_log, "write_all", write_all)
    op = start(QUERY, "SELECT users", ("sqlite", "SELECT", "users"))
    op.stop(ended_ns=op.started_ns + 300_000_000)
    assert not telemetry.runtime.slow_queries.flush(10)
    assert telemetry.runtime.slow_queries.lost == {"write_failed": 1}


def test_a_terminal_or_a_pipe_is_never_moved(tmp_path):
    """What is no file takes lines without end; /dev/stdout in a container."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = SlowQueryLog(str(path), size_bytes=100)
    assert log.write([query("a"), query("b")]) == 0
    log.close()
    assert [json.loads(line)["summary"] for line in os.read(reader, 100_000).splitlines()] == ["a", "b"]
    os.close(reader)
    assert list(tmp_path.iterdir()) == [path]
