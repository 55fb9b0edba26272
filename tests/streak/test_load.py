"""Locust's users on a real service: they count what it counts, go to loopback only, and miss targets loudly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest

from examples.streak.load_targets import BadTargetError, judge, p, read_targets, require_loopback
from tests.benchmarks import streak_load, streak_seed, streak_values
from tests.benchmarks.processes import Started
from tests.benchmarks.report import markdown_table
from tests.benchmarks.streak import Size, Streak, today
from tests.benchmarks.streak_bare import Nothing
from tests.benchmarks.streak_places import Places
from tests.benchmarks.streak_report import load_table
from tests.benchmarks.streak_values import UntoldError

ROOT = Path(__file__).absolute().parents[2]


def run(module, *arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, **variables}, timeout=50,
    )  # fmt: skip


@pytest.fixture
def places(redis_server):
    """Databases and Redis of one run, with a sink for what the service exports."""
    with Started() as started, Places(started.sink) as made:
        yield made


def test_locust_counts_what_the_service_counts(places):
    """Every request that Locust sent is one that the service measured, by route, with no failure on either side."""
    url = places.database("sqlite")
    streak_seed.seed(url, *streak_seed.readers(today(), hot=20, cold=50))
    service = places.service(url)
    found = places.generate(service, "log", users=5, seconds=1.5, cold_from=0, warm_up_s=0.5)
    told = service.performance()["requests"]
    routes = {row["route"]: row for row in told["routes"]}
    assert found["sent"] == {
        "log": routes["/api/activities"]["count"], "calendar": routes["/api/calendar"]["count"]
    }  # fmt: skip
    assert told["errors"] == 0
    assert found["failures"] == {}
    # On the dot: whoever logs does so each second, and what came due within the time is all that counts.
    assert found["requests"]["log"]["count"] in {5, 6, 7, 8, 9, 10}
    assert 0 < found["requests"]["log"]["p50_ms"] <= found["requests"]["log"]["max_ms"]
    # A fifth of the reads asked for somebody new, and the cache missed those at least.
    assert found["cold_next"] == found["sent"]["calendar"] // 5
    assert service.counted("streak_transaction_failures_total") == 0
    assert service.counted("streak_xp_total") > 0
    written = streak_seed.query(url, "SELECT count(*) FROM streak_activities WHERE bonus_xp >= 0")
    assert written[0][0] == 70 * 12 + found["sent"]["log"]


class _Stalls(BaseHTTPRequestHandler):
    """Answers nobody until it may."""

    protocol_version = "HTTP/1.1"
    may = threading.Event()

    def do_GET(self):
        self.may.wait(30)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


def test_a_stall_drops_no_reads():
    """Each reader is due twice within four seconds: both reads are made and counted, though none got through."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Stalls)
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever, args=(0.05,))
    serving.start()
    ends = threading.Timer(6.0, _Stalls.may.set)
    ends.start()
    try:
        done = run(
            "examples.streak.load_run", "--url", f"http://127.0.0.1:{server.server_address[1]}", "--users", "10",
            "--seconds", "4", "--warm-up", "0", STREAK_SECRET="0123456789abcdef",
        )  # fmt: skip
    finally:
        ends.cancel()
        _Stalls.may.set()
        server.shutdown()
        serving.join()
        server.server_close()
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)["requests"]["calendar"]
    assert read["count"] >= 18  # one of a reader may have been due before the counting began
    # The second read could be sent when the first one was answered, seconds after it was due.
    assert read["p50_ms"] > read["from_sent"]["p50_ms"]


