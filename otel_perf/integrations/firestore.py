"""google-cloud-firestore, sync and async: reads, writes, queries, aggregations, batches, bulk writers, transactions.

An interceptor of gRPC would see calls and not what they are for (a read of one document and one of many, a write and a
batch are the same call), and streams only by their pieces. So the methods are wrapped in their classes; which clients
are measured is asked at each call. Retries within the library belong to the call. Listeners (`on_snapshot`) and
pipelines are not measured.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from otel_perf.integrations import firestore_calls as calls
from otel_perf.integrations.methods import measured, stream_of
from otel_perf.integrations.patch import Patch, Patches
from otel_perf.integrations.registry import Undo

with warnings.catch_warnings():
    # Google's packages warn of an old Python as they are imported; `instrument()` prints nothing.
    warnings.simplefilter("ignore", FutureWarning)
    from google.cloud.firestore_v1 import (
        aggregation,
        async_aggregation,
        async_batch,
        async_client,
        async_collection,
        async_document,
        async_query,
        async_transaction,
        async_vector_query,
        batch,
        bulk_batch,
        client,
        collection,
        document,
        query,
        transaction,
        types,
        vector_query,
    )

__all__ = ["instrument", "matches"]

# They are found under their public decorators, which answer objects of theirs.
_transactional: Any = transaction._Transactional  # pyright: ignore[reportPrivateUsage]
_async_transactional: Any = async_transaction._AsyncTransactional  # pyright: ignore[reportPrivateUsage]
#: What an async query yields last where it was asked to explain itself, as no document; then it is not asked again.
_ExplainMetrics: type | None = getattr(types, "ExplainMetrics", None)


def matches(target: object) -> bool:
    """Whether this is a client."""
    return isinstance(target, (client.Client, async_client.AsyncClient))


def instrument(target: Any = None) -> Undo:
    """Measures the calls of one client, or with None of all clients there are and will be."""
    return _patches.take(target)


def _attempt(original: Callable[..., Any]) -> Callable[..., Any]:
    """It is this call that each attempt at a transaction begins with."""

    @functools.wraps(original)
    def begin(self: Any, /, *args: Any, **options: Any) -> Any:
        calls.attempt(self)
        return original(self, *args, **options)

    return begin


def _copy(original: Callable[..., Any]) -> Callable[..., Any]:
    """The bulk writers of an async client use a sync copy of it."""

    @functools.wraps(original)
    def copy(self: Any, /) -> Any:
        made = original(self)
        calls.copied(self, made)
        return made

    return copy


def _make() -> list[Patch]:
    patches: list[Patch] = []

    def patch(name: str, method: str, read: Any, *kinds: type) -> None:
        call = calls.Call(name, read, _patches.measures)
        patches.extend(Patch(kind, method, measured(call, _ExplainMetrics)) for kind in kinds)

    clients = (client.Client, async_client.AsyncClient)
    patch("get", "get_all", calls.of_client, *clients)
    patch("list_collections", "collections", calls.of_client, *clients)
    documents = (document.DocumentReference, async_document.AsyncDocumentReference)
    for name in ("get", "create", "set", "update", "delete"):
        patch(name, name, calls.of_document, *documents)
    patch("list_collections", "collections", calls.of_document, *documents)
    collections = (collection.CollectionReference, async_collection.AsyncCollectionReference)
    patch("add", "add", calls.of_collection, *collections)
    patch("list_documents", "list_documents", calls.of_collection, collections[1])
    listing = calls.Call("list_documents", calls.of_collection, _patches.measures)
    patches.append(Patch(collections[0], "list_documents", functools.partial(stream_of, listing)))
    # Where `get` and `stream` of a query meet, and what it is asked for by a transaction, in parts or recursively.
    patch("query", "_make_stream", calls.of_query, query.Query, async_query.AsyncQuery)
    patch(
        "aggregate", "_make_stream", calls.of_aggregation,
        aggregation.AggregationQuery, async_aggregation.AsyncAggregationQuery,
    )  # fmt: skip
    patch(
        "find_nearest", "_make_stream", calls.of_vector, vector_query.VectorQuery, async_vector_query.AsyncVectorQuery
    )
    patch("partition_query", "get_partitions", calls.of_query, query.CollectionGroup, async_query.AsyncCollectionGroup)
    patch("commit", "commit", calls.of_batch, batch.WriteBatch, async_batch.AsyncWriteBatch)
    patch("batch_write", "commit", calls.of_batch, bulk_batch.BulkWriteBatch)
    patches.append(Patch(async_client.AsyncClient, "_to_sync_copy", _copy))
    transactions = (transaction.Transaction, async_transaction.AsyncTransaction)
    patch("commit", "_commit", calls.of_batch, *transactions)
    patches.extend(Patch(kind, "_begin", _attempt) for kind in transactions)
    run = measured(calls.Transactions(_patches.measures))
    patches.extend(Patch(kind, "__call__", run) for kind in (_transactional, _async_transactional))
    return patches


_patches = Patches(_make)
