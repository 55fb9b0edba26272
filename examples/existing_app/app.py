"""The app. What it adds for otel_perf stands in one place."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated

from fastapi import Depends, FastAPI
from opentelemetry import metrics, trace

from otel_perf import configure, instrument
from otel_perf.web import mount

from .telemetry import instrument_upstream, start

__all__ = ["app"]

start()
app = FastAPI(title="orders")
instrument_upstream(app)

# New: after the providers, which are joined, and after upstream's instrumentor, which keeps its spans.
configure()
instrument(app)
instrument("sqlite3")
mount(app)

_tracer = trace.get_tracer("orders")
_sold = metrics.get_meter("orders").create_counter("orders.sold", unit="{order}")


def _database() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as connection:
        yield connection


@app.get("/orders/{order_id}")
def order(order_id: int, database: Annotated[sqlite3.Connection, Depends(_database)]) -> dict[str, int]:
    """Answer an order, with what its price is."""
    with _tracer.start_as_current_span("find_price"):
        (price,) = database.execute("SELECT ? * 10", (order_id,)).fetchone()
    _sold.add(1)
    return {"order": order_id, "price": price}
