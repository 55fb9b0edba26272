"""Numbers of odd classes, and what becomes of the readers that have to write them."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import otel_perf
from examples.sink import Sink
from otel_perf import catalogue, measure
from otel_perf.telemetry.numbers import plain
from otel_perf.web import mount


class Numpy(float):
    """A float whose text is not a number's, as numpy's is."""

    def __repr__(self):
        return f"np.float64({float(self)})"


class Level(IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        (1.5, float, 1.5),
        (7, int, 7),
        (True, int, 1),
        (Level.HIGH, int, 3),
        (Numpy(0.5), float, 0.5),
        (Decimal("0.25"), float, 0.25),
        (Fraction(1, 2), float, 0.5),
        (2**70, float, 2.0**70),
        (-(2**63), int, -(2**63)),
    ],
)
def test_plain(given, kind, value):
    """Every numeric class becomes a plain int of 64 bits or a plain float."""
    assert type(plain(given)) is kind
    assert plain(given) == value
    assert "np." not in repr(plain(given))


@pytest.mark.parametrize("given", ["x", "1", b"1", None, object()])
def test_what_is_no_number(given):
    """Something else raises, and is the guard's to note."""
    with pytest.raises((TypeError, ValueError)):
        plain(given)


def test_odd_numbers_cost_no_reader_anything(telemetry):
    """After odd numbers from everywhere the scrape parses, the API answers, and every export is taken."""
    with Sink() as sink:
        telemetry.restart(endpoint=sink.url)
        meter = telemetry.runtime.meter_provider.get_meter("other")
        for number in (Numpy(0.5), Decimal("0.5"), True, 2**70, Fraction(1, 3)):
            measure.record("odd", seconds=number, items=number)
            catalogue.gauge("odd.gauge").set(number)
            catalogue.counter("odd.counter").add(number)
            catalogue.histogram("odd.histogram").record(number)
            meter.create_gauge("odd.foreign").set(number)
            meter.create_counter("odd.foreign_counter").add(number)
            with measure("odd.block") as op:
                op.items = number
        catalogue.gauge("odd.observed", observe=lambda: [(True, {}), (Decimal(2), {})])
        for _ in range(3):
            catalogue.counter("odd.huge").add(2**62)
        assert otel_perf.flush()

        text = telemetry.runtime.exposition.render(telemetry.runtime.resource, openmetrics=True)
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert families["odd_gauge_ratio"].samples[0].value == pytest.approx(1 / 3)
        app = FastAPI()
        mount(app)
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))

        async def ask():
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                return await http.get("/api/performance")

        answer = asyncio.run(ask())
        assert answer.status_code == 200
        assert {row["metric"]: row for row in answer.json()["catalogue"]}["odd.huge"]["value"] == pytest.approx(
            3 * 2.0**62
        )
