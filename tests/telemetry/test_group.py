"""Which processes belong together, and that their directory is theirs alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from otel_perf.settings import Settings
from otel_perf.telemetry import group
from otel_perf.telemetry.group import Group, find

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="groups are found by /proc")


def settings(**given):
    return Settings.load(**{"service_name": "shop", **given})


@pytest.fixture(autouse=True)
def _temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_none_and_a_directory_of_ones_own(tmp_path):
    """`none` keeps a worker to itself; a directory joins all workers of the service, and no other service."""
    assert find(settings(workers_dir="none")) is None
    shop, cart = (find(settings(service_name=name, workers_dir=str(tmp_path / "w"))) for name in ("shop/eu", "shop-eu"))
    assert shop is not None
    assert cart is not None
    assert shop.directory.parent == cart.directory.parent == tmp_path / "w"
    assert shop.directory != cart.directory
    assert (shop.heads, shop.certain) == (False, False)
    shop.prepare()
    assert shop.directory.is_dir()
    assert list(shop.stale()) == []


@LINUX
def test_a_process_that_is_nobodys_worker_heads_its_own_group():
    """Its children would be its group, and no file is made."""
    found = find(settings())
    assert found is not None
    assert (found.heads, found.certain) == (True, True)
    assert f".{os.getpid()}." in found.name
    assert not found.directory.parent.exists()


CHILD = """
import json, os, sys, multiprocessing
from otel_perf.settings import Settings
from otel_perf.telemetry import group

def told(name="shop"):
    found = group.find(Settings.load(service_name=name))
    return [found.name, found.heads, found.certain, os.getppid()]

def send(queue):
    queue.put(told())

if __name__ == "__main__":
    answers = {"own": told()}
    read, write = os.pipe()
    for name in ("one", "two"):
        pid = os.fork()
        if not pid:
            os.write(write, (json.dumps(told()) + "\\n").encode())
            os._exit(0)
        os.waitpid(pid, 0)
    os.close(write)
    answers["forked"] = [json.loads(line) for line in os.fdopen(read)]
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    child = context.Process(target=send, args=(queue,))
    child.start()
    answers["spawned"] = queue.get()
    child.join()
    answers["pid"] = os.getpid()
    print(json.dumps(answers))
"""


def run(tmp_path, *arguments, **options):
    script = tmp_path / "script.py"
    script.write_text(CHILD)
    command = [sys.executable, str(script), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=env, **options)


@LINUX
def test_workers_of_one_parent(tmp_path):
    """Children of one parent, forked (gunicorn) or spawned (uvicorn), are one group; others of this shell are not."""
    both = [run(tmp_path), run(tmp_path)]
    one, other = (json.loads(each.communicate(timeout=50)[0]) for each in both)
    for told in (one, other):
        name, heads, certain, _ = told["own"]
        assert (heads, certain) == (True, True)
        for worker in (*told["forked"], told["spawned"]):
            assert worker == [name, False, True, told["pid"]]
    assert one["own"][0] != other["own"][0]


@LINUX
def test_who_reloads_begins_anew(tmp_path):
    """The one worker of a reloading server is in no group: it counts from zero after each change."""
    with run(tmp_path, "--reload") as started:
        told = json.loads(started.communicate(timeout=50)[0])
    assert told["spawned"][1] is True
    assert told["spawned"][0] != told["own"][0]


@pytest.mark.parametrize(
    ("own", "theirs", "reloads"),
    [
        (b"python\0-m\0uvicorn\0--reload\0", b"python\0-m\0uvicorn\0--reload\0", True),
        (b"x\0", b"/usr/bin/fastapi\0dev\0main.py\0", True),
        (b"gunicorn: worker [shop]\0", b"gunicorn: master [shop]\0", False),
        (b"uWSGI worker 1\0", b"uWSGI master\0", False),
        (b"python\0app.py\0", b"python\0app.py\0", False),
        (b"python\0app.py\0", b"bash\0", None),
        (b"python\0app.py\0", b"sh\0-c\0gunicorn app\0", None),
        (b"", b"", None),
    ],
)
def test_whose_worker_by_the_command(monkeypatch, own, theirs, reloads):
    """A worker runs its parent's command, or has a title of the same server; a shell is nobody's server."""
    monkeypatch.setattr(group, "_command", lambda pid: own if pid == "self" else theirs)
    assert group._parent() == (os.getppid() if reloads is False else None)


def test_without_proc_nobody_is_guessed_at(monkeypatch, tmp_path):
    """Where processes cannot be looked at, a process that nobody names a worker stays by itself."""
    monkeypatch.setattr(group, "_PROC", tmp_path)
    assert find(settings()) is None


def test_the_private_directory(tmp_path):
    """It is made for this user only."""
    mine = Group("a.1.2.3")
    mine.prepare()
    mine.prepare()
    assert mine.directory.parent.name == f"otel_perf-{os.geteuid()}"
    assert [each.stat().st_mode & 0o777 for each in (mine.directory, mine.directory.parent)] == [0o700, 0o700]


def link(path):
    (path.parent / "elsewhere").mkdir(exist_ok=True)
    path.symlink_to(path.parent / "elsewhere")


def open_to_all(path):
    path.mkdir()
    path.chmod(0o777)


@pytest.mark.parametrize("prepare", [link, open_to_all, lambda path: path.write_text("x")])
def test_a_directory_that_others_prepared_is_refused(tmp_path, prepare):
    """A link, a directory that others can write to, or a file in its place is not used."""
    prepare(tmp_path / f"otel_perf-{os.geteuid()}")
    with pytest.raises(PermissionError, match="only this user"):
        Group("a.1.2.3").prepare()
    prepare(tmp_path / "shared")
    with pytest.raises(OSError, match=r"only this user|exists|Not a directory"):
        Group("shared", tmp_path, certain=False).prepare()


def test_a_directory_of_another_user_is_refused(monkeypatch):
    """Whoever made the private directory first must be us."""
    mine = Group("a.1.2.3")
    mine.prepare()
    real = os.geteuid()
    mine.directory.parent.rename(mine.directory.parent.with_name(f"otel_perf-{real + 1}"))
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    with pytest.raises(PermissionError, match="only this user"):
        mine.prepare()


@LINUX
def test_groups_whose_parent_is_gone_are_stale(tmp_path):
    """A group is stale when its parent is not there any more, its number given to another or not; ours is not."""
    mine = find(settings())
    assert mine is not None
    mine.prepare()
    slug, namespace, pid, began = mine.name.rsplit(".", 3)
    private = mine.directory.parent
    for name in (f"{slug}.{namespace}.{pid}.1", f"{slug}.{namespace}.999999999.1", f"{slug}.7.{pid}.1", "other"):
        (private / name).mkdir()
    assert {each.name for each in mine.stale()} == {f"{slug}.{namespace}.{pid}.1", f"{slug}.{namespace}.999999999.1"}
    assert began == group._began("self")
