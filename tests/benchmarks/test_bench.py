"""What `make bench` says and writes, and that nothing it starts outlives it; how long anything takes is not tested."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.benchmarks import asgi, measuring, report, scenarios
from tests.benchmarks.figures import FIGURES, Results
from tests.benchmarks.libraries import ARMS, LIBRARIES, REDIS, name_of
from tests.benchmarks.micro import MEMORY, MICRO
from tests.benchmarks.processes import ScenarioError, Started
from tests.benchmarks.scenarios import SCENARIOS
from tests.benchmarks.serving import Load, load
from tests.benchmarks.sink import span_count
from tests.benchmarks.streak_values import DATABASES

ROOT = Path(__file__).absolute().parents[2]


def bench(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def made_up(*, ours=10.0):
    """Results in which ours adds so many microseconds and each peer adds 100."""
    results = Results()
    for name in SCENARIOS:
        cost = {"bare": 100.0, "ours": 100.0 + ours, "ours_unsampled": 104.0}.get(name, 200.0)
        results.cpu[name, "plain"] = [cost, cost + 1, cost - 1]
        results.load[name] = [Load(1000, 1.0, 1000.0, 1.0)] * 2
        for variant in measuring.VARIANTS:
            results.calls[name, variant] = {"usual": 100 if name == "bare" else 130, "mean": 130.0, "share": 1.0}
    for library, (_, arms) in LIBRARIES.items():
        for arm in arms:
            results.libraries[library, arm] = [{"bare": 50.0, "ours": 50.0 + ours, "upstream": 150.0}[arm]] * 2
    results.micro = {name: [1.0 if name.endswith("ours") else 20.0] for name in MICRO}
    results.memory = {name: 1.0 if name.endswith("ours") else 2.0 for name in MEMORY}
    results.streak = {(part, database): rounds for part, rounds in STREAK.items() for database in DATABASES}
    return results


def streak_load(name):
    latencies = {"count": 10, "per_s": 5.0, "errors": 0, "p50_ms": 2.0, "p95_ms": 9.0, "p99_ms": 12.0, "max_ms": 15.0}
    generator = {"busy": 0.1, "late_p95_ms": 1.0, "pace": None}
    return [{
        "users": 20, "requests": {name: latencies}, "failures": {}, "trusted": True, "why": "", "generator": generator,
        "elsewhere": 0.0,
    }]  # fmt: skip


MAINTAINED = {"users": 1000, "wall_s": 1.5, "seconds": 0.5, "grown_mb": 2.0, "peak_mb": 100.0, "elsewhere": 0.0}
STREAK = {
    "calendar": streak_load("calendar"), "log": streak_load("log"), "1000": [MAINTAINED], "10000": [MAINTAINED],
    "100000": [MAINTAINED], "kill": [{"users": 10, "at_kill": 5, "exact": 1.0}],
    "transactions": [{"retries": 1.0, "failures": 0.0, "transactions": 1000}],
    "share": [{"on": {"cpu_us": 1000.0}, "off": {"cpu_us": 960.0}}],
}  # fmt: skip


def test_each_figure_is_told_with_its_target():
    """The JSON object has the names of the table, each with value, target and whether it is met."""
    told = report.as_json(made_up(), FIGURES)
    assert set(told["figures"]) == {
        "calls_5_routes", "calls_200_routes", "calls_full_context", "cpu_vs_stock", "cpu_vs_native", "cpu_vs_pfi",
        "uvicorn_share", "span_vs_stock", "record_vs_stock", "record_vs_prometheus", "encode_vs_stock",
        "unsampled_vs_sampled", "redis_vs_upstream", "sqlalchemy_vs_upstream", "httpx_vs_upstream",
        "request_overhead_ms", "query_overhead_ms", "cache_overhead_ms",
        "streak_maintenance_1k_s", "streak_maintenance_10k_s", "streak_maintenance_growth_mb",
        "streak_maintenance_peak_mb", "streak_kill_resume", "streak_calendar_p95_ms", "streak_log_p95_ms",
        "streak_errors", "streak_transaction_retry_share", "streak_transaction_failures",
        "streak_instrumentation_share",
    }  # fmt: skip
    assert all(set(each) == {"value", "target", "met"} for each in told["figures"].values())
    assert told["figures"]["cpu_vs_stock"] == {"value": 0.1, "target": 0.1, "met": True}
    assert told["figures"]["calls_5_routes"] == {"value": 30, "target": 40, "met": True}
    assert told["figures"]["streak_transaction_retry_share"] == {"value": 0.001, "target": 0.01, "met": True}
    assert told["figures"]["streak_instrumentation_share"] == {"value": 0.04, "target": 0.05, "met": True}
    assert told["figures"]["streak_kill_resume"] == {"value": 1.0, "target": 1, "met": True}
    assert told["figures"]["uvicorn_share"] == {"value": 1.0, "target": 0.85, "met": True}
    assert told["versions"]["python"] == sys.version.split()[0]


def test_a_figure_that_could_not_be_measured_says_why():
    """A peer that cannot run leaves null and the reason, and the other figures."""
    results = made_up()
    del results.cpu["pfi", "plain"]
    results.failed["pfi"] = "pfi: ModuleNotFoundError: No module named 'prometheus_fastapi_instrumentator'"
    told = report.as_json(results, FIGURES)["figures"]
    assert told["cpu_vs_pfi"]["value"] is None
    assert told["cpu_vs_pfi"]["met"] is False
    assert "prometheus_fastapi_instrumentator" in told["cpu_vs_pfi"]["why"]
    assert told["cpu_vs_stock"]["met"]
    assert "`cpu_vs_pfi` could not be measured" in report.not_faster(results, FIGURES)


def test_a_streak_figure_is_the_worse_database_and_wants_both():
    """A database that could not be measured leaves null and the reason; of two, the worse one counts."""
    results = made_up()
    results.streak["10000", "postgresql"] = [{**MAINTAINED, "wall_s": 20.0}]
    told = report.as_json(results, FIGURES)["figures"]["streak_maintenance_10k_s"]
    assert told == {"value": 20.0, "target": 15, "met": False}
    del results.streak["log", "postgresql"]
    results.failed["streak load postgresql"] = "postgres is not here"
    told = report.as_json(results, FIGURES)["figures"]
    assert told["streak_log_p95_ms"]["why"] == "postgres is not here"
    assert told["streak_calendar_p95_ms"]["met"]


def test_what_is_not_faster_is_said():
    """A missed target, a peer that is cheaper, spans that got lost and a disturbed load each get a line."""
    assert report.not_faster(made_up(), FIGURES).startswith("Everything that was measured is faster")
    slow = made_up(ours=150.0)
    slow.delivered["contrib"] = 2.5
    slow.load = {name: [Load(1000, 1.0, 100.0, 0.5)] for name in SCENARIOS}
    told = report.not_faster(slow, FIGURES)
    assert "`cpu_vs_stock` misses its target: 1.500 instead of 0.100" in told
    assert "Elastic APM (transactions) takes less CPU per request" in told
    assert "2.50 spans of a request arrived, not 3" in told
    assert "got 50% of its core" in told


def test_a_core_that_others_took_is_not_held_against_a_server():
    """Half as many requests in half the core time are the same share; more CPU for each of them is less."""
    results = made_up()
    results.load["bare"] = [Load(1000, 1.0, 1000.0, 1.0)]
    results.load["ours"] = [Load(400, 1.0, 1250.0, 0.5)]
    assert results.share("ours") == pytest.approx(0.8)


def test_noise_that_falls_on_a_whole_round_cancels_out():
    """A round in which everything took thrice as long does not change what is added by much."""
    results = made_up()
    for name in ("bare", "ours", "contrib"):
        results.cpu[name, "plain"][2] *= 3
    assert report.as_json(results, ["cpu_vs_stock"])["figures"]["cpu_vs_stock"]["value"] == pytest.approx(0.1)


def test_tables_go_between_their_markers(tmp_path):
    """What stands between the markers is replaced, all else stays; what was not measured stays too."""
    page = tmp_path / "performance.md"
    page.write_text(
        "a\n<!-- bench:cpu -->\nold\n<!-- /bench:cpu -->\nb\n<!-- bench:load -->\nkept\n<!-- /bench:load -->\n"
    )
    report.write({"cpu": r"new \1"}, page)
    report.write({"cpu": r"new \1"}, page)
    assert page.read_text() == (
        "a\n<!-- bench:cpu -->\nnew \\1\n<!-- /bench:cpu -->\nb\n<!-- bench:load -->\nkept\n<!-- /bench:load -->\n"
    )


def test_the_page_has_a_place_for_each_table(capsys, tmp_path):
    """Whatever a run makes finds its markers on docs/performance.md."""
    page = tmp_path / "performance.md"
    page.write_text((ROOT / "docs" / "performance.md").read_text(encoding="utf-8"))
    results = made_up()
    results.subjects = {(name, on): {"usual": 3} for name in ("redis_command",) for on in (True, False)}
    results.instructions = {"bare": 1000.0, "ours": 2000.0}
    report.write(report.tables(results, list(FIGURES)), page)
    assert capsys.readouterr().err == ""
    assert "| a Redis command | 3 | +0 |" in page.read_text()


def test_a_wrong_name_is_answered_with_the_right_one():
    """An unknown figure ends with 2 and the name that was meant."""
    done = bench("--only", "cpu_vs_stokc")
    assert done.returncode == 2
    assert "did you mean 'cpu_vs_stock'?" in done.stderr
    assert "wants the whole run" in bench("--only", "cpu_vs_stock", "--write").stderr
    assert "--list names them all" in bench("--only", "zzz").stderr


def test_the_list_names_all_figures():
    """--list tells each figure and its target, and measures nothing."""
    done = bench("--list")
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(FIGURES)
    assert done.stderr == ""


def test_one_figure_runs_by_itself():
    """--only measures what that figure needs, and --json prints it last."""
    done = bench("--only", "calls_5_routes", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert set(told) == {"calls_5_routes"}
    assert told["calls_5_routes"]["value"] > 0


def test_interrupted_it_leaves_no_process(tmp_path):
    """Ctrl-C ends the run, its children and the sink, with exit code 130."""
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks", "--only", "uvicorn_share"], cwd=ROOT, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    for line in run.stderr:
        if "ours" in line:
            break
    started = children_of(run.pid)
    assert len(started) >= 2
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == 130
    run.stderr.close()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in started if alive(pid)]


def children_of(pid):
    found = []
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(each.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(each.parent.name))
        except OSError:
            continue
    return found


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_scenario_that_cannot_be_set_up_says_why():
    """What a child cannot import or do is an error with its reason, and costs only itself."""
    with Started() as started:
        with pytest.raises(ScenarioError, match="KeyError: 'no_such'"):
            started.child("no_such")
        assert started.child("bare").ask("calls", kind="plain", routes=5)["usual"] > 0
        with pytest.raises(ScenarioError, match="bare: KeyError"):
            started.child("bare").ask("calls", kind="no_such", routes=5)


def test_ours_is_measured_with_its_export():
    """Each request of ours arrives at the sink as one span, and metrics arrive too."""
    with Started() as started:
        started.child("ours").ask("cpu", kind="context", requests=20)
        before = started.exports()["ours"]
        started.child("ours").ask("cpu", kind="plain", requests=20)
        after = started.exports()["ours"]
        assert after["spans"] - before["spans"] == 20 + 250 + 1
        assert after["exports"] > before["exports"]


def test_spans_are_counted_without_decoding_them():
    """The sink counts what an OTLP export holds as the protobuf library does."""
    message = ExportTraceServiceRequest()
    for resource in range(2):
        for scope in range(2):
            made = message.resource_spans.add().scope_spans.add()
            for number in range(resource + scope):
                made.spans.add(name=f"span {number}", start_time_unix_nano=5, attributes=[])
    assert span_count(message.SerializeToString()) == 4


def test_a_server_that_answers_wrongly_fails_the_load():
    """Only right answers count as requests: a 404 is an error, not a quick answer."""
    from fastapi import FastAPI

    from tests.serving import served

    with served(scenarios.application()) as url:
        done = load(int(url.rpartition(":")[2]), 0.1, time.process_time)
        assert done.requests > 0
    with served(FastAPI()) as url, pytest.raises(ConnectionError, match="404"):
        load(int(url.rpartition(":")[2]), 0.1, time.process_time)


def test_requests_are_those_of_a_client():
    """Eight headers, no trace context; the other kind adds traceparent, tracestate and baggage."""
    assert len(asgi.PLAIN) == 8
    added = [key for key, _ in asgi.CONTEXT[8:]]
    assert added == [b"traceparent", b"tracestate", b"baggage"]
    assert not {b"traceparent", b"tracestate", b"baggage"} & dict(asgi.PLAIN).keys()


@pytest.mark.parametrize("library", [each for each in LIBRARIES if each not in REDIS])
def test_a_library_is_measured_with_its_export(library):
    """Each call of ours through a library arrives as a span; without us nothing does."""
    with Started() as started:
        where = {"BENCH_HTTP": started.sink}
        for arm in ("bare", "ours"):
            assert started.child(name_of(library, arm), where).ask("cpu", times=250) > 0
        spans = {name: each["spans"] for name, each in started.exports().items()}
        assert spans == {f"{library}_ours": 500}


def test_a_library_of_upstream_that_is_missing_says_so():
    """Where the instrumentor is not installed its figure is null, with the reason."""
    results = made_up()
    del results.libraries["redis", "upstream"]
    results.failed[name_of("redis", ARMS[2])] = "ModuleNotFoundError: opentelemetry.instrumentation.redis"
    told = report.as_json(results, ["redis_vs_upstream", "httpx_vs_upstream"])["figures"]
    assert "opentelemetry.instrumentation.redis" in told["redis_vs_upstream"]["why"]
    assert told["httpx_vs_upstream"] == {"value": 0.1, "target": 0.25, "met": True}
    assert "| redis-py GET, real Redis | 50 | +10 | 17% |  |  |" in report.tables(results, [])["libraries"]
