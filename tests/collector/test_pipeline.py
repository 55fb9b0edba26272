"""What is told before the first server starts."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from collector import pipeline, process, stack


def test_one_port_for_two_is_told() -> None:
    """Two variables with one port are named, before something fails to listen."""
    port = str(process.free_port())
    given = {"STREAK_PORT": str(process.free_port()), "PUSH_PORT": port, "OTELCOL_OTLP_GRPC_PORT": port}
    with pytest.raises(pipeline.BusyPortError, match="OTELCOL_OTLP_GRPC_PORT and PUSH_PORT are both"):
        pipeline.chosen_ports(given, app=True)


@pytest.mark.parametrize(
    ("profile", "env", "told"),
    [
        ("otelcol.cloudtrace.yaml", {}, r"no profile otelcol.cloudtrace.yaml(?s:.*)otelcol.cloudtrace-otlp.yaml"),
        ("otelcol.cloudtrace-otlp.yaml", {}, "GOOGLE_CLOUD_PROJECT is not set"),
        (
            "otelcol.cloudtrace-otlp.yaml",
            {"GOOGLE_CLOUD_PROJECT": "p", "GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/key.json"},
            "/nowhere/key.json, which cannot be read",
        ),
        (
            "otelcol.cloudtrace-legacy.yaml",
            {"GOOGLE_CLOUD_PROJECT": "p", "OTELCOL_MEMORY_LIMIT_MIB": "much"},
            "the Collector refuses its configuration",
        ),
    ],
    ids=["no such profile", "no project", "no key file", "not valid"],
)
def test_a_profile_that_cannot_work_starts_nothing(
    otelcol_binary: Path, monkeypatch: pytest.MonkeyPatch, profile: str, env: dict[str, str], told: str
) -> None:
    """What the Collector would stumble over is told with a remedy, before the first server starts."""
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pipeline.tools, "install", lambda _names: {})  # type: ignore[attr-defined]  # a module of it
    said: list[str] = []
    with (
        pytest.raises(pipeline.BadProfileError, match=told),
        pipeline.pipeline(pipeline.free_choice(), profiles=[profile], env=env, say=said.append),
    ):
        pass
    assert said == []


def test_signals_are_ignored_only_while_something_goes_down() -> None:
    """A second Ctrl-C while going down does nothing, and afterwards signals do what they did before."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with process.undisturbed():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_service_that_is_left_out_cannot_be_scraped(capsys: pytest.CaptureFixture[str]) -> None:
    """`--scrape app` without the app is a wrong argument, not a target that is down for ever."""
    with pytest.raises(SystemExit) as ended:
        stack.main(["up", "--no-app", "--scrape", "app"])
    assert ended.value.code == 2
    assert "--no-app leaves out" in capsys.readouterr().err
