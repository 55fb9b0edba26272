"""What is compared: each scenario makes the same FastAPI app, set up as the documentation says.

One process holds one scenario, since instrumentation cannot be undone by everybody. All that can export do so, to the
same sink on loopback.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["SCENARIOS", "Ready", "Scenario", "application", "ours", "prepare", "stock_sdk"]

Flush = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Ready:
    """A scenario that is set up: what it does to an app, how waiting spans are sent, how all that waits is sent."""

    apply: Callable[[Any], object]
    flush_spans: Flush
    flush: Flush


def application(routes: int = 5) -> Any:
    """A do-nothing FastAPI app; the route that is called stands last, behind the others."""
    from fastapi import FastAPI

    app = FastAPI()

    async def idle(item: str) -> dict[str, bool]:
        return {"ok": True}

    for number in range(routes - 1):
        app.get(f"/other{number}/{{item}}")(idle)
    app.get("/items/{item}")(idle)
    return app


def _nothing(_: Any = None) -> None:
    return None


def _bare(_: str) -> Ready:
    return Ready(_nothing, _nothing, _nothing)


# Ours --------------------------------------------------------------------------------------------------------------


def ours(endpoint: str, *, mounted: bool = False, engine: str | None = None, **settings: Any) -> Ready:
    """otel_perf as a service has it, sending to this endpoint."""
    import otel_perf

    otel_perf.configure(service_name="bench", endpoint=endpoint, **settings)

    def apply(app: Any) -> None:
        if mounted:
            from otel_perf.web import mount

            mount(app)
        otel_perf.instrument(app, **({"engine": engine} if engine else {}))

    def flush_spans() -> object:
        from opentelemetry import trace

        return trace.get_tracer_provider().force_flush()  # type: ignore[attr-defined]

    return Ready(apply, flush_spans, otel_perf.flush)


def _ours_unsampled(endpoint: str) -> Ready:
    return ours(endpoint, sampler="always_off")


def _ours_mounted(endpoint: str) -> Ready:
    return ours(endpoint, mounted=True)


def _native_ours(endpoint: str) -> Ready:
    return ours(endpoint, engine="native")


# The stock SDK -----------------------------------------------------------------------------------------------------


def stock_sdk(endpoint: str) -> tuple[Flush, Flush]:
    """Global providers as the SDK's documentation sets them up: batches of spans, periodic metrics, OTLP/HTTP."""
    from opentelemetry import metrics, trace
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "bench"})
    tracers = TracerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint + "/v1/traces")))
    trace.set_tracer_provider(tracers)
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint + "/v1/metrics"))
    meters = MeterProvider([reader], resource=resource)
    metrics.set_meter_provider(meters)
    return tracers.force_flush, lambda: (tracers.force_flush(), meters.force_flush())


def _native_stock(endpoint: str) -> Ready:
    # FastAPI measures itself as soon as there are providers.
    return Ready(_nothing, *stock_sdk(endpoint))


def _contrib(endpoint: str, **options: Any) -> Ready:
    flushes = stock_sdk(endpoint)
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    return Ready(lambda app: FastAPIInstrumentor.instrument_app(app, **options), *flushes)


def _contrib_lean(endpoint: str) -> Ready:
    return _contrib(endpoint, exclude_spans=["receive", "send"])


# Others ------------------------------------------------------------------------------------------------------------


def _logfire(endpoint: str) -> Ready:
    import logfire
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    spans = BatchSpanProcessor(OTLPSpanExporter(endpoint + "/v1/traces"))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint + "/v1/metrics"))
    logfire.configure(
        send_to_logfire=False, console=False, service_name="bench", additional_span_processors=[spans],
        metrics=logfire.MetricsOptions(additional_readers=[reader]),
    )  # fmt: skip
    return Ready(logfire.instrument_fastapi, spans.force_flush, logfire.force_flush)


def _sentry(endpoint: str) -> Ready:
    import sentry_sdk

    host, _, who = endpoint.removeprefix("http://").partition("/")
    # Its queue holds 100 envelopes and drops the rest: a longer one lets it pay for all that it makes.
    sentry_sdk.init(dsn=f"http://key@{host}/{who}/1", traces_sample_rate=1.0, transport_queue_size=10_000)
    return Ready(_nothing, lambda: sentry_sdk.flush(10), lambda: sentry_sdk.flush(10))


