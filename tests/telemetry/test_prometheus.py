"""The exposition, read back by Prometheus' own parsers."""

from __future__ import annotations

import subprocess

import pytest
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from otel_perf import catalogue, guard, measure
from otel_perf.conventions import Metric
from otel_perf.telemetry import labels
from otel_perf.telemetry.meter import MeterProvider
from otel_perf.telemetry.prometheus import TEXT, Exposition, family_name, wants_openmetrics
from otel_perf.telemetry.series import Registry, Series
from otel_perf.telemetry.workers import Exchange


def samples(text, parse=parse_openmetrics):
    return {
        (s.name, frozenset((k, v) for k, v in s.labels.items() if not k.startswith("otel_scope_"))): s
        for family in parse(text)
        for s in family.samples
    }


@pytest.mark.parametrize(
    ("name", "unit", "kind", "family"),
    [
        ("http.server.request.duration", "s", "histogram", "http_server_request_duration_seconds"),
        ("background.job.items", "{item}", "counter", "background_job_items"),
        ("sent_total", "By", "counter", "sent_bytes"),
        ("load", "1", "gauge", "load_ratio"),
        ("1st-of.all", "", "gauge", "_1st_of_all"),
        ("wait.seconds", "s", "gauge", "wait_seconds"),
    ],
)
def test_family_name(name, unit, kind, family):
    """Names follow OpenTelemetry's rules for Prometheus: underscores, units, no doubled suffix."""
    assert family_name(name, unit, kind) == family


def test_openmetrics_is_what_prometheus_reads(telemetry):
    """A measured block comes back from the OpenMetrics parser with its count, its buckets and its trace as exemplar."""
    with measure("load", category="x") as op:
        op.items = 7
    text = telemetry.runtime.exposition.render(telemetry.runtime.resource, openmetrics=True)

    read = samples(text)
    labels = {("operation_name", "load"), ("operation_category", "x")}
    assert read["operation_duration_seconds_count", frozenset(labels)].value == 1
    assert read["operation_items_total", frozenset(labels)].value == 7
    bucket = read["operation_duration_seconds_bucket", frozenset(labels | {("le", "0.005")})]
    assert bucket.exemplar.labels["trace_id"] == f"{telemetry.span('load').context.trace_id:032x}"


def test_text_format_has_no_exemplars_and_the_same_numbers(telemetry):
    """The older text format parses, carries the same counts, and leaves exemplars out."""
    for _ in range(3):
        with measure("load"):
            pass
    text = telemetry.runtime.exposition.render(telemetry.runtime.resource)

    assert " # {" not in text
    assert (
        samples(text, parse_text)["operation_duration_seconds_count", frozenset({("operation_name", "load")})].value
        == 3
    )


def test_target_info_is_the_resource(telemetry):
    """Service, version and environment are labels of target_info."""
    telemetry.restart(service_name="shop", service_version="1.2", environment="staging")
    text = telemetry.runtime.exposition.render(telemetry.runtime.resource)

    info = next(s for (name, _), s in samples(text, parse_text).items() if name == "target_info")
    assert info.labels["service_name"] == "shop"
    assert info.labels["service_version"] == "1.2"
    assert info.labels["deployment_environment_name"] == "staging"


def test_two_scopes_share_a_family_without_sharing_labels():
    """The same metric of two libraries keeps each library's own label names and values."""
    registry = Registry()
    exposition = Exposition(Exchange(registry).metrics)
    provider = MeterProvider(registry, Resource({}))
    provider.get_meter("a").create_histogram("db.client.operation.duration", "s").record(0.1, {"db.system.name": "pg"})
    provider.get_meter("b").create_histogram("db.client.operation.duration", "s").record(0.1, {"operation": "SELECT"})

    read = [
        s.labels
        for family in parse_openmetrics(exposition.render(Resource({}), openmetrics=True))
        for s in family.samples
        if s.name.endswith("_count")
    ]
    assert {"db_system_name": "pg", "otel_scope_name": "a"} in read
    assert {"operation": "SELECT", "otel_scope_name": "b"} in read


def test_a_family_of_two_meanings_keeps_the_first():
    """A counter and a histogram of one name do not spoil the scrape: the first meaning stays."""
    registry = Registry()
    exposition = Exposition(Exchange(registry).metrics)
    provider = MeterProvider(registry, Resource({}))
    provider.get_meter("a").create_gauge("x.size", "{item}").set(4)
    provider.get_meter("b").create_histogram("x.size", "{item}").record(1)

    read = samples(exposition.render(Resource({}), openmetrics=True))
    assert read["x_size", frozenset()].value == 4
    assert ("x_size_count", frozenset()) not in read


