"""The exchange: one truthful answer for all workers, whichever is asked, whoever dies."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

import otel_perf
from otel_perf import catalogue, measure
from otel_perf import conventions as c
from otel_perf.conventions import Metric
from otel_perf.insight import live
from otel_perf.insight.live import Live
from otel_perf.insight.snapshot import snapshot
from otel_perf.telemetry import runtime, shared_files, workers
from otel_perf.telemetry.group import Group
from otel_perf.telemetry.prometheus import Exposition
from otel_perf.telemetry.series import Registry
from otel_perf.telemetry.workers import Exchange

ROOT = Path(__file__).parents[2]
SCOPE = InstrumentationScope("test")
SOLD = Metric("sold", "", "counter", "about")
TOOK = Metric("took", "s", "histogram", "about", (), (0.1, 1.0))
ACTIVE = Metric("active", "", "updowncounter", "about")


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    """No test shares figures with another, and no worker publishes by the clock."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(workers, "_PUBLISH_EVERY_S", 3600.0)


class Worker:
    """A worker of a simulated group, in this process."""

    def __init__(self, group):
        self.registry = Registry()
        self.exchange = Exchange(self.registry, group)
        self.live = Live(self.registry, self.exchange)
        self.exposition = Exposition(self.exchange.metrics)

    def record(self, metric, value):
        self.registry.instrument(metric, SCOPE).of({}).record(value)

    def die(self):
        """As after SIGKILL: the lock is free, and nothing more is written."""
        ledger, self.exchange._ledger = self.exchange._ledger, None
        ledger.leave()
        self.exchange.shutdown(5)

    def scrape(self):
        return samples(self.exposition.render(Resource({}), openmetrics=True))


def samples(text):
    """Name with labels but for the scope -> value."""
    read = {}
    for line in text.splitlines():
        found = re.match(r"(\w+)(\{.*?\})? ([^ #]+)", line)
        if found and not line.startswith("#"):
            labels = re.sub(r'otel_scope_\w+="[^"]*",?', "", found[2] or "").replace(",}", "}").replace("{}", "")
            read[found[1] + labels] = float(found[3])
    return read


@pytest.fixture
def group(tmp_path):
    return Group("shop", tmp_path / "group", certain=False)


@pytest.fixture
def worker(group):
    made = []

    def make():
        made.append(Worker(group))
        return made[-1]

    yield make
    for each in made:
        each.exchange.shutdown(5)


def test_whoever_is_asked_tells_all(worker):
    """Sums of all workers, exact and the same from each, in `/metrics` as in insight."""
    one, other = worker(), worker()
    for each, sold in ((one, 3), (other, 4)):
        each.record(SOLD, sold)
        each.record(TOOK, 0.5)
        each.record(ACTIVE, 1)
        each.scrape()
    for each in (one, other):
        assert each.scrape() == {
            "target_info": 1, "sold_total": 7, "active": 2, "took_seconds_count": 2, "took_seconds_sum": 1.0,
            'took_seconds_bucket{le="0.1"}': 0, 'took_seconds_bucket{le="1.0"}': 2, 'took_seconds_bucket{le="+Inf"}': 2,
        }  # fmt: skip
        read = each.live.read()
        assert {name: value for name, _, value in read.numbers} == {"sold": 7, "active": 2}
        assert [(name, cell.total.count, cell.recent().count) for name, _, cell in read.windows] == [("took", 2, 2)]
        assert (read.living, read.ended) == (2, 0)


def test_the_dead_keep_what_they_counted_and_nothing_else(worker):
    """After a death counters and histograms stay, what was in flight goes; the replacement adds to it."""
    one, other = worker(), worker()
    one.record(SOLD, 3)
    one.record(TOOK, 0.5)
    one.record(ACTIVE, 1)
    one.exchange.flush(5)
    one.record(SOLD, 100)  # never published
    one.die()
    for _ in range(2):
        read = other.scrape()
        assert (read["sold_total"], read["took_seconds_count"]) == (3, 1)
        assert "active" not in read
    new = worker()
    new.record(SOLD, 1)
    assert new.scrape()["sold_total"] == other.scrape()["sold_total"] == 4
    assert (other.live.read().living, other.live.read().ended) == (2, 1)