def test_the_table_tells_who_asked_for_what():
    """Numbers of users, and rates that were asked for, are those of the run."""
    told = {
        (shape, "sqlite"): [
            {
                "users": 20, "trusted": True, "elsewhere": 0.0, "generator": {"busy": 0.1},
                "requests": {
                    name: {"per_s": 4.5, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": 3.0, "errors": 0} for name in names
                },
            }
        ]
        for shape, names in (("calendar", ["calendar"]), ("log", ["log", "calendar"]), ("closed", ["calendar"]))
    }  # fmt: skip
    rows = [[cell.strip() for cell in line.split("|")] for line in load_table(told, markdown_table).splitlines()[2:]]
    assert [(row[1].partition(" ")[0], row[1].partition(": ")[2], row[3]) for row in rows] == [
        ("20", "calendar", "10"), ("20", "log", "20"), ("20", "calendar", "10"), ("20", "calendar", "-"),
    ]  # fmt: skip
    assert "100" not in load_table(told, markdown_table)


def test_failures_are_counted_and_told(places):
    """A token that the service does not trust is a failure of every request, with its status."""
    service = places.service(places.database("sqlite"))
    places.secret = "not-the-secret-of-this-service"
    found = places.generate(service, "calendar", users=3, seconds=1.5, cold_from=0, warm_up_s=0.5)
    sent = found["sent"]["calendar"]
    assert found["failures"] == {"calendar: 401": sent}
    told = {("calendar", "sqlite"): [found]}
    assert streak_values.errors(told, "sqlite") == sent


def test_a_service_without_otel_perf_serves_alike(places):
    """What the share is measured against answers the same, and has no page, no metrics and no spans."""
    service = places.service(places.database("sqlite"), bare=True)
    found = places.generate(service, "log", users=2, seconds=1.2, cold_from=0, warm_up_s=0.5)
    assert found["failures"] == {}
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        answer = client.get("/api/health")
        assert answer.status_code == 200
        assert "traceresponse" not in answer.headers
        assert client.get("/metrics").status_code == 404
        assert client.get("/api/performance").status_code == 404


def test_nothing_stands_for_all_that_a_service_uses():
    """Decorated functions stay as they are, blocks run, instruments take what they are given."""
    nothing = Nothing()

    def function():
        return 3

    assert nothing("step", category="x")(function) is function
    assert nothing.job("daily", every="1d")(function) is function
    assert nothing(function) is function
    nothing.counter("a.b", unit="1").add(1, reason="x")
    with nothing("step") as step:
        step.items = 3
    with pytest.raises(ZeroDivisionError), nothing("step"):
        raise ZeroDivisionError


def test_a_missed_target_ends_with_1(tmp_path, redis_server):
    """`make load` ends with 1 when a target is missed, and its table and its JSON say which."""
    strict = tmp_path / "mine.json"
    strict.write_text('{"calendar_p95_ms": 1e-9}')  # no machine is that quick
    done = run(
        "tests.benchmarks.streak_load", "--database", "sqlite", "--seconds", "1.5", "--users", "3", "--rounds", "1",
        "--json", "--targets", str(strict),
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]["sqlite"]
    assert set(figures) == set(read_targets())
    assert figures["calendar_p95_ms"]["met"] is False
    assert figures["errors"] == {"value": 0.0, "target": 0, "met": True}
    assert "| calendar_p95_ms | sqlite |" in done.stdout
    assert "**no**" in done.stdout


@pytest.mark.parametrize(("value", "code"), [(149.0, 0), (151.0, 1), (None, 1)])
def test_the_exit_code_is_that_of_the_figures(monkeypatch, capsys, value, code):
    """0 when every target is met; 1 when one is missed, or could not be told."""
    verdicts = judge({"calendar_p95_ms": value, "errors": 0.0}, read_targets(), "Locust was the bottleneck")
    monkeypatch.setattr(streak_load, "_run", lambda *_: ({"sqlite": verdicts}, {}))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert streak_load.main([]) == code
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ("Locust was the bottleneck" in capsys.readouterr().out) is (value is None)


def test_help_and_wrong_arguments():
    """--help has examples; what cannot be used ends with 2 and says what would do."""
    module = "tests.benchmarks.streak_load"
    assert "make load ARGS=" in run(module, "--help").stdout
    assert "to 400 users" in run(module, "--users", "0").stderr
    assert run(module, "--users", "0").returncode == 2
    assert "cannot be read" in run(module, "--targets", "nowhere.json").stderr


@pytest.mark.parametrize("url", ["http://example.com:80", "http://192.0.2.1:80", "http://localhost:80", "127.0.0.1:80"])
def test_strangers_are_refused(url):
    """Only a loopback address is driven, whoever starts Locust."""
    with pytest.raises(BadTargetError, match="loopback"):
        require_loopback(url)
    assert require_loopback("http://127.0.0.1:80/") == "http://127.0.0.1:80"
    assert require_loopback("http://[::1]:80") == "http://[::1]:80"


def test_the_driver_refuses_strangers_too():
    """The driver's own command, and Locust's with this file, end before anything is sent."""
    secret = {"STREAK_SECRET": "0123456789abcdef"}
    done = run("examples.streak.load_run", "--url", "http://192.0.2.1:80", **secret)
    assert done.returncode == 2
    assert "not on loopback" in done.stderr
    by_hand = run(
        "locust", "-f", "examples/streak/load.py", "--headless", "-u", "1", "-t", "1s", "--host", "http://192.0.2.1:80",
        **secret,
    )  # fmt: skip
    assert by_hand.returncode != 0
    assert "not on loopback" in by_hand.stderr


def test_a_file_of_targets(tmp_path):
    """It changes what it names; a wrong name or value says what would do."""
    file = tmp_path / "targets.json"
    file.write_text('{"log_p95_ms": 75}')
    assert read_targets(file) == {**read_targets(), "log_p95_ms": 75}
    for text, why in (
        ('{"log_p95": 1}', "there is no figure"),
        ('{"errors": true}', "no number"),
        ("[]", "no JSON obj"),
    ):
        file.write_text(text)
        with pytest.raises(BadTargetError, match=why):
            read_targets(file)
    assert [v.met for v in judge({"errors": 0.0, "log_p95_ms": None}, read_targets(), "Locust was busy")] == [
        True,
        False,
    ]


def test_percentiles_are_values_that_were_measured():
    """Nearest rank: of a hundred, the 95th."""
    values = [float(value) for value in range(1, 101)]
    assert [p(0.5, values), p(0.95, values), p(0.99, values), p(0.95, [7.0])] == [50.0, 95.0, 99.0, 7.0]


def test_a_generator_that_did_not_keep_up_gives_no_figure():
    """Its rounds are left out; without any other the figure says why."""
    slow = {"trusted": False, "why": "Locust was the bottleneck", "requests": {"log": {"p95_ms": 1.0}}}
    good = {"trusted": True, "why": "", "requests": {"log": {"p95_ms": 9.0}}}
    value = streak_values.p95_ms("log")
    assert value({("log", "sqlite"): [slow, good]}, "sqlite") == 9.0
    with pytest.raises(UntoldError, match="bottleneck"):
        value({("log", "sqlite"): [slow]}, "sqlite")
    both = {("log", "sqlite"): [good], ("log", "postgresql"): [{**good, "requests": {"log": {"p95_ms": 11.0}}}]}
    assert streak_values.worst(both, value) == 11.0
    with pytest.raises(UntoldError, match="postgresql was not measured"):
        streak_values.worst({("log", "sqlite"): [good]}, value)


def test_a_killed_maintenance_is_looked_at_user_by_user(places):
    """A run that is killed and resumed leaves all as the rules do; somebody settled twice would be seen."""
    told = Streak(places, Size(killed=1_200), lambda _: None)
    told.measure("kill", "sqlite")
    (found,) = told.told["kill", "sqlite"]
    assert 0 < found["at_kill"] < 1_200
    assert found["exact"] == 1.0
    right = streak_seed.expected(4, today())
    assert len({right[name] for name in right}) > 1


def test_nothing_outlives_a_run():
    """Interrupted, `make load` ends with 130, and so do its service, its databases and Locust."""
    command = [sys.executable, "-m", "tests.benchmarks.streak_load", "--database", "sqlite", "--seconds", "60"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    children = []
    while time.monotonic() < deadline and not any("load_run" in " ".join(child.cmdline()) for child in children):
        time.sleep(0.1)
        children = [child for child in psutil.Process(process.pid).children(recursive=True) if child.is_running()]
    process.terminate()
    process.communicate(timeout=40)
    assert process.returncode == 130
    assert len(children) >= 3
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
