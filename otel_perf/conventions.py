"""Every span kind, metric, unit, bucket list and attribute key that otel_perf emits, and the open catalogue beside it.

Names follow OpenTelemetry semantic conventions 1.44. Where there is no convention (cache, job, external API, step)
the metric is marked `experimental`: this table is the one place to rename it.
"""

from __future__ import annotations

from otel_perf.metric import InstrumentKind, Metric
from otel_perf.process_conventions import *  # noqa: F403 -- its `__all__` is a part of this table
from otel_perf.process_conventions import PROCESS_METRICS

__all__ = ["METRICS", "SCHEMA_URL", "SCOPE", "InstrumentKind", "Metric", "buckets_for", "declare", "declared"]

SCOPE = "otel_perf"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"

# Attribute keys ------------------------------------------------------------------------------------------------------

ERROR_TYPE = "error.type"
EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
EXCEPTION_STACKTRACE = "exception.stacktrace"
CODE_FUNCTION = "code.function.name"
REQUEST_ID = "http.request.header.x-request-id"  # the convention's own form for a captured header

HTTP_METHOD = "http.request.method"
HTTP_METHOD_ORIGINAL = "http.request.method_original"
HTTP_ROUTE = "http.route"
ROUTE_CLASS = "http.route.class"  # of our own: a class that the settings declare, such as payment
REQUEST_PHASE = "http.request.phase"
MESSAGE_DIRECTION = "network.io.direction"
HTTP_STATUS = "http.response.status_code"
HTTP_BODY_SIZE = "http.response.body.size"
URL_SCHEME = "url.scheme"
URL_PATH = "url.path"
URL_QUERY = "url.query"
URL_FULL = "url.full"
URL_TEMPLATE = "url.template"
PROTOCOL_NAME = "network.protocol.name"
PROTOCOL_VERSION = "network.protocol.version"
PEER_ADDRESS = "network.peer.address"
PEER_PORT = "network.peer.port"
CLIENT_ADDRESS = "client.address"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
USER_AGENT = "user_agent.original"

DB_SYSTEM = "db.system.name"
DB_OPERATION = "db.operation.name"
DB_COLLECTION = "db.collection.name"
DB_NAMESPACE = "db.namespace"
DB_QUERY_TEXT = "db.query.text"
DB_QUERY_SUMMARY = "db.query.summary"
DB_STATUS = "db.response.status_code"
DB_ROWS = "db.response.returned_rows"
DB_BATCH_SIZE = "db.operation.batch.size"
DB_TRANSACTION_OUTCOME = "db.transaction.outcome"  # commit or rollback
DB_THRESHOLD = "db.slow.threshold"  # slow or critical
DB_CALLER_FILE = "code.file.path"
DB_CALLER_LINE = "code.line.number"
DB_POOL_NAME = "db.client.connection.pool.name"
DB_POOL_STATE = "db.client.connection.state"

CACHE_SYSTEM = "cache.system"
CACHE_OPERATION = "cache.operation.name"
CACHE_STRATEGY = "cache.strategy"
CACHE_RESULT = "cache.result"
CACHE_KEY_COUNT = "cache.key.count"
CACHE_TAG = "cache.tag"

PEER_SERVICE = "service.peer.name"
EXTERNAL_OPERATION = "external.operation"
EXTERNAL_CATEGORY = "external.category"

JOB_NAME = "background.job.name"
JOB_ITEMS = "background.job.items"
JOB_TRIGGER = "background.job.trigger"  # schedule, http, queue, request or manual

STEP_NAME = "operation.name"
STEP_CATEGORY = "operation.category"
STEP_ITEMS = "operation.items"

VITAL_RATING = "web_vital.rating"

KEPT_BY = "otel_perf.kept_by"  # on a local root that was not sampled: the late rule that kept it

# Buckets: the conventions' own bounds and every bound that a promise needs (an SLO threshold must be one of them) -----

