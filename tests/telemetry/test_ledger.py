"""The files of a group: whole, counted once, whoever dies or absorbs at whatever moment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf.conventions import Metric
from otel_perf.telemetry import shared_files, told
from otel_perf.telemetry.ledger import Ledger, deserted
from otel_perf.telemetry.series import Registry
from otel_perf.telemetry.summing import Tally

SCOPE = InstrumentationScope("test")
SOLD = Metric("sold", "", "counter", "about")


def tally(sold):
    registry = Registry()
    cursor = registry.cursor()
    registry.instrument(SOLD, SCOPE).of({}).record(sold)
    made = Tally(1)
    made.take(cursor.collect())
    return told.document(**made.dump())


def hand(directory, **options):
    return Ledger(lambda: directory, lambda: directory.mkdir(exist_ok=True), **{"limit": 100, **options})


def total(ledger):
    whole = Tally(1, living=0)
    for each, living in ledger.read():
        whole.add(each, living=living)
    values = [point.value for figures in whole.families.values() for point in figures.points.values()]
    return (sum(values), whole.living, whole.ended)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "group"


@pytest.fixture
def worker(directory):
    made = []

    def make(sold=None, **options):
        made.append(hand(directory, **options))
        if sold is not None:
            made[-1].publish(tally(sold))
        return made[-1]

    yield make
    for each in made:
        each.leave()


def names(directory):
    return sorted(path.name.split("-")[0] for path in directory.iterdir())


def test_the_living_are_read_and_the_dead_absorbed(directory, worker):
    """A reader sees every worker's last figures; those of one that left stay, in one file, under no name of its own."""
    assert not worker().exists()
    one, _, reader = worker(1), worker(2), worker(10)
    assert total(reader) == (3, 2, 0)
    one.publish(tally(5))
    assert total(reader) == (7, 2, 0)
    one.leave()
    for _ in range(3):
        assert total(reader) == (7, 1, 1)
    assert names(directory) == ["retired.json", "retired.lock", "worker", "worker"]
    assert [each.joined for each in (one, worker())] == [True, False]
    assert reader.exists()
    assert not deserted(directory)


def test_only_its_user_can_read_the_files(directory, worker):
    """Files are for their owner alone."""
    worker(1).leave()
    total(worker(2))
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


def test_nothing_is_written_where_nothing_changed(directory, worker):
    """The same figures again cost no file, only a sign of life; a file that somebody removed is written again."""
    one = worker(1)
    [path] = directory.glob("worker-*")
    os.utime(path, (1, 1))
    before = path.stat()
    one.publish(nothing := told.document(**Tally(1).dump()))
    one.publish(nothing)
    after = path.stat()
    assert after.st_ino != before.st_ino
    os.utime(path, (1, 1))
    one.publish(nothing)
    assert (path.stat().st_ino, path.stat().st_mtime > 1) == (after.st_ino, True)
    path.unlink()
    one.publish(nothing)
    assert path.exists()
    path.unlink()
    directory.joinpath("retired.lock").unlink()
    directory.rmdir()
    one.publish(tally(3))
    assert total(worker()) == (3, 1, 0)


@pytest.mark.parametrize("step", ["_write_retired", "remove"])
def test_whoever_absorbs_may_die_at_any_moment(directory, worker, monkeypatch, step):
    """Death before `retired` is in place changes nothing; death after it counts nothing twice."""
    one, two, reader = worker(1), worker(2), worker()
    one.leave()
    two.leave()

    def dies(*_):
        raise KeyboardInterrupt

    owner = Ledger if step == "_write_retired" else shared_files
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, dies)
        with pytest.raises(KeyboardInterrupt):
            reader.absorb()
    assert len(list(directory.glob("worker-*"))) == 2
    assert total(reader) == (3, 0, 2)
    assert total(reader) == (3, 0, 2)
    assert names(directory) == ["retired.json", "retired.lock"]
    assert deserted(directory)


