"""Child processes of every kind send their own, once, whoever ends them and however they were started."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from otel_perf.testing import FakeCollector
from tests.reliability.processes import Together, started

LONG = {"OTEL_PERF_SPAN_INTERVAL_S": "60", "OTEL_PERF_METRIC_INTERVAL_S": "3600"}

MULTIPROCESSING = """
import concurrent.futures, json, multiprocessing, sys, time
import otel_perf
from otel_perf import measure

otel_perf.configure("app")

def work(name, connection=None):
    with measure(name):
        pass
    if connection is not None:
        connection.send("begun")
        time.sleep(60)

if __name__ == "__main__":
    workers = 2 if sys.argv[1] == "fork" else 1  # each of the others imports everything
    methods = multiprocessing.get_context(sys.argv[1])
    with measure("parent"):
        pass
    children = [methods.Process(target=work, args=("process",)) for _ in range(workers)]
    mine, theirs = methods.Pipe()
    terminated = methods.Process(target=work, args=("terminated", theirs))
    for child in [*children, terminated]:
        child.start()
    with methods.Pool(workers) as pool:
        pool.map(work, 6 * ["pool"], chunksize=1)
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=methods) as executor:
        list(executor.map(work, 6 * ["executor"]))
    mine.recv()
    terminated.terminate()
    for child in [*children, terminated]:
        child.join()
    print(json.dumps([child.exitcode for child in [*children, terminated]]))
"""


@pytest.fixture(scope="module")
def ended(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("children")
    (folder / "main.py").write_text(MULTIPROCESSING)

    def run(method: str):
        with FakeCollector() as collector:
            told = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **LONG}
            with started("-W", "ignore", "main.py", method, cwd=folder, **told) as running:
                assert running.exit_code() == 0, running.text
                return running.lines, collector

    return Together(request, "method", run)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_send_their_own(ended, method):
    """Processes, pools that are terminated, executors, a child that is terminated: each span once, exit codes stay."""
    lines, collector = ended[method]
    processes = 2 if method == "fork" else 1
    assert lines == [str([*(processes * [0]), -15])]
    assert Counter(each.name for each in collector.spans) == {
        "parent": 1, "process": processes, "terminated": 1, "pool": 6, "executor": 6,
    }, collector.errors  # fmt: skip
    owners: dict[str, set[str]] = {}
    for each in collector.spans:
        owners.setdefault(each.resource["service.instance.id"], set()).add(each.name)
    assert all(len(names) == 1 for names in owners.values()), "one process sent what another recorded"
    assert sum(names == {"process"} for names in owners.values()) == processes


THREADS = """
import json, os, sys, threading, warnings
warnings.simplefilter("ignore")
import otel_perf
from otel_perf import catalogue, measure

otel_perf.configure("app", queue_size=1_000_000)
told = catalogue.counter("kit.told")
stop = threading.Event()
counts = {}

def record(name):
    count = 0
    while not stop.is_set() and count < 5000:
        with measure("parent"):
            pass
        told.add(1)
        count += 1
    counts[name] = count

def child(flush):
    for _ in range(50):
        with measure("child" if flush else "lost"):
            pass
        told.add(1)
    os._exit(0 if not flush or otel_perf.flush(20) else 1)

threads = [threading.Thread(target=record, args=(name,)) for name in range(3)]
for thread in threads:
    thread.start()
pids = []
for at in range(5):
    pid = os.fork()
    if pid == 0:
        child(flush=at > 0)
    pids.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
stop.set()
for thread in threads:
    thread.join()
done = otel_perf.shutdown(20)
print(json.dumps({"codes": codes, "parent": sum(counts.values()), "done": done}))
"""


def test_forks_while_threads_record(tmp_path):
    """Nobody hangs, nothing is sent twice or lost, but for what a child has when it leaves by `os._exit`."""
    with FakeCollector() as collector:
        told = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **LONG}
        with started(script=THREADS, cwd=tmp_path, **told) as running:
            assert running.exit_code() == 0, running.text
        answer = json.loads(running.lines[-1])
    assert answer["codes"] == [0, 0, 0, 0, 0]
    assert answer["done"]
    by_owner: dict[str, Counter[str]] = {}
    for each in collector.spans:
        by_owner.setdefault(each.resource["service.instance.id"], Counter())[each.name] += 1
    assert sorted(map(dict, by_owner.values()), key=str) == [
        *(4 * [{"child": 50}]),
        {"parent": answer["parent"]},
    ]
    totals = {
        each.resource["service.instance.id"]: each.points[0].as_int
        for each in collector.metrics
        if each.name == "kit.told"
    }
    assert sorted(totals.values()) == [50, 50, 50, 50, answer["parent"]]


ALONE = """
import multiprocessing

def work():
    import otel_perf
    from otel_perf import measure
    otel_perf.configure("child")
    otel_perf.configure("child again")
    with measure("work"):
        pass

child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join()
print(child.exitcode)
"""


def test_a_forked_child_may_configure_itself(tmp_path):
    """Its parent knows nothing of us, and it leaves without `atexit`; what it recorded arrives."""
    with FakeCollector() as collector:
        told = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **LONG}
        with started(script=ALONE, cwd=tmp_path, **told) as running:
            assert running.exit_code() == 0
            assert running.lines == ["0"]
    assert [(each.name, each.resource["service.name"]) for each in collector.spans] == [("work", "child again")]


JOINED = """
import os, warnings
warnings.simplefilter("ignore")
import otel_perf
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider(resource=Resource({})))
otel_perf.configure("app")
from concurrent.futures import ThreadPoolExecutor
if os.fork() == 0:
    os._exit(0)
print(os.wait()[1])
"""


def test_a_fork_does_not_hang_on_the_sdks_own_handler(tmp_path):
    """Where we were imported first, the executor that the SDK uses in the child has its lock back by then."""
    with started(script=JOINED, cwd=tmp_path) as running:
        assert running.exit_code(20) == 0
        assert running.lines == ["0"]
