"""A Redis client and two strategies, for the tests of Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from otel_perf import measure, strategy


@pytest.fixture
def redis_client(redis_server: Any) -> Iterator[redis.Redis]:
    """A client of database 2, emptied."""
    made = redis.Redis(host="127.0.0.1", port=redis_server.port, db=2)
    made.flushdb()
    yield made
    made.close()


@pytest.fixture
def strategies() -> Iterator[None]:
    """Two declared strategies, forgotten afterwards."""
    measure.strategy("USER", "user:{id}")
    measure.strategy("PAGE", "page:*")
    yield
    strategy._strategies.clear()