def test_a_full_disk_only_puts_it_off(directory, worker, monkeypatch):
    """Where `retired` cannot be written, what the dead left counts as it is."""
    worker(1).leave()
    reader = worker()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_write_retired", full)
        assert total(reader) == (1, 0, 1)
        assert total(reader) == (1, 0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(shared_files, "write_all", full)
        with pytest.raises(OSError, match="No space"):
            worker(5)
    assert total(reader) == (1, 0, 1)


def test_absorbed_between_the_look_and_the_reading(directory, worker, monkeypatch):
    """A file that another reader absorbs while this one reads is counted once, at whichever point it happens."""
    reader, other = worker(), worker()
    for step in ("_others", "_read_retired"):
        worker(1).leave()
        real = getattr(Ledger, step)

        def and_then(self, *, real=real, **options):
            found = real(self, **options)
            if self is reader:
                other.absorb()
            return found

        def first(self, *, real=real, **options):
            if self is reader:
                other.absorb()
            return real(self, **options)

        wanted = 1 if step == "_others" else 2
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, step, and_then if step == "_others" else first)
            assert total(reader)[0] == wanted
    assert total(reader)[0] == 2


def test_a_file_that_is_replaced_while_it_is_looked_at_is_not_that_of_a_dead_worker(worker, monkeypatch):
    """The lock of an older version is free, and its worker lives all the same: it is read anew, and never absorbed."""
    one, reader = worker(1), worker()
    real, later = shared_files.is_held, [5, 4, 3, 2]

    def meanwhile(opened):
        if later:
            one.publish(tally(later.pop()))
        return real(opened)

    monkeypatch.setattr(shared_files, "is_held", meanwhile)
    assert total(reader) == (5, 1, 0)
    later.append(6)
    assert not deserted(reader._directory)
    later.append(7)
    reader.absorb()
    assert total(reader) == (7, 1, 0)