_REQUEST_S = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5,
    0.6, 0.75, 0.8, 1.0, 2.0, 2.5, 3.0, 5.0, 7.5, 10.0,
)  # fmt: skip
_QUERY_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 5.0, 10.0)
_CACHE_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)
_CONNECTION_S = (1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0)
_JOB_S = (
    0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 180.0, 300.0, 480.0, 600.0, 900.0, 1800.0, 3600.0,
)  # fmt: skip
_JOB_WAIT_S = (0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
_VITAL_S = (0.1, 0.3, 0.6, 0.8, 1.0, 1.8, 2.5, 3.0, 4.0, 5.0, 10.0)
_INPUT_S = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
_SHIFT = (0.01, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0)

# Metrics -------------------------------------------------------------------------------------------------------------

REQUEST_DURATION = Metric(
    "http.server.request.duration", "s", "histogram", "Duration of HTTP server requests, to the last body byte.",
    (HTTP_METHOD, HTTP_ROUTE, HTTP_STATUS, URL_SCHEME, PROTOCOL_VERSION, ERROR_TYPE), _REQUEST_S,
)  # fmt: skip
REQUESTS_ACTIVE = Metric(
    "http.server.active_requests", "{request}", "updowncounter", "HTTP server requests in flight.",
    (HTTP_METHOD, URL_SCHEME),
)  # fmt: skip
PHASE_DURATION = Metric(
    "http.server.request.phase.duration", "s", "histogram", "Duration of the phases of requests.",
    (REQUEST_PHASE, HTTP_ROUTE, ERROR_TYPE), _REQUEST_S, experimental=True,
)  # fmt: skip
WEBSOCKET_DURATION = Metric(
    "websocket.connection.duration", "s", "histogram", "Duration of WebSocket connections.",
    (HTTP_ROUTE, URL_SCHEME, ERROR_TYPE), _CONNECTION_S, experimental=True,
)  # fmt: skip
WEBSOCKETS_ACTIVE = Metric(
    "websocket.active_connections", "{connection}", "updowncounter", "WebSocket connections that are open.",
    (URL_SCHEME,), experimental=True,
)  # fmt: skip
WEBSOCKET_MESSAGES = Metric(
    "websocket.messages", "{message}", "counter", "Messages on WebSocket connections.",
    (HTTP_ROUTE, MESSAGE_DIRECTION), experimental=True,
)  # fmt: skip
QUERY_DURATION = Metric(
    "db.client.operation.duration", "s", "histogram", "Duration of database client operations.",
    (DB_SYSTEM, DB_OPERATION, DB_COLLECTION, DB_NAMESPACE, ERROR_TYPE), _QUERY_S,
)  # fmt: skip
QUERY_SLOW = Metric(
    "db.client.slow_operations", "{operation}", "counter", "Database operations at or over the slow threshold.",
    (DB_SYSTEM, DB_OPERATION, DB_COLLECTION, DB_NAMESPACE, DB_THRESHOLD), experimental=True,
)  # fmt: skip
QUERY_REPEATED = Metric(
    "db.client.repeated_operations", "{operation}", "counter", "Operations of one template, repeated within a request.",
    (DB_SYSTEM, DB_OPERATION, DB_COLLECTION, HTTP_ROUTE), experimental=True,
)  # fmt: skip
TRANSACTION_DURATION = Metric(
    "db.client.transaction.duration", "s", "histogram", "Duration of database transactions.",
    (DB_SYSTEM, DB_NAMESPACE, DB_TRANSACTION_OUTCOME, ERROR_TYPE), _QUERY_S, experimental=True,
)  # fmt: skip
TRANSACTION_RETRIES = Metric(
    "db.client.transaction.retries", "{retry}", "counter", "Further attempts at database transactions.",
    (DB_SYSTEM, DB_NAMESPACE), experimental=True,
)  # fmt: skip
POOL_COUNT = Metric(
    "db.client.connection.count", "{connection}", "updowncounter", "Connections of a pool by state.",
    (DB_POOL_NAME, DB_POOL_STATE),
)  # fmt: skip
POOL_MAX = Metric(
    "db.client.connection.max", "{connection}", "updowncounter", "Connections that a pool may open.", (DB_POOL_NAME,)
)
POOL_PENDING = Metric(
    "db.client.connection.pending_requests", "{request}", "updowncounter", "Requests that wait for a connection.",
    (DB_POOL_NAME,),
)  # fmt: skip
POOL_TIMEOUTS = Metric(
    "db.client.connection.timeouts", "{timeout}", "counter", "Requests that got no connection in time.", (DB_POOL_NAME,)
)
POOL_WAIT = Metric(
    "db.client.connection.wait_time", "s", "histogram", "Time to get a connection from a pool.",
    (DB_POOL_NAME,), _QUERY_S,
)  # fmt: skip
CACHE_DURATION = Metric(
    "cache.operation.duration", "s", "histogram", "Duration of cache operations.",
    (CACHE_SYSTEM, CACHE_OPERATION, CACHE_STRATEGY, CACHE_RESULT, ERROR_TYPE), _CACHE_S, experimental=True,
)  # fmt: skip
CACHE_REQUESTS = Metric(
    "cache.requests", "{request}", "counter", "Look-ups of caches that only keep count.",
    (CACHE_SYSTEM, CACHE_STRATEGY, CACHE_RESULT), experimental=True,
)  # fmt: skip
CACHE_ENTRIES = Metric(
    "cache.entry.count", "{entry}", "updowncounter", "Entries of a cache.", (CACHE_SYSTEM, CACHE_STRATEGY),
    experimental=True,
)  # fmt: skip
CACHE_ENTRIES_MAX = Metric(
    "cache.entry.max", "{entry}", "updowncounter", "Entries that a cache may hold.", (CACHE_SYSTEM, CACHE_STRATEGY),
    experimental=True,
)  # fmt: skip
CACHE_INVALIDATIONS = Metric(
    "cache.invalidations", "{invalidation}", "counter", "Tags of which all entries were made void.",
    (CACHE_SYSTEM, CACHE_TAG), experimental=True,
)  # fmt: skip
CACHE_FAILOVERS = Metric(
    "cache.failovers", "{answer}", "counter", "Old answers that were given in place of a failed call.",
    (CACHE_SYSTEM, CACHE_STRATEGY), experimental=True,
)  # fmt: skip
HTTP_CLIENT_DURATION = Metric(
    "http.client.request.duration", "s", "histogram", "Duration of HTTP client requests.",
    (HTTP_METHOD, SERVER_ADDRESS, SERVER_PORT, HTTP_STATUS, URL_SCHEME, PROTOCOL_VERSION, ERROR_TYPE), _REQUEST_S,
)  # fmt: skip
EXTERNAL_DURATION = Metric(
    "external.api.duration", "s", "histogram", "Duration of calls to external APIs, once per call.",
    (PEER_SERVICE, EXTERNAL_OPERATION, EXTERNAL_CATEGORY, ERROR_TYPE), _REQUEST_S, experimental=True,
)  # fmt: skip
JOB_DURATION = Metric(
    "background.job.duration", "s", "histogram", "Duration of background job runs.",
    (JOB_NAME, ERROR_TYPE), _JOB_S, experimental=True,
)  # fmt: skip
JOBS_ACTIVE = Metric(
    "background.job.active", "{run}", "updowncounter", "Background job runs in flight.",
    (JOB_NAME,), experimental=True,
)  # fmt: skip
JOB_ITEM_COUNT = Metric(
    JOB_ITEMS, "{item}", "counter", "Items that background jobs worked on.", (JOB_NAME,), experimental=True
)
JOB_LAST_SUCCESS = Metric(
    "background.job.last_success", "s", "gauge", "Unix time of a job's last success.", (JOB_NAME,), experimental=True
)
JOB_OVERLAPS = Metric(
    "background.job.overlaps", "{run}", "counter", "Runs that began while another run of the job was in flight.",
    (JOB_NAME,), experimental=True,
)  # fmt: skip
JOB_MISSED = Metric(
    "background.job.missed", "{run}", "counter", "Runs that were due and did not begin.", (JOB_NAME,), experimental=True
)
JOB_WAIT = Metric(
    "background.job.queue.wait", "s", "histogram", "Time from when a run was asked for, or due, to its beginning.",
    (JOB_NAME,), _JOB_WAIT_S, experimental=True,
)  # fmt: skip
STEP_DURATION = Metric(
    "operation.duration", "s", "histogram", "Duration of measured code.",
    (STEP_NAME, STEP_CATEGORY, ERROR_TYPE), _REQUEST_S, experimental=True,
)  # fmt: skip
STEP_ITEM_COUNT = Metric(
    STEP_ITEMS, "{item}", "counter", "Items that measured code worked on.",
    (STEP_NAME, STEP_CATEGORY), experimental=True,
)  # fmt: skip
WEB_VITALS = tuple(
    Metric(f"web_vital.{name}", unit, "histogram", about, (HTTP_ROUTE,), bounds, experimental=True)
    for name, unit, about, bounds in (
        ("lcp", "s", "Largest Contentful Paint.", _VITAL_S),
        ("ttfb", "s", "Time To First Byte.", _VITAL_S),
        ("fcp", "s", "First Contentful Paint.", _VITAL_S),
        ("inp", "s", "Interaction to Next Paint.", _INPUT_S),
        ("fid", "s", "First Input Delay.", _INPUT_S),
        ("cls", "1", "Cumulative Layout Shift.", _SHIFT),
    )
)
SPANS_MADE = Metric("otel_perf.spans.made", "{span}", "counter", "Spans that ended and were sampled.")
SPANS_DELIVERED = Metric("otel_perf.spans.delivered", "{span}", "counter", "Spans that the endpoint took.")
DROPPED = Metric("otel_perf.dropped", "{item}", "counter", "Items lost, by signal and reason.", ("signal", "reason"))
QUEUE_SIZE = Metric("otel_perf.queue.size", "{span}", "gauge", "Spans that wait to be sent.")
QUEUE_CAPACITY = Metric("otel_perf.queue.capacity", "{span}", "gauge", "Spans that the queue can hold.")
LATE_HELD = Metric("otel_perf.late.held", "{span}", "gauge", "Unsampled spans that wait for a late rule.")
LATE_KEPT = Metric("otel_perf.late.kept", "{trace}", "counter", "Traces that a late rule kept.", (KEPT_BY,))
INTERNAL_ERRORS = Metric("otel_perf.internal_errors", "{error}", "counter", "Faults of otel_perf, kept from the app.")

METRICS: tuple[Metric, ...] = (
    REQUEST_DURATION, REQUESTS_ACTIVE, PHASE_DURATION, WEBSOCKET_DURATION, WEBSOCKETS_ACTIVE, WEBSOCKET_MESSAGES,
    QUERY_DURATION, QUERY_SLOW, QUERY_REPEATED, TRANSACTION_DURATION, TRANSACTION_RETRIES,
    POOL_COUNT, POOL_MAX, POOL_PENDING, POOL_TIMEOUTS, POOL_WAIT,
    CACHE_DURATION, CACHE_REQUESTS, CACHE_ENTRIES, CACHE_ENTRIES_MAX, CACHE_INVALIDATIONS, CACHE_FAILOVERS,
    HTTP_CLIENT_DURATION, EXTERNAL_DURATION,
    JOB_DURATION, JOBS_ACTIVE, JOB_ITEM_COUNT, JOB_LAST_SUCCESS, JOB_OVERLAPS, JOB_MISSED, JOB_WAIT,
    STEP_DURATION, STEP_ITEM_COUNT, *WEB_VITALS, *PROCESS_METRICS,
    SPANS_MADE, SPANS_DELIVERED, DROPPED, QUEUE_SIZE, QUEUE_CAPACITY, LATE_HELD, LATE_KEPT, INTERNAL_ERRORS,
)  # fmt: skip

# The open catalogue --------------------------------------------------------------------------------------------------

_declared: dict[str, Metric] = {metric.name: metric for metric in METRICS}


def declare(metric: Metric) -> Metric:
    """Adds an app's own metric to the catalogue, so that page, dashboards and checks know it as they know ours.

    Declaring the same metric again is allowed; the same name with another meaning raises `ValueError`.
    """
    known = _declared.setdefault(metric.name, metric)
    if known != metric:
        message = (
            f"metric {metric.name!r} is declared already, with unit {known.unit!r}, kind {known.kind!r} and "
            f"attributes {known.attributes!r}; declare it once and share the handle, or choose another name"
        )
        raise ValueError(message)
    return known


def declared() -> tuple[Metric, ...]:
    """All metrics of the catalogue: ours first, then the app's in the order of declaration."""
    return tuple(_declared.values())


def buckets_for(name: str) -> tuple[float, ...] | None:
    """The explicit bucket bounds of a declared metric, or None for a name that the catalogue does not hold."""
    metric = _declared.get(name)
    return None if metric is None else metric.buckets
