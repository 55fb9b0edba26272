"""An application's own metrics."""

from __future__ import annotations

import pytest

import otel_perf
from otel_perf import catalogue, conventions, guard, measure


@pytest.fixture(autouse=True)
def _own_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conventions, "_declared", dict(conventions._declared))
    monkeypatch.setattr(catalogue, "_observed", [])


def test_counters(telemetry):
    """Amounts add up by labels; within a trace they carry it."""
    broken = catalogue.counter("shop.broken", unit="{cup}", attributes=("reason",), about="Cups that broke.")
    broken.add(reason="dropped")
    with measure("step"):
        broken.add(2, reason="dropped")
    broken.add(0.5)
    points = {point.attributes.get("reason"): point for point in telemetry.points("shop.broken")}
    assert {reason: point.value for reason, point in points.items()} == {"dropped": 3, None: 0.5}
    assert len(points["dropped"].exemplars) == 1


def test_histograms(telemetry):
    """Values go into the declared buckets."""
    basket = catalogue.histogram("shop.basket", unit="1", buckets=(1, 5), about="Items in a basket.")
    for value in (1, 3, 9):
        basket.record(value)
    [point] = telemetry.points("shop.basket")
    assert (point.explicit_bounds, point.bucket_counts) == ((1.0, 5.0), (1, 1, 1))


def test_gauges(telemetry):
    """The last value counts; a gauge may be below zero and without bounds."""
    gauge = catalogue.gauge("shop.temperature", unit="Cel", attributes=("room",))
    gauge.set(5, room="a")
    gauge.set(-3.5, room="a")
    gauge.set(float("inf"), room="b")
    values = {point.attributes["room"]: point.value for point in telemetry.points("shop.temperature")}
    assert values == {"a": -3.5, "b": float("inf")}


def test_observed_gauges(telemetry):
    """A callback answers a number, pairs, or nothing; it is asked at each collect, and after each `configure()`."""
    answers = [5, [(1, {"room": "a"}), (2, {"room": "b"})], None]
    catalogue.gauge("shop.guests", attributes=("room",), observe=lambda: answers[0])

    def told() -> dict:
        return {point.attributes.get("room"): point.value for point in telemetry.points("shop.guests")}

    assert told() == {None: 5}
    telemetry.restart()
    answers.pop(0)
    assert told() == {"a": 1, "b": 2}
    answers.pop(0)
    assert told() == {}


def test_declared_before_configure(telemetry):
    """Handles and callbacks may be made at import: until `configure()` nothing is recorded, afterwards it is."""
    otel_perf.shutdown()
    early = catalogue.counter("shop.early")
    catalogue.gauge("shop.level", observe=lambda: 7)
    early.add(1)
    telemetry.restart()
    early.add(2)
    assert telemetry.points("shop.early")[0].value == 2
    assert telemetry.points("shop.level")[0].value == 7


def test_no_exemplars_on_request(telemetry):
    """The setting holds for these metrics too."""
    telemetry.restart(exemplars=False)
    with measure("step"):
        catalogue.counter("shop.plain").add(1)
    assert not telemetry.points("shop.plain")[0].exemplars


@pytest.mark.parametrize(
    "use",
    [
        lambda: catalogue.counter("shop.c").add(-1),
        lambda: catalogue.counter("shop.c").add("one"),  # type: ignore[arg-type]
        lambda: catalogue.counter("shop.c").add(float("nan")),
        lambda: catalogue.counter("shop.c").add(1, colour="red"),
        lambda: catalogue.histogram("shop.h").record(float("inf")),
        lambda: catalogue.histogram("shop.h").record(-0.1),
        lambda: catalogue.gauge("shop.g").set(None),  # type: ignore[arg-type]
        lambda: catalogue.gauge("shop.g").set(float("nan")),
    ],
)
def test_a_wrong_value_or_label_is_left_out(telemetry, monkeypatch, use):
    """Recording never raises into the application; the mistake is counted and logged."""
    monkeypatch.setattr(guard, "strict", False)
    use()
    assert guard.errors == 1
    assert not [name for name in telemetry.metrics() if name.startswith("shop.")]


