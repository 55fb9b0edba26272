"""The board and the data sources, checked without a Grafana."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from collector import servers
from otel_perf import conventions

_GRAFANA = servers.CONFIG.parent / "grafana"
_BOARDS = sorted((_GRAFANA / "dashboards").glob("*.json"))
_PREFIXES = ("http", "db", "cache", "external", "background", "operation", "web_vital", "otel_perf")


def _board(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _panels() -> list[dict[str, Any]]:
    return [panel for path in _BOARDS for panel in _board(path)["panels"] if panel["type"] != "row"]


def _targets() -> list[dict[str, Any]]:
    return [target for panel in _panels() for target in panel["targets"]]


def _datasources() -> dict[str, dict[str, Any]]:
    text = (_GRAFANA / "provisioning" / "datasources" / "datasources.yaml").read_text(encoding="utf-8")
    return {source["uid"]: source for source in yaml.safe_load(text)["datasources"]}


def _plain(expression: str) -> str:
    """Put in what Grafana would put in for its variables."""
    return expression.replace("$__rate_interval", "1m").replace("$job", "streak").replace("$route", ".*")


def _refused(prometheus_url: str, expression: str) -> str | None:
    asked = f"{prometheus_url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(asked, timeout=10):
            return None
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


def test_every_expression_is_taken_by_prometheus(prometheus_server: servers.Prometheus) -> None:
    """The real Prometheus parses and runs the query of every panel."""
    expressions = [_plain(target["expr"]) for target in _targets()]
    assert len(expressions) > 20
    assert {shown: why for shown in expressions if (why := _refused(prometheus_server.url, shown))} == {}


def test_a_broken_expression_would_be_seen(prometheus_server: servers.Prometheus) -> None:
    """The check above can fail."""
    assert _refused(prometheus_server.url, "rate(up)") is not None


def _known_metrics() -> set[str]:
    """Return the names under which the metrics of the catalogue stand in Prometheus."""
    names = set()
    for metric in conventions.METRICS:
        name = metric.name.replace(".", "_")
        name += {"s": "_seconds", "1": "_ratio" if metric.kind == "gauge" else ""}.get(metric.unit, "")
        if metric.kind == "histogram":
            names |= {f"{name}_bucket", f"{name}_count", f"{name}_sum"}
        else:
            names.add(f"{name}_total" if metric.kind == "counter" else name)
    return names


def test_every_metric_is_in_the_catalogue() -> None:
    """No panel asks for a metric that nobody emits."""
    used = {
        name
        for target in _targets()
        for name in re.findall(r"([a-z_]+)\{", target["expr"])
        if name.startswith(_PREFIXES)
    }
    assert len(used) > 5
    assert used - _known_metrics() == set()


def test_every_label_is_one_of_the_metric() -> None:
    """Selectors and groupings name attributes of the conventions, or what Prometheus itself adds."""
    known = {attribute.replace(".", "_") for metric in conventions.METRICS for attribute in metric.attributes}
    for target in _targets():
        if "otelcol" in target["expr"]:
            continue
        grouped = [name for found in re.findall(r"by \(([^)]*)\)", target["expr"]) for name in found.split(", ")]
        selected = re.findall(r'(\w+)(?:=|!=|=~)"', target["expr"])
        assert {*grouped, *selected} - known <= {"le", "job"}, target["expr"]


def test_data_sources_are_those_that_are_provisioned() -> None:
    """A panel takes the board's variable, whose default is a provisioned source of that type."""
    sources = _datasources()
    for path in _BOARDS:
        board = _board(path)
        variables = {variable["name"]: variable for variable in board["templating"]["list"]}
        chosen = variables["datasource"]
        assert sources[chosen["current"]["value"]]["type"] == chosen["query"]
    for part in (*_panels(), *_targets()):
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_an_exemplar_opens_its_trace() -> None:
    """The metrics source links an exemplar's trace id to the traces source, and the way back exists too."""
    sources = _datasources()
    destination = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"][0]
    assert destination["name"] == "trace_id"
    assert sources[destination["datasourceUid"]]["type"] == "jaeger"
    assert sources["jaeger"]["jsonData"]["tracesToMetrics"]["datasourceUid"] in sources


def test_exemplars_are_asked_for_on_durations_only() -> None:
    """Exemplars stand on histograms: each kind of work has a panel with them, and no other query asks for any."""
    asking = [target["expr"] for target in _targets() if target["exemplar"]]
    assert all("_bucket{" in expression for expression in asking)
    for prefix in ("http_server", "db_client", "cache_operation", "external_api", "background_job"):
        assert any(f"{prefix}_" in expression for expression in asking), prefix


@pytest.mark.parametrize("path", _BOARDS, ids=lambda path: path.name)
def test_the_board_is_well_made(path: Path) -> None:
    """Stable ids, a title, a unit and a description on every panel, and no two panels in one place."""
    board = _board(path)
    assert re.fullmatch(r"[a-z0-9-]{1,40}", board["uid"])
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"]["unit"]
            refs = [target["refId"] for target in panel["targets"]]
            assert len(refs) == len(set(refs))


def test_rates_follow_the_panel() -> None:
    """Every rate takes Grafana's own interval, so that zooming out loses nothing."""
    for target in _targets():
        assert re.findall(r"\[(.*?)\]", target["expr"]) in ([], *[["$__rate_interval"] * n for n in (1, 2)])