def test_an_orderly_end_loses_nothing(worker):
    """The last figures are published at the shutdown."""
    one, other = worker(), worker()
    one.record(SOLD, 3)
    assert one.exchange.shutdown(5) is True
    assert other.scrape()["sold_total"] == 3
    assert one.scrape()["sold_total"] == 3  # alone from now on


def test_the_start_is_that_of_the_first(worker):
    """Uptime counts from the start of the first worker, also when that one has ended."""
    one = worker()
    one.exchange._started_ns -= 1000 * 10**9
    one.scrape()
    one.die()
    read = worker().live.read()
    assert 999 < read.uptime_s < 1100
    assert read.window_s == 60


def test_a_gauge_is_what_was_set_last_and_not_who_was_asked_last(worker):
    """Asking an old worker again does not bring its old value back."""
    level = Metric("level", "", "gauge", "about")
    one, other = worker(), worker()
    one.record(level, 9)
    one.scrape()
    other.record(level, 2)
    for each in (one, other, other, one):
        each.exchange.flush(5)
    other.scrape()
    assert one.scrape()["level"] == other.scrape()["level"] == 2
    for value in (5, 9):
        one.record(level, value)
        assert one.scrape()["level"] == other.scrape()["level"] == value
    other.record(level, 2)  # the value that it had before
    assert other.scrape()["level"] == one.scrape()["level"] == 2


def test_a_directory_that_cannot_be_written_leaves_each_to_itself(tmp_path, caplog):
    """It is said once, with what to do; figures are those of the one that is asked."""
    (tmp_path / "file").write_text("")
    one, other = (Worker(Group("shop", tmp_path / "file")) for _ in range(2))
    for each in (one, other):
        each.record(SOLD, 3)
        for _ in range(3):
            assert each.scrape()["sold_total"] == 3
    assert [message.count("OTEL_PERF_WORKERS_DIR") for message in caplog.messages] == [1, 1]
    for each in (one, other):
        assert each.exchange.shutdown(5) is True


@pytest.fixture
def disk(monkeypatch):
    """A disk that can be full."""
    real, state = shared_files.write_all, {"full": False}

    def write_all(opened, written):
        if state["full"]:
            raise OSError(28, "No space left on device")
        real(opened, written)

    monkeypatch.setattr(shared_files, "write_all", write_all)
    return state


def test_on_a_full_disk_all_answers_stay_the_same(worker, disk, caplog):
    """Whoever is asked tells what all can see; a death, and who comes new, change nothing; later all is there."""
    one, other = worker(), worker()
    for each in (one, other):
        each.record(SOLD, 5)
        each.record(TOOK, 0.5)
        each.scrape()
    disk["full"] = True
    one.record(SOLD, 100)
    other.record(SOLD, 1000)
    other.record(TOOK, 0.5)
    new = worker()
    new.record(SOLD, 10_000)
    for each in (one, other, new, one):
        each.exchange.flush(5)
        read = each.scrape()
        assert (read["sold_total"], read["took_seconds_count"]) == (10, 2)
        insight = each.live.read()
        assert [cell.total.count for _, _, cell in insight.windows] == [2]
        assert (insight.living, insight.ended) == (2, 0)
    one.die()
    assert other.scrape()["sold_total"] == new.scrape()["sold_total"] == 10
    assert [message.count("what was written last") for message in caplog.messages] == [1, 1, 1]
    disk["full"] = False
    other.exchange.flush(5)
    assert other.scrape()["sold_total"] == 1010
    assert new.scrape()["sold_total"] == other.scrape()["sold_total"] == 11_010


def test_where_nothing_could_ever_be_written_each_answers_for_itself(worker, disk):
    """Better one worker's figures than none."""
    disk["full"] = True
    one, other = worker(), worker()
    for each, sold in ((one, 3), (other, 4), (one, 3)):
        each.record(SOLD, sold)
        assert each.scrape()["sold_total"] >= sold
    disk["full"] = False
    assert one.scrape()["sold_total"] == 6
    assert other.scrape()["sold_total"] == 10