def test_hostile_label_values_are_escaped(telemetry):
    """Quotes, backslashes and line ends in a label value come back as they were, on one line."""
    hostile = 'a"b\\c\nd'
    catalogue.counter("hostile.test", attributes=("who",)).add(1, who=hostile)
    text = telemetry.runtime.exposition.render(telemetry.runtime.resource, openmetrics=True)

    assert samples(text)["hostile_test_total", frozenset({("who", hostile)})].value == 1


def test_keys_that_fall_together_are_joined_and_values_written_plainly():
    """`a.b` and `a_b` become one label with both values; flags, lists and huge numbers stay readable."""
    registry = Registry()
    exposition = Exposition(Exchange(registry).metrics)
    meter = MeterProvider(registry, Resource({})).get_meter("m")
    meter.create_gauge("g").set(float("inf"), {"a.b": "1", "a_b": "2", "on": True, "list": ["x", "y"], "2nd": "z"})
    meter.create_gauge("h").set(float("-inf"))

    read = samples(exposition.render(Resource({}), openmetrics=True))
    labels = frozenset({("a_b", "1;2"), ("on", "true"), ("list", '["x", "y"]'), ("_2nd", "z")})
    assert read["g", labels].value == float("inf")
    assert read["h", frozenset()].value == float("-inf")


def test_an_exponential_reader_beside_it_does_not_break_the_scrape(telemetry):
    """A reader that wants exponential histograms leaves /metrics with its explicit buckets."""
    from opentelemetry.sdk.metrics import Histogram
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader(preferred_aggregation={Histogram: ExponentialBucketHistogramAggregation()})
    telemetry.runtime.meter_provider.add_metric_reader(reader)
    with measure("load"):
        pass
    text = telemetry.runtime.exposition.render(telemetry.runtime.resource, openmetrics=True)

    assert samples(text)["operation_duration_seconds_count", frozenset({("operation_name", "load")})].value == 1
    assert reader.get_metrics_data() is not None


def test_counts_only_grow_between_scrapes(telemetry):
    """Two scrapes of one process show a counter that grows by what happened between them."""
    work = measure("load")
    counts = []
    for size in (2, 3):
        for _ in range(size):
            with work:
                pass
        text = telemetry.runtime.exposition.render(telemetry.runtime.resource, openmetrics=True)
        counts.append(samples(text)["operation_duration_seconds_count", frozenset({("operation_name", "load")})].value)
    assert counts == [2, 5]


def test_series_that_look_alike_are_added_up():
    """Two metrics whose names are one in Prometheus give one line, with both: two would cost the scrape."""
    registry = Registry()
    exposition = Exposition(Exchange(registry).metrics)
    meter = MeterProvider(registry, Resource({})).get_meter("m")
    meter.create_counter("shop.sold", "{item}").add(1)
    meter.create_counter("shop_sold", "{item}").add(2)

    text = exposition.render(Resource({}), openmetrics=True)
    assert text.count("shop_sold_total{") == 1
    assert samples(text)["shop_sold_total", frozenset()].value == 3


def test_a_label_le_of_the_apps_own():
    """A histogram's own label `le` keeps its value under another name beside the bucket's."""
    registry = Registry()
    exposition = Exposition(Exchange(registry).metrics)
    meter = MeterProvider(registry, Resource({})).get_meter("m")
    meter.create_histogram("size", "By", explicit_bucket_boundaries_advisory=[1.0]).record(3, {"le": "paris"})

    read = samples(exposition.render(Resource({}), openmetrics=True))
    assert read["size_bytes_count", frozenset({("exported_le", "paris")})].value == 1
    assert read["size_bytes_bucket", frozenset({("exported_le", "paris"), ("le", "+Inf")})].value == 1


def test_one_metric_that_cannot_be_written_costs_only_itself(monkeypatch):
    """A point that breaks the writer is left out and counted; the rest of the scrape is whole."""
    monkeypatch.setattr(guard, "strict", False)
    registry = Registry()
    exposition = Exposition(Exchange(registry).metrics)
    meter = MeterProvider(registry, Resource({})).get_meter("m")
    meter.create_gauge("good").set(1)
    bad = meter.create_gauge("bad")
    bad.instrument.of({}).record("no number")

    read = samples(exposition.render(Resource({}), openmetrics=True))
    assert read["good", frozenset()].value == 1
    assert ("bad", frozenset()) not in read
    assert guard.errors == 1


