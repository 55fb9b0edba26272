"""Settings: sources and their precedence, what is refused and how, secrets."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from otel_perf import sources
from otel_perf.settings import Settings, SettingsError, reference_table

DOCS = Path(__file__).parent.parent / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for each in fields(Settings):
        monkeypatch.delenv(f"OTEL_PERF_{each.name.upper()}", raising=False)
        if each.metadata["standard"]:
            monkeypatch.delenv(each.metadata["standard"], raising=False)
    monkeypatch.chdir(tmp_path)


def pyproject(text: str) -> None:
    Path("pyproject.toml").write_text(text, encoding="utf-8")


def test_no_setting_is_required():
    """Everything has a default, and with the defaults nothing is sent."""
    loaded = Settings.load()
    assert loaded == Settings()
    assert not loaded.sends


def test_an_argument_wins_over_all_and_the_default_comes_last(monkeypatch):
    """Argument, then OTEL_PERF_, then OTEL_, then pyproject, then the default: each is taken away in turn."""
    pyproject('[tool.otel_perf]\nservice_name = "from-toml"\n')
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-otel")
    monkeypatch.setenv("OTEL_PERF_SERVICE_NAME", "from-own")
    assert Settings.load(service_name="from-argument").service_name == "from-argument"
    assert Settings.load(service_name=None).service_name == "from-own"
    monkeypatch.delenv("OTEL_PERF_SERVICE_NAME")
    assert Settings.load().service_name == "from-otel"
    monkeypatch.delenv("OTEL_SERVICE_NAME")
    assert Settings.load().service_name == "from-toml"
    Path("pyproject.toml").unlink()
    assert Settings.load().service_name == "unknown_service"


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_counts_as_unset(monkeypatch, empty):
    """The specification wants it so; the next source is asked."""
    monkeypatch.setenv("OTEL_PERF_ENDPOINT", empty)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert Settings.load(endpoint="").endpoint == "http://collector:4318"


EXAMPLES = {
    "service_version": ("1.2", "1.2"), "environment": ("staging", "staging"),
    "resource_attributes": ("team=a,b=c", {"team": "a", "b": "c"}), "disabled": ("true", True),
    "endpoint": ("http://h:4318", "http://h:4318"), "traces_endpoint": ("http://h/t", "http://h/t"),
    "metrics_endpoint": ("http://h/m", "http://h/m"), "protocol": ("grpc", "grpc"),
    "headers": ("authorization=Bearer%20x", {"authorization": "Bearer x"}), "compression": ("none", "none"),
    "export_timeout_s": ("3", 3.0), "metric_interval_s": ("5", 5.0), "span_interval_s": ("0.5", 0.5),
    "queue_size": ("100", 100), "flush_timeout_s": ("2", 2.0), "sampler": ("always_off", "always_off"),
    "sample_ratio": ("0.25", 0.25), "exemplars": ("off", False), "cardinality_limit": ("50", 50),
    "slow_query_s": ("1", 1.0), "excluded_routes": ("/a,/b", ("/a", "/b")), "log_correlation": ("no", False),
    "trace_response": ("no", False), "access_token": ("s3cret", "s3cret"), "strict": ("1", True),
    "service_name": ("streak", "streak"), "traces_exporter": ("none", ("none",)),
    "metrics_exporter": ("otlp,console", ("otlp", "console")), "traces_protocol": ("grpc", "grpc"),
    "metrics_protocol": ("grpc", "grpc"), "traces_headers": ("a=b", {"a": "b"}), "metrics_headers": ("a=b", {"a": "b"}),
    "queue_size_bytes": ("100000", 100_000), "sample_rules": ("GET /h*=0,POST /p*=1", ("GET /h*=0", "POST /p*=1")),
    "keep_errors": ("on", True), "keep_slower_than_s": ("0.5", 0.5), "keep_routes": ("/pay/*", ("/pay/*",)),
    "trust_context": ("never", "never"), "workers_dir": ("/run/own", "/run/own"), "handle_signals": ("no", False),
    "logs_endpoint": ("http://h/l", "http://h/l"), "logs_exporter": ("otlp", ("otlp",)),
    "logs_level": ("error", "error"),
    "logs_protocol": ("grpc", "grpc"), "logs_headers": ("a=b", {"a": "b"}), "critical_query_s": ("2", 2.0),
    "slow_query_log": ("/var/log/slow.jsonl", "/var/log/slow.jsonl"), "repeated_query_count": ("9", 9),
    "redis_info_interval_s": ("60", 60.0), "propagate_to": ("private,*.a.com", ("private", "*.a.com")),
    "route_classes": ("admin=/admin*", ("admin=/admin*",)), "request_phases": ("on", True),
    "disabled_instrumentations": ("redis,httpx", ("redis", "httpx")), "runtime_metrics": ("off", False),
    "vitals_per_minute": ("60", 60),
}  # fmt: skip
EXAMPLES |= {
    f"{signal}{name}": ("/etc/own.pem", "/etc/own.pem")
    for signal in ("", "traces_", "metrics_", "logs_")
    for name in ("certificate", "client_certificate", "client_key")
}


@pytest.mark.parametrize("name", [each.name for each in fields(Settings)])
def test_every_setting_has_a_variable_of_its_own(monkeypatch, name):
    """Each field can be set by OTEL_PERF_ and its name, and comes out with its own type."""
    text, value = EXAMPLES[name]
    monkeypatch.setenv(f"OTEL_PERF_{name.upper()}", text)
    assert getattr(Settings.load(), name) == value


STANDARD = [(each.name, each.metadata["standard"]) for each in fields(Settings) if each.metadata["standard"]]


@pytest.mark.parametrize(("name", "variable"), STANDARD)
def test_standard_variables_are_honoured_in_their_own_unit(monkeypatch, name, variable):
    """OTEL_ variables set the same fields; those in milliseconds are turned into seconds."""
    text, value = EXAMPLES[name]
    scale = next(each.metadata["scale"] for each in fields(Settings) if each.name == name)
    monkeypatch.setenv(variable, text if scale == 1 else f"{float(text) / scale:.0f}")
    assert getattr(Settings.load(), name) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10), ("300", 300), ("10000", 10), ("1500", 1.5), ("900000", 300), ("0", 300)]
)
def test_the_standard_timeout_is_read_in_either_unit(monkeypatch, text, seconds):
    """More than 300 is milliseconds, as the specification has it, and no number that it allows stops a service."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", text)
    assert Settings.load().export_timeout_s == seconds