def test_a_publication_that_costs_more_comes_less_often(worker, monkeypatch):
    """It takes at most a fiftieth of the time, but comes at least every ten seconds, and at once when it is wanted."""
    one = worker()
    now, cost, times = 1000.0, 0.0, []

    class Clock:
        monotonic = staticmethod(lambda: now)
        thread_time = staticmethod(lambda: cost * len(times))
        time_ns = staticmethod(time.time_ns)

    monkeypatch.setattr(workers, "time", Clock)
    monkeypatch.setattr(one.exchange, "_publish", lambda: times.append(now))
    for each_s, wanted in ((0.0, 20), (0.01, 20), (0.04, 10), (0.3, 2)):
        cost = each_s
        times.clear()
        one.exchange._due_s = 0.0
        begin = now
        while now < begin + 20:
            one.exchange._tick()
            now += 1
        assert len(times) == wanted
    times.clear()
    one.exchange._tick()
    assert times == [now]
    one.exchange._tick()
    one.exchange.flush(5)
    assert times == [now, now]


def test_a_worker_with_nothing_new_looks_and_no_more(worker, group, monkeypatch):
    """Nothing is collected or written where nothing was recorded, and callbacks say the same; what comes is told."""
    one, other = worker(), worker()
    seen = [1]
    one.registry.instrument(Metric("seen", "", "gauge", "about"), SCOPE).observers.append(lambda: [(seen[0], {})])
    one.record(SOLD, 5)
    one.record(TOOK, 0.5)
    one.exchange.flush(5)
    [path] = group.directory.glob("worker-*")
    before, real, collected = path.stat(), one.exchange._collect, []

    def collect():
        collected.append(1)
        return real()

    monkeypatch.setattr(one.exchange, "_collect", collect)
    for _ in range(3):
        one.exchange.flush(5)
    assert (collected, path.stat().st_ino) == ([], before.st_ino)
    for number, change in enumerate((lambda: one.record(SOLD, 1), lambda: seen.__setitem__(0, 7)), 1):
        change()
        one.exchange.flush(5)
        assert len(collected) == number
    read = other.scrape()
    assert (read["sold_total"], read["seen"]) == (6, 7)


def test_the_page_names_no_worker_where_there_are_several(worker):
    """`target_info` does not change with the worker that answers; one that is alone keeps its id."""
    resource = Resource({"service.name": "shop", "service.instance.id": "me", "process.pid": 1})
    one = worker()
    assert 'service_instance_id="me"' in one.exposition.render(resource)
    worker().scrape()
    text = one.exposition.render(resource)
    assert 'target_info{service_name="shop"} 1' in text