def test_a_mistake_says_what_is_declared():
    """Strictly, the message has the metric, what was given and what is declared."""
    otel_perf.configure(service_name="t")
    with pytest.raises(ValueError, match=r"metric shop.c has no attributes \['colour'\]; declared are: reason"):
        catalogue.counter("shop.c", attributes=("reason",)).add(1, colour="red")
    with pytest.raises(ValueError, match=r"declared are: none"):
        catalogue.counter("shop.d").add(1, colour="red")


@pytest.mark.parametrize("buckets", [(2, 1), (1, 1)])
def test_buckets_must_rise(buckets):
    """Bounds out of order are refused where they are declared."""
    with pytest.raises(ValueError, match=r"buckets of 'shop.h' must rise"):
        catalogue.histogram("shop.h", buckets=buckets)


def test_buckets_are_numbers_with_an_end():
    """The last bucket is open already; what is no number has no place in an order."""
    for wrong in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"buckets of 'shop.h' must rise"):
            catalogue.histogram("shop.h", buckets=(1, wrong))


def test_labels_that_are_called_like_parameters(telemetry):
    """`value` and `amount` are good names for a label."""
    catalogue.counter("shop.c", attributes=("amount", "self")).add(2, amount="large", self="yes")
    catalogue.histogram("shop.h", attributes=("value",)).record(2, value="large")
    catalogue.gauge("shop.g", attributes=("value",)).set(2, value="large")
    [point] = telemetry.points("shop.c")
    assert (point.value, dict(point.attributes)) == (2, {"amount": "large", "self": "yes"})
    assert telemetry.points("shop.h", value="large")[0].sum == 2
    assert telemetry.points("shop.g", value="large")[0].value == 2


def test_one_attribute_is_still_a_list():
    """A word where a list belongs would be a label for each letter."""
    with pytest.raises(ValueError, match=r"attributes of 'shop.c' is the text 'reason': write \('reason',\)"):
        catalogue.counter("shop.c", attributes="reason")


@pytest.mark.parametrize("name", ["", "1st", "shop sold", "shop.söld", "a" * 256, "shop.sold\n"])
def test_a_name_that_no_backend_takes(name):
    """It stops the start, with the rule."""
    with pytest.raises(ValueError, match=r"begin with a letter, then letters, digits"):
        catalogue.counter(name)


def test_declared_twice():
    """The same declaration is the same metric; another meaning under the same name is refused."""
    first = catalogue.counter("shop.c", unit="{cup}", attributes=("reason",), about="Cups")
    again = catalogue.counter("shop.c", unit="{cup}", attributes=("reason",), about="Cups")
    assert again.metric is first.metric
    for other in ({"unit": "By"}, {"attributes": ("why",)}, {"about": "Saucers"}):
        with pytest.raises(ValueError, match=r"'shop.c' is declared already"):
            catalogue.counter("shop.c", **{"unit": "{cup}", "attributes": ("reason",), "about": "Cups", **other})
    with pytest.raises(ValueError, match=r"'shop.c' is declared already"):
        catalogue.gauge("shop.c", unit="{cup}", attributes=("reason",), about="Cups")


def test_a_callback_that_fails_costs_only_itself(telemetry, monkeypatch):
    """The other metrics of the same collect are there."""
    monkeypatch.setattr(guard, "strict", False)
    catalogue.gauge("shop.broken", observe=lambda: 1 / 0)
    catalogue.gauge("shop.sound", observe=lambda: 1.5)
    metrics = telemetry.metrics()
    assert "shop.broken" not in metrics
    assert metrics["shop.sound"][0].value == 1.5
    assert guard.errors == 1


@pytest.mark.parametrize("attributes", [("a", "a"), ("",), ("le",)])
def test_labels_that_no_backend_takes(attributes):
    """Twice the same, none at all, and the one that Prometheus needs for buckets."""
    with pytest.raises(ValueError, match=r"attributes of 'shop.c' are .*: name each once, none empty, none `le`"):
        catalogue.counter("shop.c", attributes=attributes)