@pytest.mark.parametrize("text", ["soon", "nan", "-1"])
def test_a_timeout_that_is_none_is_refused(monkeypatch, text):
    """What is no time is named as it was set; our own setting stays in seconds."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", text)
    with pytest.raises(SettingsError, match=f"OTEL_EXPORTER_OTLP_TIMEOUT='{text}' cannot be used"):
        Settings.load()
    with pytest.raises(SettingsError, match="export_timeout_s=10000 cannot be used"):
        Settings.load(export_timeout_s=10000)


def test_a_misspelt_variable_is_refused(monkeypatch):
    """It would be ignored in silence otherwise; the message has the close match and not the value."""
    monkeypatch.setenv("OTEL_PERF_ENDPIONT", "hunter2")
    with pytest.raises(
        SettingsError, match="the environment has no setting 'OTEL_PERF_ENDPIONT'; did you mean 'OTEL_PERF_ENDPOINT'"
    ) as caught:
        Settings.load()
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("OTEL_PERF_ENDPIONT", " ")
    assert Settings.load() == Settings()


@pytest.mark.parametrize(
    "name",
    [
        "OTEL_PERF_REQUIRE", "OTEL_PERF_TOOLS", "OTEL_PERF_TARGETS", "OTEL_PERF_SERVICE_HOST", "OTEL_PERF_PORT",
        "OTEL_PERF_SERVICE_PORT_HTTP", "OTEL_PERF_DEMO_PORT_80_TCP_ADDR",
    ],
)  # fmt: skip
def test_variables_of_others_are_not_settings(monkeypatch, name):
    """Those of our tools, and those that Kubernetes sets for a service called otel-perf, stop nothing."""
    monkeypatch.setenv(name, "x")
    assert Settings.load() == Settings()


def test_toml_values_keep_their_types():
    """Numbers, flags, lists and tables of pyproject are taken as they are."""
    pyproject(
        '[tool.otel_perf]\nqueue_size = 128\nexemplars = false\nexcluded_routes = ["/up"]\n'
        'slow_query_s = 0.5\nresource_attributes = { team = "a" }\n'
    )
    loaded = Settings.load()
    assert (loaded.queue_size, loaded.exemplars, loaded.excluded_routes) == (128, False, ("/up",))
    assert (loaded.slow_query_s, loaded.resource_attributes) == (0.5, {"team": "a"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[tool.otel_perf\n", "pyproject.toml cannot be read"),
        ("[tool]\notel_perf = 5\n", r"\[tool.otel_perf\] in pyproject.toml must be a table"),
        ("[tool.otel_perf]\nqueue = 5\n", "has no setting 'queue'; did you mean 'queue_size'"),
        ("[tool.otel_perf]\nqueue_size = 5\n", r"queue_size in \[tool.otel_perf\]=5 cannot be used: expected a whole"),
    ],
)
def test_a_bad_file_is_named(content, message):
    """What is wrong in pyproject stops start-up and says where."""
    pyproject(content)
    with pytest.raises(SettingsError, match=message):
        Settings.load()


def test_a_file_of_somebody_else_is_not_our_business():
    """A broken pyproject that does not mention us, one without tools, and one in another encoding."""
    pyproject("[broken")
    assert Settings.load() == Settings()
    pyproject("tool = 5 # otel_perf\n")
    assert Settings.load() == Settings()
    Path("pyproject.toml").write_bytes(b"# otel_perf \xff\n")
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"servicename": "x"}, r"configure\(\) has no setting 'servicename'; did you mean 'service_name'"),
        ({"zzz": 1}, "has no setting 'zzz'; known are endpoint, "),
        ({"queue_size": 1}, r"queue_size=1 cannot be used: expected a whole number from 64 to 1000000. Correct it"),
        ({"endpoint": "localhost"}, "endpoint='localhost' cannot be used: expected an absolute address"),
        ({"service_name": 5}, "service_name=5 cannot be used: expected text"),
    ],
)
def test_a_bad_argument_says_name_value_and_remedy(arguments, message):
    """The error can be acted on without reading code."""
    with pytest.raises(SettingsError, match=message):
        Settings.load(**arguments)


def test_a_bad_variable_is_named_as_it_was_set(monkeypatch):
    """The message names the variable, not our field."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "sometimes")
    with pytest.raises(
        SettingsError, match="OTEL_TRACES_SAMPLER='sometimes' cannot be used: expected one of always_on"
    ):
        Settings.load()
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "soon")
    with pytest.raises(SettingsError, match="OTEL_METRIC_EXPORT_INTERVAL='soon' cannot be used"):
        Settings.load()