steps = st.lists(
    st.tuples(st.sampled_from(["record", "record", "publish", "scrape", "die", "end", "replace"]), st.integers(0, 3)),
    max_size=40,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_whatever_happens_no_counter_goes_down(program):
    """Any order of recording, publishing, dying, ending, replacing and asking: the answer is what was published."""
    with tempfile.TemporaryDirectory() as directory:
        group = Group("shop", Path(directory))
        slots = [Worker(group) for _ in range(4)]
        published, pending, last = 0, [0] * 4, 0
        try:
            for what, index in program:
                each = slots[index]
                if what == "record":
                    each.record(SOLD, 1)
                    each.record(TOOK, 0.5)
                    pending[index] += 1
                elif what in {"die", "replace", "end"}:
                    if what == "end":
                        each.exchange.shutdown(5)
                        published += pending[index]
                    else:
                        each.die()
                    slots[index], pending[index] = Worker(group), 0
                elif what == "publish":
                    each.exchange.flush(5)
                    published, pending[index] = published + pending[index], 0
                else:
                    read = each.scrape()
                    published, pending[index] = published + pending[index], 0
                    now = read.get("sold_total", 0)
                    windows = [cell.total.count for _, _, cell in each.live.read().windows]
                    assert now == published >= last
                    assert read.get("took_seconds_count", 0) == published == sum(windows)
                    last = now
        finally:
            for each in slots:
                each.exchange.shutdown(5)


# configure() ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def configured():
    """Configures as an application does, without what keeps tests apart."""

    def configure(**given):
        otel_perf.configure(service_name="test", **given)
        assert runtime.current is not None
        return runtime.current

    yield configure
    otel_perf.shutdown()


def scraped(in_force):
    return samples(in_force.exposition.render(in_force.resource))


def ours():
    return [each.name for each in threading.enumerate() if each.name == "otel_perf-workers"]


def test_a_process_without_siblings_pays_nothing(configured, tmp_path):
    """No thread, no file, no directory; its figures are its own."""
    in_force = configured()
    with measure("work"):
        pass
    assert snapshot(in_force, live.of(in_force))["workers"] == {"living": 1, "ended": 0}
    assert ours() == []
    assert list(tmp_path.iterdir()) == []


def test_configured_again_its_own_figures_start_anew_and_the_groups_do_not(configured, tmp_path):
    """With `workers_dir` totals go on over a new configuration; without, they begin from zero."""
    for directory, wanted in ((None, [1, 1]), (str(tmp_path / "w"), [1, 2])):
        counts = []
        for _ in range(2):
            in_force = configured(workers_dir=directory)
            catalogue.counter("workers.sold").add(1)
            counts.append(scraped(in_force)["workers_sold_total"])
        assert counts == wanted
        assert len(ours()) == (1 if directory else 0)
    otel_perf.shutdown()
    assert ours() == []


def test_the_export_of_all_workers_is_told(configured, tmp_path):
    """What the page says of spans made and lost is that of all workers."""
    in_force = configured(workers_dir=str(tmp_path / "w"), endpoint="http://127.0.0.1:9", export_timeout_s=0.2)
    other = Worker(in_force.exchange._group)
    instrument = other.registry.instrument(c.SPANS_MADE, InstrumentationScope(c.SCOPE))
    instrument.observers.append(lambda: [(5, {})])
    dropped = other.registry.instrument(c.DROPPED, InstrumentationScope(c.SCOPE))
    dropped.observers.append(lambda: [(2, {"signal": "traces", "reason": "queue_full"})])
    other.scrape()
    with measure("work"):
        pass
    export = snapshot(in_force, live.of(in_force))["export"]
    assert (export["made"], export["lost_by_reason"]["queue_full"]) == (6, 2)
    other.exchange.shutdown(5)


def test_a_forked_child_joins_its_parent(configured, tmp_path):
    """A child that measures is in its parent's answer, while it lives and later; the parent leaves no files."""
    in_force = configured()
    count = catalogue.counter("workers.forked")
    count.add(1)
    go, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go[1])  # so that the child ends with the test, however that ends
            count.add(10)
            in_force.exchange.flush(5)
            os.write(done[1], b"x")
            os.read(go[0], 1)
        finally:
            os._exit(0)

    def read():
        return scraped(in_force)["workers_forked_total"]

    os.read(done[0], 1)
    assert read() == 11
    os.write(go[1], b"x")
    os.waitpid(pid, 0)
    assert read() == 11
    count.add(1)
    assert read() == 12
    for each in (*go, *done):
        os.close(each)
    [private] = tmp_path.iterdir()
    assert len(list(private.iterdir())) == 1
    otel_perf.shutdown()
    assert list(private.iterdir()) == []


def test_a_forked_child_that_measures_nothing_is_no_worker(configured, tmp_path):
    """It writes no file when its second is over, nor at its end."""
    configured()
    pid = os.fork()
    if pid == 0:
        try:
            otel_perf.shutdown()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert list(tmp_path.iterdir()) == []


# Real servers ---------------------------------------------------------------------------------------------------------

APP = """
    import os
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from otel_perf import catalogue, configure, instrument
    from otel_perf.web import mount

    configure(service_name="shop")
    sold = catalogue.counter("shop.sold")

    async def buy(request):
        sold.add(1)
        return PlainTextResponse(str(os.getpid()))

    app = Starlette(routes=[Route("/buy", buy)])
    instrument(app)
    mount(app)
"""