def _ddtrace(_: str) -> Ready:
    importlib.import_module("ddtrace.auto")
    from ddtrace.trace import tracer

    return Ready(_nothing, tracer.flush, tracer.flush)


def _elastic(endpoint: str) -> Ready:
    from elasticapm.contrib.starlette import ElasticAPM, make_apm_client

    client = make_apm_client(
        {"SERVICE_NAME": "bench", "SERVER_URL": endpoint, "CLOUD_PROVIDER": "none", "CENTRAL_CONFIG": False}
    )
    flush = client._transport.flush  # what its own shutdown does; there is no public way
    return Ready(lambda app: app.add_middleware(ElasticAPM, client=client), flush, flush)


def _pfi(_: str) -> Ready:
    from prometheus_fastapi_instrumentator import Instrumentator

    return Ready(lambda app: Instrumentator().instrument(app).expose(app), _nothing, _nothing)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to measure the app."""

    title: str
    set_up: Callable[[str], Ready]
    #: What it does for a request, in a word or two.
    does: str
    #: Variables of its process; `{endpoint}` is its place at the sink.
    environ: tuple[tuple[str, str], ...] = ()
    #: Distributions whose version stands in the tables.
    uses: tuple[str, ...] = ()
    #: Spans of one request; None where they reach the sink in a form in which it does not count them.
    spans: int | None = None


_OTEL = ("opentelemetry-sdk",)
_CONTRIB = ("opentelemetry-instrumentation-fastapi", "opentelemetry-sdk")

SCENARIOS: dict[str, Scenario] = {
    "bare": Scenario("FastAPI, no provider", _bare, "nothing", uses=("fastapi",)),
    "ours": Scenario("otel_perf", ours, "spans and metrics", uses=("otel-perf",), spans=1),
    "ours_unsampled": Scenario(
        "otel_perf, sampler off", _ours_unsampled, "metrics", uses=("otel-perf",), spans=0
    ),
    "ours_mounted": Scenario(
        "otel_perf, pages mounted", _ours_mounted, "spans and metrics", uses=("otel-perf",), spans=1
    ),
    "native_ours": Scenario("FastAPI's own telemetry over otel_perf", _native_ours, "spans and metrics", spans=4),
    "native_stock": Scenario(
        "FastAPI's own telemetry on the stock SDK", _native_stock, "spans and metrics",
        uses=("fastapi", *_OTEL), spans=4,
    ),
    "contrib": Scenario("FastAPIInstrumentor", _contrib, "spans and metrics", uses=_CONTRIB, spans=3),
    "contrib_lean": Scenario(
        "FastAPIInstrumentor, stable names, no receive and send spans", _contrib_lean, "spans and metrics",
        (("OTEL_SEMCONV_STABILITY_OPT_IN", "http"),), _CONTRIB, 1,
    ),
    "logfire": Scenario("Logfire", _logfire, "spans and metrics", uses=("logfire",), spans=1),
    "sentry": Scenario("Sentry, traces at 100 %", _sentry, "transactions", uses=("sentry-sdk",)),
    "ddtrace": Scenario(
        "ddtrace", _ddtrace, "spans",
        (
            ("DD_TRACE_AGENT_URL", "{origin}"), ("DD_SERVICE", "bench"),
            # Both would talk to other machines or to an agent that is not there.
            ("DD_INSTRUMENTATION_TELEMETRY_ENABLED", "false"), ("DD_REMOTE_CONFIGURATION_ENABLED", "false"),
            ("DD_TRACE_STARTUP_LOGS", "false"),
        ),
        ("ddtrace",),
    ),
    "elastic": Scenario("Elastic APM", _elastic, "transactions", uses=("elastic-apm",)),
    "pfi": Scenario(
        "prometheus-fastapi-instrumentator", _pfi, "metrics, scraped",
        uses=("prometheus-fastapi-instrumentator",),
    ),
}  # fmt: skip


def prepare(name: str, sink: str) -> Ready:
    """Sets a scenario up in this process; its exports go to a place of its own below the sink's address."""
    scenario = SCENARIOS[name]
    endpoint = f"{sink}/{name}"
    for key, value in scenario.environ:
        os.environ[key] = value.format(endpoint=endpoint, origin=sink)
    return scenario.set_up(endpoint)