OPEN, OPEN_OLD = (f"application/openmetrics-text;version={number}" for number in ("1.0.0", "0.0.1"))


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0", True),
        ("Application/OpenMetrics-Text;version=0.0.1", True),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.4,text/plain;q=0.5", False),
        ("application/openmetrics-text;q=0.5, text/plain;q=0.5, */*;q=0.9", True),
        ("application/openmetrics-text;q=no", False),
        (f"{OPEN},{OPEN_OLD};q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", True),  # Prometheus 2.42
        (f"{OPEN};escaping=allow-utf-8;q=0.5,{OPEN_OLD};q=0.4,{TEXT};q=0.2,*/*;q=0.1", True),  # Prometheus 3
        ("text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1", False),
    ],
)
def test_who_gets_openmetrics(accept, wanted):
    """Whoever prefers it, by weight and by a version that we write."""
    assert wants_openmetrics(accept) is wanted


def test_exponential_histograms_become_classic_ones():
    """Where a view counts in exponential buckets, the scrape shows them by their bounds, with the right counts."""
    registry = Registry()
    provider = MeterProvider(
        registry,
        Resource({}),
        views=[View(instrument_name="wait", aggregation=ExponentialBucketHistogramAggregation())],
    )
    exposition = Exposition(Exchange(registry).metrics)
    wait = provider.get_meter("m").create_histogram("wait", "s")
    for value in (0, 0.3, 1, 1, 40):
        wait.record(value)
    provider.get_meter("m").create_counter("after").add(1)

    for openmetrics, parse in ((True, parse_openmetrics), (False, parse_text)):
        read = samples(exposition.render(Resource({}), openmetrics=openmetrics), parse)
        buckets = sorted(
            (float(dict(labels)["le"]), sample.value)
            for (name, labels), sample in read.items()
            if name == "wait_seconds_bucket"
        )
        assert [count for _, count in buckets] == [1, 2, 4, 5, 5]
        for value, (bound, _) in zip((0, 0.3, 1, 40), buckets, strict=False):
            assert value <= bound <= value * 1.1
        assert read["wait_seconds_count", frozenset()].value == 5
        assert read["wait_seconds_sum", frozenset()].value == pytest.approx(42.3)
        assert read["after_total", frozenset()].value == 1


def test_names_of_samples_do_not_clash():
    """A metric that is called like a sample of another one is left out, since it would cost the whole scrape."""
    registry = Registry()
    exposition = Exposition(Exchange(registry).metrics)
    meter = MeterProvider(registry, Resource({})).get_meter("m")
    meter.create_histogram("wait").record(1)
    meter.create_gauge("wait.count").set(7)
    meter.create_counter("sold").add(1)
    meter.create_gauge("sold.total").set(9)
    meter.create_gauge("target.info").set(9)

    for openmetrics, parse in ((True, parse_openmetrics), (False, parse_text)):
        read = samples(exposition.render(Resource({}), openmetrics=openmetrics), parse)
        assert (read["wait_count", frozenset()].value, read["sold_total", frozenset()].value) == (1, 1)
        assert read["target_info", frozenset()].value == 1


def test_an_exemplar_stays_until_a_newer_one_comes(telemetry):
    """Every scrape shows the newest example of a bucket, however many scrapes there are."""
    with measure("load"):
        pass
    for _ in range(2):
        text = telemetry.runtime.exposition.render(telemetry.runtime.resource, openmetrics=True)
        assert f"{telemetry.span('load').context.trace_id:032x}" in text


def test_a_description_is_escaped():
    """Quotes, backslashes and line ends in a description come back as they were, in both formats."""
    registry = Registry()
    exposition = Exposition(Exchange(registry).metrics)
    hostile = 'a"b\\c\nd # {e}'
    MeterProvider(registry, Resource({})).get_meter("m").create_gauge("g", description=hostile).set(1)
    for openmetrics, parse in ((True, parse_openmetrics), (False, parse_text)):
        text = exposition.render(Resource({}), openmetrics=openmetrics)
        assert [family.documentation for family in parse(text) if family.name == "g"] == [hostile]


