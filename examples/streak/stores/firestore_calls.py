"""Calls of Firestore with a deadline, and transactions that are begun anew after what may pass.

Google's library repeats a single call that found no server, and a transaction that lost against another one, up to
five times. Here is what it leaves to its callers: an end to the waiting, and the transactions that even so failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import datetime, timezone
from typing import Any, Final, TypeVar

import stamina
from google.api_core.exceptions import GoogleAPICallError
from google.cloud.firestore import (
    AsyncClient,
    AsyncCollectionReference,
    AsyncDocumentReference,
    AsyncQuery,
    AsyncTransaction,
    async_transactional,
)
from google.cloud.firestore_v1.async_aggregation import AsyncAggregationQuery

from examples.streak.metrics import record_transaction_failed, record_transaction_retry
from examples.streak.stores import StoreUnavailableError

__all__ = ["Calls", "aggregation"]

T = TypeVar("T")
Work = Callable[[AsyncTransaction], Awaitable[T]]

#: What a request waits for, at most: one call, one attempt at a transaction, all of them.
READ_S: Final = 5.0
ATTEMPT_S: Final = 5.0
ALL_ATTEMPTS_S: Final = 12.0
ATTEMPTS: Final = 4
_PING_S: Final = 1.0
_GRACE_S: Final = 1.0

# A document that was read as missing and is there by the commit is a conflict like any other.
_TRANSIENT: Final = frozenset(
    {"ABORTED", "ALREADY_EXISTS", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
)


class _TransientError(Exception):
    """What may well succeed when it is done again. It is logged, so the text is the name of a status and no more."""

    def __init__(self, name: str, reason: Exception) -> None:
        super().__init__(name)
        self.reason = reason


class Calls:
    """Reads and transactions of one client."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self._under_way: set[asyncio.Task[Any]] = set()

    async def ping(self) -> None:
        """Raise `StoreUnavailableError` when Firestore does not answer within a second, or refuses to."""
        try:
            await self.read(self.get(self.client.document("maintenance/lease")), _PING_S)
        except GoogleAPICallError as error:
            raise StoreUnavailableError(_name_of(error)) from None

    async def read(self, call: Coroutine[Any, Any, T], deadline_s: float = READ_S) -> T:
        """Wait for what is asked for. What may pass is repeated by the library, until the deadline."""
        try:
            return await self._attempt(call, deadline_s)
        except _TransientError as error:
            raise StoreUnavailableError(str(error)) from None

    async def ask(self, query: AsyncQuery, deadline_s: float = READ_S) -> list[dict[str, Any]]:
        """Return the documents that a query finds."""
        return [each.to_dict() or {} for each in await self.read(query.get(), deadline_s)]

    async def aggregate(self, query: AsyncAggregationQuery, transaction: AsyncTransaction) -> dict[str, int]:
        """Return the counts and sums of a query, by their aliases."""
        found = await query.get(transaction=transaction)
        return {each.alias: int(each.value) for row in found for each in row}

    async def read_at_once(self, work: Work[T], deadline_s: float = READ_S) -> T:
        """Do several reads that see the same moment."""
        return await self.read(self._run(work, self.client.transaction(read_only=True)), deadline_s)

    async def write(self, operation: str, work: Work[T], attempt_s: float = ATTEMPT_S) -> T:
        """Do the work in one transaction, and begin it anew when it lost against another one or found no server.

        When the answer to a commit gets lost, nobody knows whether it was made. So `work` has to find out what an
        attempt before it has written, or to do no harm the second time.
        """
        fresh = True

        async def counted(transaction: AsyncTransaction) -> T:
            nonlocal fresh
            if not fresh:  # the library's own next attempt
                record_transaction_retry(operation)
            fresh = False
            return await work(transaction)

        all_s = max(ALL_ATTEMPTS_S, 2 * attempt_s)
        attempts = stamina.retry_context(
            _TransientError, attempts=ATTEMPTS, timeout=all_s, wait_initial=0.05, wait_max=1.0, wait_jitter=0.1
        )
        try:
            async for attempt in attempts:
                with attempt:
                    if attempt.num > 1:
                        record_transaction_retry(operation)
                    fresh = True
                    return await self._attempt(self._run(counted, self.client.transaction()), attempt_s)
        except _TransientError as error:
            record_transaction_failed(operation, error.reason)
            raise StoreUnavailableError(str(error)) from None
        except Exception as error:
            record_transaction_failed(operation, error)
            raise
        raise AssertionError("there is always a last attempt")

    async def get(
        self, reference: AsyncDocumentReference, transaction: AsyncTransaction | None = None
    ) -> dict[str, Any] | None:
        """Read a document, or None where there is none."""
        (document,) = await self.get_all([reference], transaction)
        return document

    async def get_with_time(
        self, reference: AsyncDocumentReference, transaction: AsyncTransaction
    ) -> tuple[dict[str, Any] | None, datetime]:
        """Read a document, or None where there is none, and when that was by the clock of Firestore."""
        async for each in self.client.get_all([reference], transaction=transaction):
            found = each
        read_at = found.read_time
        # An emulator may not tell.
        now = (
            datetime.now(timezone.utc) if read_at is None else datetime.fromtimestamp(read_at.timestamp(), timezone.utc)
        )
        return found.to_dict(), now

    async def get_all(
        self, references: Iterable[AsyncDocumentReference], transaction: AsyncTransaction | None = None
    ) -> list[dict[str, Any] | None]:
        """Read documents in one call, in the order they are asked for."""
        wanted = list(references)
        # `get` of a reference leaves the end of the answer unread, and so the call open; `get_all` of a transaction
        # awaits what cannot be awaited (2.34).
        found = {each.reference.path: each async for each in self.client.get_all(wanted, transaction=transaction)}
        return [found[each.path].to_dict() for each in wanted]

    async def close(self) -> None:
        """Close the connection, and wait for the end of what was given up."""
        # The client has no way of its own to close its channel, and makes one when it is asked for it.
        api = self.client._firestore_api_internal
        if api is not None:
            await api.transport.grpc_channel.close(_GRACE_S if self._under_way else None)
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _run(self, work: Work[T], transaction: AsyncTransaction) -> T:
        return await async_transactional(work)(transaction)

    async def _attempt(self, call: Coroutine[Any, Any, T], deadline_s: float) -> T:
        # A task of its own: when a transaction is cancelled, the library first rolls it back, for up to a minute, and
        # when it has not begun yet, it raises a ValueError in place of the cancellation. Nobody waits for that here.
        task = asyncio.ensure_future(call)
        self._under_way.add(task)
        task.add_done_callback(self._forget)
        try:
            done, _ = await asyncio.wait((task,), timeout=deadline_s)
        finally:
            task.cancel()
        if not done:
            raise _TransientError("DEADLINE_EXCEEDED", TimeoutError())
        if task.cancelled():  # the connection was closed
            raise StoreUnavailableError("CANCELLED")
        try:
            return task.result()
        except Exception as error:
            reason = _reason_of(error)
            if reason is None:
                raise
            if _name_of(reason) in _TRANSIENT:
                raise _TransientError(_name_of(reason), reason) from None
            raise reason from None

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # has been seen


def aggregation(query: AsyncQuery | AsyncCollectionReference, count: str, **sums: str) -> AsyncAggregationQuery:
    """Return a query for how many documents there are, and for sums of their fields, each by its alias."""
    counting: Any = query  # the library's types have the class where it returns an object of it
    made: AsyncAggregationQuery = counting.count(alias=count)
    for alias, field in sums.items():
        made.sum(field, alias=alias)
    return made


def _reason_of(error: BaseException) -> GoogleAPICallError | None:
    """Return the failed call behind an error: the library puts a ValueError, or a failed roll-back, before it."""
    found: GoogleAPICallError | None = None
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            break
        if isinstance(seen, GoogleAPICallError):
            found = seen
        seen = seen.__cause__ or seen.__context__
    return found


def _name_of(error: GoogleAPICallError) -> str:
    code = error.grpc_status_code
    return type(error).__name__ if code is None else str(code.name)
