"""What the maintenance asks for and does, in Firestore.

A batch is one transaction, of as many writes as there are users to change and one more. Firestore takes any number of
writes up to 10 MiB, which are more than 10,000 users here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any, Final

from google.cloud.firestore import (
    AsyncCollectionReference,
    AsyncQuery,
    AsyncTransaction,
    FieldFilter,
    Query,
)

from examples.streak import rules
from examples.streak.records import Lease, Message, Range, Run, SettledBatch, Tally, Trigger, new_id
from examples.streak.stores import LeaseLostError, OverlapError
from examples.streak.stores import firestore_documents as documents
from examples.streak.stores.firestore_calls import Calls, aggregation

__all__ = ["FirestoreRuns"]

# Large batches take their time.
_SETTLE_S: Final = 30.0
_FORGET_AT_ONCE: Final = 400
_OF_A_DAY: Final = 20
_MAX_ERROR_LENGTH: Final = 128
# What settling changes of a state.
_WRITTEN: Final = (
    "streak", "going", "holds_until", "week_holds_until",
    "freezes", "freezes_used", "held_until", "lost_streak", "lost_on", "missed_on",
)  # fmt: skip


class FirestoreRuns:
    """The runs of the maintenance, in Firestore."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._users = calls.client.collection("users")
        self._runs = calls.client.collection("runs")
        self._lease = calls.client.document("maintenance/lease")

    async def lease(self, holder: str, at: datetime | None, ttl_s: float, *, instead_of: str | None = None) -> Lease:
        """Take or extend the one lease, and return the lease that is in force, whoever holds it."""

        async def take(transaction: AsyncTransaction) -> Lease:
            found, read_at = await self._calls.get_with_time(self._lease, transaction)
            now = at or read_at
            if found is not None and found["holder"] not in (holder, instead_of):
                until = documents.to_moment(found["until"])
                if until > now:
                    return Lease(found["holder"], until, now)
            taken = Lease(holder, now + timedelta(seconds=ttl_s), now)
            transaction.set(self._lease, {"holder": taken.holder, "until": taken.until})
            return taken

        return await self._calls.write("lease", take)

    async def release(self, holder: str) -> None:
        """Give the lease back, if `holder` has it."""

        async def give_back(transaction: AsyncTransaction) -> None:
            found = await self._calls.get(self._lease, transaction)
            if found is not None and found["holder"] == holder:
                transaction.delete(self._lease)

        await self._calls.write("release", give_back)

    async def begin(self, day: date, trigger: Trigger, at: datetime, *, holder: str | None = None) -> Run:
        """Write a new run that is under way."""
        run = Run(new_id(at), day, trigger, "running", at)
        of_day = self._runs.where(filter=FieldFilter("day", "==", day.isoformat())).limit(1)

        async def write(transaction: AsyncTransaction) -> Run:
            if holder is not None:
                await self._require_lease(transaction, holder)
                for each in await of_day.get(transaction=transaction):
                    if each.id != run.id:
                        raise LeaseLostError("another run of this day has begun")
            transaction.set(self._runs.document(run.id), documents.from_run(run))
            return run

        return await self._calls.write("begin", write)

    async def take_up(self, run_id: str, *, holder: str | None = None) -> Run:
        """Set a run that was ended half-way under way again, one more time resumed.

        When the answer to the commit gets lost, it may count one more.
        """

        async def take_up(transaction: AsyncTransaction) -> Run:
            if holder is not None:
                await self._require_lease(transaction, holder)
            run, tally, unsent = await self._read(transaction, run_id)
            if holder is not None and run["state"] == "completed":
                raise LeaseLostError("the run is completed already")
            again = {"state": "running", "ended_at": None, "error": None, "resumed": run["resumed"] + 1, "tally": None}
            transaction.update(self._runs.document(run_id), again)
            return documents.to_run({**run, **again}, tally, unsent)

        return await self._calls.write("take_up", take_up)

    async def end(self, run_id: str, at: datetime, error: str | None = None, *, holder: str | None = None) -> Run:
        """Write that a run is completed, or, with the kind of its error, that it failed."""
        kind = error[:_MAX_ERROR_LENGTH] if error else None
        over = {"state": "failed" if kind else "completed", "ended_at": at, "error": kind}

        async def end(transaction: AsyncTransaction) -> Run:
            if holder is not None:
                await self._require_lease(transaction, holder)
            run, tally, unsent = await self._read(transaction, run_id)
            if holder is not None and run["state"] not in ("running", over["state"]):
                raise LeaseLostError("the run has ended already")
            written = {**over, "tally": documents.from_tally(tally), "unsent": unsent}
            transaction.update(self._runs.document(run_id), written)
            return documents.to_run({**run, **over}, tally, unsent)

        return await self._calls.write("end", end)

    async def last_of(self, day: date) -> Run | None:
        """Return the run of a day: the newest, but a completed one before all that are not."""
        of_day = self._runs.where(filter=FieldFilter("day", "==", day.isoformat()))
        # There is one, or a few that were written before there could be only one.
        runs = await self._newest(of_day, _OF_A_DAY)
        completed = [run for run in runs if run.state == "completed"]
        return next(iter(completed or runs), None)

    async def history(self, limit: int, before: str | None = None) -> list[Run]:
        """Return runs, newest first: those with an id below `before`."""
        if before is None:
            return await self._newest(self._runs, limit)
        return await self._newest(self._runs.where(filter=FieldFilter("id", "<", before)), limit)

    async def _newest(self, runs: AsyncQuery | AsyncCollectionReference, limit: int) -> list[Run]:
        found = await self._calls.ask(runs.order_by("id", direction=Query.DESCENDING).limit(limit))
        return [documents.to_run(run, *await self._tally(run)) for run in found]

    async def _tally(self, run: dict[str, Any]) -> tuple[Tally, int]:
        """Return what a run came to, and what is unsent; of one under way, what its batches came to so far."""
        if run["tally"] is not None:
            return documents.to_tally(run["tally"]), run.get("unsent", 0)
        return await self._calls.read_at_once(lambda transaction: self._sum(transaction, run["id"]))

    async def due(self, day: date, *, after: str, until: str | None, limit: int) -> list[str]:
        """Return the next users by name who have a streak and for whom nothing holds `day` yet."""
        query = self._due(day, after, until).select(["name"]).limit(limit)
        return [each["name"] for each in await self._calls.ask(query)]

    def _due(self, day: date, after: str, until: str | None) -> AsyncQuery:
        query = (
            self._users.where(filter=FieldFilter("going", "==", True))
            .where(filter=FieldFilter("name", ">", after))
            .where(filter=FieldFilter("held_until", "<", day.isoformat()))
        )
        if until is not None:
            query = query.where(filter=FieldFilter("name", "<=", until))
        return query.order_by("name")

    async def done(self, run_id: str) -> list[Range]:
        """Return the ranges that a run has accounted for, by their beginning; adjacent ones are one."""
        merged: list[Range] = []
        query = self._batches(run_id).select(["after", "until"]).order_by("after")
        for part in map(documents.to_range, await self._calls.ask(query, _SETTLE_S)):
            if merged and part.after <= merged[-1].until:
                merged[-1] = Range(merged[-1].after, max(merged[-1].until, part.until))
            else:
                merged.append(part)
        return merged

    async def settle(
        self, run_id: str, part: Range, day: date, *, holder: str | None = None, dry_run: bool = False
    ) -> SettledBatch:
        """Account for the missed days of a range's users, and write it with the batch itself, in one transaction.

        A range that the run has accounted for already is not done again: what was written comes back.
        """
        users = self._due(day, part.after, part.until)
        if dry_run:
            return _settle(await self._calls.ask(users, _SETTLE_S), part, day)[0]
        reference = self._batches(run_id).document(documents.batch_key(part))
        # Of the ranges of a run none overlaps another: the last that begins before the end of this one tells.
        last = self._batches(run_id).where(filter=FieldFilter("after", "<", part.until))
        last = last.order_by("after", direction=Query.DESCENDING).limit(1)

        async def settle(transaction: AsyncTransaction) -> SettledBatch:
            if holder is not None:
                await self._require_lease(transaction, holder)
                run = await self._calls.get(self._runs.document(run_id), transaction)
                if run is None or run["state"] != "running":
                    raise LeaseLostError("the run has ended already")
            before = await self._calls.get(reference, transaction)
            if before is not None:
                return documents.to_batch(before)
            for each in await last.get(transaction=transaction):
                if (each.to_dict() or {})["until"] > part.after:
                    raise OverlapError(
                        f"a part of the range from {part.after!r} to {part.until!r} is accounted for already"
                    )
            found = [each.to_dict() or {} for each in await users.get(transaction=transaction)]
            batch, changed = _settle(found, part, day)
            for name, fields in changed.items():
                transaction.update(self._users.document(documents.key(name)), fields)
            transaction.create(reference, documents.from_batch(batch))
            return batch

        return await self._calls.write("settle", settle, _SETTLE_S)

    async def unsent(self, run_id: str, limit: int, after: str = "") -> list[tuple[Range, tuple[Message, ...]]]:
        """Return batches of a run whose messages were not taken by the push API yet."""
        query = self._batches(run_id).where(filter=FieldFilter("unsent", "==", True))
        if after:
            query = query.where(filter=FieldFilter("after", ">=", after))
        query = query.order_by("after").limit(limit)
        found = await self._calls.ask(query, _SETTLE_S)
        return [(documents.to_range(each), documents.to_messages(each)) for each in found]

    async def sent(self, run_id: str, part: Range, notified: int, left: Sequence[Message] = ()) -> None:
        """Write that messages of a batch were taken, so many, or are given up; they are forgotten, and counted."""
        reference = self._batches(run_id).document(documents.batch_key(part))

        async def write(transaction: AsyncTransaction) -> None:
            batch = await self._calls.get(reference, transaction)
            run = await self._calls.get(self._runs.document(run_id), transaction)
            if batch is None or not batch["unsent"]:
                return
            fewer = len(documents.to_messages(batch)) - len(left)
            if fewer <= 0:
                return
            counted = {"notified": batch["notified"] + notified}
            transaction.update(reference, {**documents.from_messages(left), **counted})
            if run is not None and run["tally"] is not None:  # it has ended meanwhile
                counted = {
                    "tally.notified": run["tally"]["notified"] + notified,
                    "unsent": max(0, run.get("unsent", 0) - fewer),
                }
                transaction.update(self._runs.document(run_id), counted)

        await self._calls.write("sent", write)

    async def forget_runs(self, before: datetime) -> int:
        """Delete runs that began before a moment, with their batches, and return how many.

        A run goes after the last of its batches, so what is interrupted is done by the next call.
        """
        query = self._runs.where(filter=FieldFilter("started_at", "<", before)).select(["id"])
        old = [each["id"] for each in await self._calls.ask(query, _SETTLE_S)]
        for run_id in old:
            while not await self._calls.write("forget_runs", lambda transaction: self._forget(transaction, run_id)):  # noqa: B023 - it is called within the same turn
                pass
        return len(old)

    async def _forget(self, transaction: AsyncTransaction, run_id: str) -> bool:
        batches = self._batches(run_id).select(["after"]).limit(_FORGET_AT_ONCE)
        found = await batches.get(transaction=transaction)
        for each in found:
            transaction.delete(each.reference)
        is_last = len(found) < _FORGET_AT_ONCE
        if is_last:
            transaction.delete(self._runs.document(run_id))
        return is_last

    def _batches(self, run_id: str) -> AsyncCollectionReference:
        batches: AsyncCollectionReference = self._runs.document(run_id).collection("batches")
        return batches

    async def _require_lease(self, transaction: AsyncTransaction, holder: str) -> None:
        lease = await self._calls.get(self._lease, transaction)
        if lease is None or lease["holder"] != holder:
            raise LeaseLostError("somebody else has the lease now, or nobody")

    async def _read(self, transaction: AsyncTransaction, run_id: str) -> tuple[dict[str, Any], Tally, int]:
        run = await self._calls.get(self._runs.document(run_id), transaction)
        if run is None:
            raise LookupError(f"there is no run {run_id[:32]}")
        stored = run["tally"]
        if stored is not None:
            return run, documents.to_tally(stored), run.get("unsent", 0)
        return run, *await self._sum(transaction, run_id)

    async def _sum(self, transaction: AsyncTransaction, run_id: str) -> tuple[Tally, int]:
        """Add up a run's batches. A query takes five sums at most."""
        batches = self._batches(run_id)
        found: dict[str, int] = {}
        for names in (documents.COUNTS[:3], (*documents.COUNTS[3:], "left")):
            query = aggregation(batches, "batches", **{name: name for name in names})
            found |= await self._calls.aggregate(query, transaction)
        return documents.to_tally(found), found["left"]


def _settle(users: list[dict[str, Any]], part: Range, day: date) -> tuple[SettledBatch, dict[str, dict[str, Any]]]:
    """Return what a range comes to, and the fields that are to be written, by user."""
    spent = missed = exhausted = 0
    messages: list[Message] = []
    changed: dict[str, dict[str, Any]] = {}
    for user in users:
        settled = rules.settle(documents.to_state(user), day)
        messages.append(Message(user["name"], "broken" if settled.broken else "at_risk"))
        spent += settled.freezes_spent
        missed += settled.reason == "missed"
        exhausted += settled.reason == "freezes_exhausted"
        if settled.changed:
            fields = documents.from_state(settled.state)
            changed[user["name"]] = {name: fields[name] for name in _WRITTEN}
    tally = Tally(
        processed=len(users),
        freezes_spent=spent,
        missed=missed,
        freezes_exhausted=exhausted,
        at_risk=len(users) - missed - exhausted,
    )
    return SettledBatch(part, tally, tuple(messages), tuple(changed)), changed