def test_secrets_are_in_no_text(monkeypatch):
    """Neither `repr` nor an error shows a header, a token, or a password in an address."""
    loaded = Settings.load(headers={"authorization": "hunter2"}, access_token="hunter2")
    assert "hunter2" not in repr(loaded)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "hunter2")
    with pytest.raises(SettingsError, match=re.escape("OTEL_EXPORTER_OTLP_HEADERS=(hidden) cannot be used")) as caught:
        Settings.load()
    assert "hunter2" not in str(caught.value)
    with pytest.raises(SettingsError, match="put the secret into `headers`") as caught:
        Settings.load(headers="a=b", endpoint="http://me:hunter2@host")
    assert "hunter2" not in str(caught.value)


def test_settings_do_not_change():
    """The record is frozen: a change would not reach what was made of it."""
    with pytest.raises(FrozenInstanceError):
        Settings().service_name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["endpoint", "traces_endpoint", "metrics_endpoint"])
def test_any_endpoint_sends(name):
    """One endpoint of the three is enough."""
    assert Settings.load(**{name: "http://h"}).sends


def test_the_reference_is_what_the_docs_show():
    """docs/settings.md holds the table made from `Settings`, word for word."""
    assert reference_table() in DOCS.read_text(encoding="utf-8")


def test_opting_in_lasts_for_the_block(monkeypatch):
    """The variable of upstream is set within and is as before afterwards, also when it held others."""
    name = "OTEL_SEMCONV_STABILITY_OPT_IN"
    monkeypatch.delenv(name, raising=False)
    with sources.opted_in("http"):
        assert sources.os.environ[name] == "http"
    assert name not in sources.os.environ
    monkeypatch.setenv(name, "database, http/dup")
    with sources.opted_in("http"):
        assert sources.os.environ[name] == "database,http/dup"
    assert sources.os.environ[name] == "database, http/dup"