@dataclass
class Service:
    port: int
    bought: int = 0
    least: float = 0

    def get(self, path):
        # A connection of its own each time, so that any worker may answer.
        while True:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
                try:
                    connection.request("GET", path)
                    return connection.getresponse().read()
                except (OSError, http.client.HTTPException):  # the worker that was asked was killed
                    time.sleep(0.02)

    def buy(self):
        pid = int(self.get("/buy"))
        self.bought += 1
        return pid

    def sold(self):
        """What /metrics says; never less than it said before."""
        read = samples(self.get("/metrics").decode())
        now = read.get("shop_sold_total", 0)
        route = '{http_request_method="GET",http_response_status_code="200",http_route="/buy"'
        counts = [
            value
            for name, value in read.items()
            if name.startswith(f"http_server_request_duration_seconds_count{route}")
        ]
        assert self.least <= now <= self.bought
        self.least = now
        return now, sum(counts)

    def page(self):
        document = json.loads(self.get("/api/performance"))
        rows = {row["metric"]: row.get("value") for row in document["catalogue"]}
        routes = {row["route"]: row["count"] for row in document["requests"]["routes"]}
        return (rows.get("shop.sold", 0), routes.get("/buy", 0))

    def settled(self, wanted):
        """Waits until every worker has published, then asks many times."""
        deadline = time.monotonic() + 15
        while self.sold() != (wanted, wanted) and time.monotonic() < deadline:
            time.sleep(0.05)
        answers = {(self.sold(), self.page()) for _ in range(8)}
        assert answers == {((wanted, wanted), (wanted, wanted))}


@contextmanager
def server(tmp_path, *command: str, address: str) -> Iterator[Service]:
    (tmp_path / "shop.py").write_text(textwrap.dedent(APP))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "COV_"))}
    log = tmp_path / "log"
    with log.open("wb") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=tmp_path, stdout=output, stderr=output,
            env={**env, "PYTHONPATH": f"{ROOT}:{tmp_path}", "TMPDIR": str(tmp_path)},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not (found := re.search(address, log.read_text())) and time.monotonic() < deadline:
            assert started.poll() is None, log.read_text()
            time.sleep(0.02)
        assert found, log.read_text()
        yield Service(int(found[1]))
    finally:
        started.terminate()
        try:
            started.wait(20)
        finally:
            started.kill()
            started.wait()
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn", "gunicorn --preload"])
def test_two_workers_of_a_real_server(tmp_path, kind):
    """`/metrics` and the page agree whichever worker answers; one is killed and replaced, and no counter goes down."""
    if kind == "uvicorn":
        command = ["uvicorn", "shop:app", "--workers", "2", "--port", "0"]
        address = r"http://127\.0\.0\.1:(\d+)"
    else:
        pytest.importorskip("gunicorn")
        command = ["gunicorn", "shop:app", "-w", "2", "-k", "asgi", "-b", "127.0.0.1:0", *kind.split()[1:]]
        address = r"Listening at: http://127\.0\.0\.1:(\d+)"
    with server(tmp_path, *command, address=address) as service:
        pids = set()
        while len(pids) < 2 or service.bought < 20:
            pids.add(service.buy())
            service.sold()
        service.settled(service.bought)
        os.kill(victim := min(pids), signal.SIGKILL)
        new = set()
        while not new - pids:
            new.add(service.buy())
            service.sold()
        assert victim not in new
        service.settled(service.bought)
        workers_now = json.loads(service.get("/api/performance"))["workers"]
        assert workers_now == {"living": 2, "ended": 1}
    [private] = tmp_path.glob("otel_perf-*")
    left = list(private.iterdir())
    if kind.endswith("--preload"):  # its parent runs the app's code, and took away what its workers shared
        assert left == []
    else:
        told = [json.loads(path.read_bytes()) for path in left[0].glob("*.json")]
        sold = sum(row[-1] for each in told for f in each["families"] if f[1] == "shop.sold" for row in f[-1])
        assert sold == service.bought
