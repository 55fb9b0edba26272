"""A FastAPI app, and the three lines that measure it: `uvicorn examples.quickstart:app`, then open /performance."""

from fastapi import FastAPI

from otel_perf import configure, instrument
from otel_perf.web import mount

app = FastAPI()
configure(service_name="quickstart")  # sends to OTEL_EXPORTER_OTLP_ENDPOINT, where it is set
instrument(app)  # a span and a duration for each request
mount(app)  # /performance, /api/performance, /api/health and /metrics


@app.get("/hello/{name}")
async def hello(name: str) -> dict[str, str]:
    """Greet somebody."""
    return {"hello": name}