def test_two_absorb_at_once(directory, worker):
    """Many readers at once absorb each dead worker once."""
    for _ in range(5):
        for one in [worker(1) for _ in range(4)]:
            one.leave()
        readers = [worker() for _ in range(4)]
        begin = threading.Barrier(4)

        def absorb(reader, begin=begin):
            begin.wait()
            reader.absorb()

        threads = [threading.Thread(target=absorb, args=(reader,)) for reader in readers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    readers[0].absorb()
    assert total(readers[1]) == (20, 0, 20)
    assert names(directory) == ["retired.json", "retired.lock"]


@pytest.mark.parametrize("spoilt", [b"", b"{", b"[1]", b'{"version":99}', b'{"version":1}', b"\xff\xfe"])
def test_a_spoilt_file_is_ignored_and_said_once(directory, worker, caplog, spoilt):
    """What cannot be read costs itself only; the log names it once; its worker's next figures count again."""
    one, two, reader = worker(1), worker(2), worker()
    path = directory / str(one._name)
    path.write_bytes(spoilt)
    for _ in range(3):
        assert total(reader) == (2, 1, 0)
    assert [path.name in message for message in caplog.messages] == [True]
    one.publish(tally(4))
    assert total(reader) == (6, 2, 0)
    (directory / str(two._name)).write_bytes(spoilt)
    two.leave()
    assert total(reader) == (4, 1, 0)
    assert total(reader)[0] == 4


@pytest.mark.parametrize("spoil", ["truncated", "no names", "link", "directory", "pipe"])
def test_a_spoilt_retired_is_kept_aside(directory, worker, caplog, tmp_path, spoil):
    """When what the dead left cannot be read, that is said, the living go on, and nothing is written over it."""
    worker(1).leave()
    two, reader = worker(2), worker()
    assert total(reader) == (3, 1, 1)
    retired = directory / "retired.json"
    saved = retired.read_bytes()
    left = {"truncated": saved[:50], "no names": saved.replace(b'"absorbed"', b'"other"')}.get(spoil, b"precious")
    retired.unlink()
    if spoil == "directory":
        retired.mkdir()
    elif spoil == "pipe":
        os.mkfifo(retired)
    elif spoil == "link":
        (tmp_path / "elsewhere").write_bytes(left)
        retired.symlink_to(tmp_path / "elsewhere")
    else:
        retired.write_bytes(left)
    for _ in range(3):
        assert total(reader) == (2, 1, 0)
    assert [message.count("cannot be read") for message in caplog.messages] == [1]
    two.leave()
    assert total(reader)[0] == 2
    assert total(reader)[0] == 2
    [aside] = directory.glob("spoilt-*")
    assert aside.name in caplog.text
    if aside.is_file():
        assert aside.read_bytes() == left


@pytest.mark.parametrize("kind", ["link", "directory", "pipe", "socket"])
def test_what_is_no_file_is_left_out_and_left_alone(directory, worker, caplog, tmp_path, kind):
    """A link, directory, pipe or socket in the place of a worker's file is not waited for, counted or removed."""
    one, reader = worker(1), worker()
    (tmp_path / "elsewhere").write_bytes((directory / str(one._name)).read_bytes())
    hostile = directory / "worker-1-a-b.json"
    with contextlib.ExitStack() as stack:
        if kind == "link":
            hostile.symlink_to(tmp_path / "elsewhere")
        elif kind == "directory":
            hostile.mkdir()
        elif kind == "pipe":
            os.mkfifo(hostile)
        else:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            here = Path.cwd()
            os.chdir(directory)  # the path of a socket has to be short
            try:
                server.bind(hostile.name)
            finally:
                os.chdir(here)
        for _ in range(3):
            assert total(reader) == (1, 1, 0)
        one.leave()
        assert total(reader) == (1, 0, 1)
        assert total(reader) == (1, 0, 1)
        assert deserted(directory)
        assert hostile.is_symlink() or hostile.exists()
    assert [hostile.name in message for message in caplog.messages] == [True]


def test_a_pipe_in_the_place_of_what_is_being_written(directory, worker):
    """It is refused like a full disk, and not waited for."""
    one = worker(1)
    os.mkfifo(directory / f"{one._name}.tmp")
    with pytest.raises(OSError, match="No such device"):
        one.publish(tally(2))
    one.publish(tally(3))
    assert total(worker()) == (3, 1, 0)


def hostile_document(families="", windows="", started_ns="1"):
    return f'{{"version":2,"started_ns":{started_ns},"ended":0,"families":[{families}],"windows":[{windows}]}}'


def hostile_family(rows, scope='"m"', kind="counter", bounds="null"):
    return hostile_document(f'[[{scope},"","",[]],"sold","","{kind}","",false,"all",{bounds},[{rows}]]')


HOSTILE = [
    "[" * 100_000,
    hostile_document(started_ns="1e999"),
    hostile_family("[{},1,1,[],1,1,1,1,[1]]", bounds="[]"),
    hostile_family("[{},1,1,[],1]", kind="other"),
    hostile_family("[{},1,1,[],1]", scope="7"),
    hostile_family('[{"a":{}},1,1,[],1]'),
    hostile_document(windows='["m",{},[3,0,2,1,1,1,[0,99999999],[1,1]],{}]'),
    hostile_family("[{},1,1,[],20,0,2,1,1,1,[0,900000000],[1,1]]", kind="histogram", bounds='"exponential"'),
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_json_of_another_meaning_costs_only_itself(directory, worker, caplog, hostile):
    """Too deep, too large, of other types: the file is left out, said, and kept aside when it is nobody's."""
    worker(1)
    reader = worker()
    (directory / "worker-1-a-b.json").write_text(hostile)
    assert total(reader) == (1, 1, 0)
    assert total(reader) == (1, 1, 0)
    [aside] = directory.glob("spoilt-*")
    assert aside.read_text() == hostile
    assert caplog.text.count("cannot be read") == 1


def test_it_knows_what_the_others_see(directory, worker, monkeypatch):
    """After a writing that failed it is what was written before, and nothing before the first; no part of it stays."""
    one = worker()
    assert one.published() is None
    one.publish(tally(5))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shared_files, "write_all", full)
        with pytest.raises(OSError, match="No space"):
            one.publish(tally(6))
    whole = one.published()
    assert whole is not None
    assert [point.value for each in whole.families.values() for point in each.points.values()] == [5]
    assert not list(directory.glob("*.tmp"))


def test_no_link_is_followed(directory, worker, tmp_path):
    """A link in the place of a file is not written through."""
    one = worker(1)
    mine = directory / str(one._name)
    aside = tmp_path / "aside"
    aside.write_text("precious")
    (directory / f"{mine.name}.tmp").symlink_to(aside)
    with pytest.raises(OSError, match="symbolic links"):
        one.publish(tally(2))
    assert aside.read_text() == "precious"


def test_a_group_without_workers_for_a_minute_is_over(directory, worker):
    """Where the name of a group can come again, figures of an earlier life are dropped; those of a moment ago stay."""
    worker(1).leave()
    assert total(worker(10, lasts=False))[0] == 1
    for path in directory.iterdir():
        os.utime(path, (1, 1))
    assert total(worker(20, lasts=False))[0] == 11  # somebody lives
    for each in directory.glob("worker-*"):
        each.unlink()
    for path in directory.iterdir():
        os.utime(path, (1, 1))
    assert total(worker(lasts=True))[0] == 1
    assert total(worker(5, lasts=False))[0] == 0


def test_what_workers_were_killed_over_is_removed(directory, worker):
    """A half-written file goes with its worker, or after a minute."""
    one = worker(1)
    (directory / f"{one._name}.tmp").write_bytes(b"{")
    (directory / "worker-1-2-3.json.tmp").write_bytes(b"{")
    one.leave()
    reader = worker()
    assert total(reader) == (1, 0, 1)
    assert names(directory) == ["retired.json", "retired.lock", "worker"]
    os.utime(directory / "worker-1-2-3.json.tmp", (1, 1))
    reader.absorb()
    assert names(directory) == ["retired.json", "retired.lock"]


def test_a_forked_child_does_not_keep_its_parent_alive(directory, worker):
    """The child lets go of the parent's file without giving its lock back; it has a file of its own."""
    one, reader = worker(1), worker()
    go, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go[1])  # so that the child ends with the test, however that ends
            one.after_fork()
            one.publish(tally(10))
            os.write(done[1], b"x")
            os.read(go[0], 1)
        finally:
            os._exit(0)
    os.read(done[0], 1)
    assert total(reader) == (11, 2, 0)
    one.leave()
    assert total(reader) == (11, 1, 1)
    os.write(go[1], b"x")
    os.waitpid(pid, 0)
    assert total(reader) == (11, 0, 2)
    for each in (*go, *done):
        os.close(each)


PUBLISHER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.telemetry.test_ledger import hand, tally
mine = hand(Path(sys.argv[1]))
for sold in range(1, 1_000_000):
    mine.publish(tally(sold))
    print(sold, flush=True)
"""


def test_killed_in_the_middle_of_publishing(directory, worker):
    """Workers that are killed while they write leave at least what they had said was written, and it stays."""
    root = str(Path(__file__).parents[2])
    reader, kept, seen = worker(), 0, 0
    for wait_s in (0.001, 0.004):
        started = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(directory), root], stdout=subprocess.PIPE, text=True
        )
        assert started.stdout is not None
        with started:
            said = int(started.stdout.readline())
            for _ in range(20):
                time.sleep(wait_s)
                now = total(reader)[0]
                assert now >= seen
                seen = now
            started.send_signal(signal.SIGKILL)
            said = int((started.stdout.read().split() or [said])[-1])
        kept += said
        assert kept <= total(reader)[0] <= kept + 1
        kept = total(reader)[0]
    told = json.loads((directory / "retired.json").read_bytes())
    assert (told["ended"], names(directory)) == (2, ["retired.json", "retired.lock"])
