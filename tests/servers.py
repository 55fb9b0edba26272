"""Fixtures of real servers for the whole suite.

Each is started once per session, on a free loopback port. Where its program is not on this machine the test is
skipped with the reason; under `OTEL_PERF_REQUIRE=all` (as in CI) that is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector import servers, tools
from collector.redis_cluster import RedisCluster, redis_cluster

__all__ = [
    "chromium_binary",
    "find_or_skip",
    "firestore_emulator",
    "jaeger_binary",
    "jaeger_server",
    "otelcol_binary",
    "postgresql_server",
    "prometheus_binary",
    "prometheus_server",
    "promtool_binary",
    "redis_cluster_server",
    "redis_server",
]


def find_or_skip(name: str) -> Path:
    """Return where a program is; skip the test when it is nowhere, or fail it when all are required."""
    try:
        return tools.find(name)
    except tools.MissingToolError as error:
        if os.environ.get("OTEL_PERF_REQUIRE") == "all":
            pytest.fail(f"OTEL_PERF_REQUIRE=all: {error}", pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def otelcol_binary() -> Path:
    """The Collector."""
    return find_or_skip("otelcol")


@pytest.fixture(scope="session")
def jaeger_binary() -> Path:
    """Jaeger."""
    return find_or_skip("jaeger")


@pytest.fixture(scope="session")
def prometheus_binary() -> Path:
    """Prometheus."""
    return find_or_skip("prometheus")


@pytest.fixture(scope="session")
def promtool_binary() -> Path:
    """Prometheus' checker of configurations and rules."""
    return find_or_skip("promtool")


@pytest.fixture(scope="session")
def chromium_binary() -> Path:
    """Chromium."""
    return find_or_skip("chromium")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Redis]:
    """A Redis for the session; a test that writes takes keys or a database number of its own."""
    find_or_skip("redis-server")
    with servers.redis() as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster_server() -> Iterator[RedisCluster]:
    """A Redis cluster of three nodes for the session; a test that writes takes keys of its own, and ends no node."""
    find_or_skip("redis-server")
    with redis_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[servers.PostgreSQL]:
    """A PostgreSQL for the session; a test that writes takes tables or a schema of its own."""
    find_or_skip("postgres")
    with servers.postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def firestore_emulator() -> Iterator[servers.Firestore]:
    """A Firestore emulator for the session; a test that writes takes a project of its own."""
    find_or_skip("firestore-emulator")
    with servers.firestore() as server:
        yield server


@pytest.fixture(scope="session")
def prometheus_server(prometheus_binary: Path) -> Iterator[servers.Prometheus]:
    """A Prometheus that takes remote writes and scrapes nothing."""
    with servers.prometheus() as server:
        yield server


@pytest.fixture(scope="session")
def jaeger_server(jaeger_binary: Path) -> Iterator[servers.Jaeger]:
    """A Jaeger for the session."""
    with servers.jaeger() as server:
        yield server