def test_prometheus_own_checker_reads_it(telemetry, promtool_binary):
    """`promtool check metrics` parses the text format, and only finds taste to complain of."""
    with measure("load", category="x") as op:
        op.items = 7
    catalogue.counter("promtool.test", unit="{item}", attributes=("who",), about="About").add(1, who='a"b\\c\nd')
    text = telemetry.runtime.exposition.render(telemetry.runtime.resource)
    done = subprocess.run(
        [promtool_binary, "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=30
    )
    # 3 is what it answers to names that it would choose otherwise.
    assert done.returncode in {0, 3}, done.stderr
    assert "error while" not in done.stderr


@pytest.mark.parametrize(
    ("attributes", "written"),
    [
        ({"": "empty", "a": "x"}, {"a": "x"}),
        ({"__name__": "evil"}, {"attr__name__": "evil"}),
        ({"..name..": "evil", "__name__": "worse"}, {"attr__name__": "evil;worse"}),
        ({"日本": "x"}, {"attr__": "x"}),
        ({"_one": "x"}, {"_one": "x"}),
    ],
)
def test_no_key_of_an_attribute_costs_the_scrape(attributes, written, promtool_binary):
    """An empty key is left out, and one that Prometheus keeps for itself is renamed: on series and on the resource."""
    registry = Registry()
    exposition = Exposition(Exchange(registry).metrics)
    # Past the API: these reach a series as they are.
    sold = registry.instrument(Metric("sold", "", "counter", "about"), InstrumentationScope("m"))
    sold.series[labels.key(attributes)] = series = Series(sold, attributes)
    series.record(1)
    for openmetrics, parse in ((True, parse_openmetrics), (False, parse_text)):
        text = exposition.render(Resource(attributes), openmetrics=openmetrics)
        read = samples(text, parse)
        assert read["sold_total", frozenset(written.items())].value == 1
        assert read["target_info", frozenset(written.items())].value == 1
    done = subprocess.run(
        [promtool_binary, "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=30
    )
    assert "error while" not in done.stderr, done.stderr


def test_every_scope_is_a_series_of_its_own():
    """Version, schema and attributes of a scope are labels: two that share a name do not hide each other."""
    registry = Registry()
    exposition = Exposition(Exchange(registry).metrics)
    provider = MeterProvider(registry, Resource({}))
    provider.get_meter("lib").create_counter("sold").add(100)
    provider.get_meter("lib", "1.0", "https://schema").create_counter("sold").add(1)
    provider.get_meter("lib", "1.0", attributes={"short.name": "x", "": "y"}).create_counter("sold").add(2)

    text = exposition.render(Resource({}), openmetrics=True)
    read = [(s.labels, s.value) for f in parse_openmetrics(text) for s in f.samples if s.name == "sold_total"]
    scope = {"otel_scope_name": "lib"}
    assert (scope, 100) in read
    assert ({**scope, "otel_scope_version": "1.0", "otel_scope_schema_url": "https://schema"}, 1) in read
    assert ({**scope, "otel_scope_version": "1.0", "otel_scope_short_name": "x"}, 2) in read


def test_labels_that_differ_in_their_type_are_added_up():
    """`200` and `"200"` are one series in Prometheus: sums are added, of gauges the newest counts."""
    registry = Registry()
    exposition = Exposition(Exchange(registry).metrics)
    meter = MeterProvider(registry, Resource({})).get_meter("m")
    for code, number in ((200, 1), ("200", 2)):
        meter.create_counter("sold").add(number, {"code": code})
        meter.create_histogram("size").record(number, {"code": code, "le": "x"})
        meter.create_histogram("size").record(number, {"code": code, "exported_le": "x"})
        meter.create_gauge("level").set(number, {"code": code})
    read = samples(exposition.render(Resource({}), openmetrics=True))
    code = ("code", "200")
    assert read["sold_total", frozenset({code})].value == 3
    assert read["size_sum", frozenset({code, ("exported_le", "x")})].value == 6
    assert read["level", frozenset({code})].value in {1, 2}


def test_which_of_two_meanings_stays_does_not_hang_on_the_order():
    """Of a gauge and a counter of one name the same one is shown, whichever a worker made first."""
    shown = []
    for kinds in (("counter", "gauge"), ("gauge", "counter")):
        registry = Registry()
        exposition = Exposition(Exchange(registry).metrics)
        for kind in kinds:
            registry.instrument(Metric("sold.total", "", kind, ""), InstrumentationScope(kind)).of({}).record(1)
        shown.append(exposition.render(Resource({})))
    assert shown[0] == shown[1]
