"""What a worker tells, and how little of it is written anew."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf.conventions import Metric
from otel_perf.telemetry import told
from otel_perf.telemetry.publication import Cells, Publication, Told
from otel_perf.telemetry.series import Registry
from otel_perf.telemetry.summing import Tally

SCOPE = InstrumentationScope("test", "1", "https://schema", {"a": "b"})


class Worker:
    """A registry, and what it tells."""

    def __init__(self):
        self.registry = Registry()
        self.cells = Cells()
        self.cursor = self.registry.cursor(self.cells, keep_exemplars=True)
        self.publication = Publication()

    def record(self, kind, value, **labels):
        self.registry.instrument(Metric(kind, "", kind, "about"), SCOPE).of(labels).record(value)

    def tell(self, windows=()):
        return self.publication.renew(1, [("all", self.cursor.collect())], windows)


@pytest.fixture
def rows(monkeypatch):
    """The rows that are written."""
    written = []
    real = told.row

    def row(point):
        written.append(dict(point.attributes))
        return real(point)

    monkeypatch.setattr(told, "row", row)
    return written


def test_it_says_what_a_tally_says():
    """The document is that of the tally of the same figures, for every kind."""
    worker = Worker()
    for kind in ("counter", "updowncounter", "histogram", "gauge"):
        for code in (1, "1", True):
            worker.record(kind, (2, 5, 6, 7), code=code)
    whole = Tally(1)
    whole.take(worker.cursor.collect())
    mine, its = Tally.load(told.decoded(worker.tell())), Tally.load(told.decoded(told.document(**whole.dump())))
    assert mine == its
    assert len(mine.families) == 4


def test_only_what_changed_is_written_anew(rows):
    """A series that nobody recorded into costs no writing; its figures stay in the document."""
    worker = Worker()
    for name in "abc":
        worker.record("counter", 1, name=name)
        worker.record("gauge", 1, name=name)
    worker.tell()
    assert len(rows) == 6
    rows.clear()
    before = worker.tell()
    assert worker.tell() is before
    assert rows == []
    worker.record("counter", 4, name="b")
    read = Tally.load(told.decoded(worker.tell()))
    assert rows == [{"name": "b"}]
    values = [point.value for each in read.families.values() for point in each.points.values()]
    assert sorted(values) == [1, 1, 1, 1, 1, 5]


def test_what_callbacks_tell_again_is_not_news(rows):
    """Observed values that are the same are not written; other ones are, and those that are gone go."""
    worker = Worker()
    told_now = [(1, {"a": "x"}), (2, {"a": "y"})]
    worker.registry.instrument(Metric("seen", "", "gauge", "about"), SCOPE).observers.append(lambda: told_now)
    assert not worker.publication.says(worker.cursor.observe())
    before = worker.tell()
    rows.clear()
    assert worker.publication.says(worker.cursor.observe())
    assert worker.tell() is before
    told_now[1] = (3, {"a": "y"})
    assert not worker.publication.says(worker.cursor.observe())
    assert worker.tell() != before
    assert rows == [{"a": "y"}]
    del told_now[0]
    assert not worker.publication.says(worker.cursor.observe())
    assert b'"x"' not in worker.tell()


def test_a_cell_that_is_fed_says_so():
    """Whoever made the cells sees that one of them changed."""
    worker = Worker()
    assert worker.cells.fed is False
    worker.record("histogram", 1)
    worker.cursor.collect()
    assert worker.cells.fed is True


def test_the_text_of_a_window():
    """It is that of the cell, and the same until the cell is fed or starts anew."""
    registry = Registry()
    series = registry.instrument(Metric("took", "s", "histogram", "about"), SCOPE).of({"a": "x"})
    cell = Told(series)
    cell.feed([1.0])
    text = cell.text()
    assert text is cell.text()
    assert text == told.encode(["took", {"a": "x"}, *cell.dump()])
    cell.feed([2.0])
    assert cell.text() != text
    cell.reset()
    assert cell.text() != text
    worker = Worker()
    worker.record("counter", 1)
    before = worker.tell([text])
    assert worker.tell([text]) is before
    assert worker.tell([cell.text()]) != before
