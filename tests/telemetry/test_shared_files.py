"""Files of several processes, and what may stand in their place."""

from __future__ import annotations

import os

import pytest

from otel_perf.telemetry import shared_files


@pytest.mark.parametrize("kind", ["link", "directory", "pipe"])
def test_only_a_file_is_opened(tmp_path, kind):
    """Anything else is refused at once, to read and, but for a directory's own error, to write."""
    path = tmp_path / "it"
    if kind == "link":
        (tmp_path / "other").write_text("x")
        path.symlink_to(tmp_path / "other")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(shared_files.NotRegularError), shared_files.regular(path):
        pass
    with pytest.raises(OSError, match=r"symbolic|Is a directory|No such device"):
        shared_files.create(path)


def test_a_file_is_read_and_closed(tmp_path):
    """What was written is read, and the descriptor does not outlive the block."""
    opened = shared_files.create(tmp_path / "it")
    shared_files.write_all(opened, b"x" * 100_000)
    os.close(opened)
    with shared_files.regular(tmp_path / "it") as opened:
        assert shared_files.read_all(opened) == b"x" * 100_000
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(opened)


def test_what_is_gone(tmp_path):
    """A file that somebody removed is long ago, is nobody's, and can be removed again."""
    path = tmp_path / "it"
    opened = shared_files.create(path)
    assert shared_files.is_still(opened, path)
    shared_files.remove(path, path)
    assert not shared_files.is_still(opened, path)
    os.close(opened)
    assert shared_files.changed_s(path) == 0
    with pytest.raises(FileNotFoundError), shared_files.regular(path):
        pass


def test_a_lock_is_had_by_one(tmp_path):
    """The second who asks is told no, until the first gives it back."""
    for _ in range(2):
        with shared_files.locked(tmp_path / "lock") as mine, shared_files.locked(tmp_path / "lock") as other:
            assert (mine, other) == (True, False)
