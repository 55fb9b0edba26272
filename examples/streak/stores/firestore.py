"""What is remembered, in Firestore. The documents are described in `firestore_documents`.

Each write is one transaction that reads the user's document: of two at a time Firestore lets one commit, and the other
is begun anew. Queries need the composite indexes of `firestore.indexes.json`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from datetime import date, datetime
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from google.auth.exceptions import DefaultCredentialsError
from google.cloud.firestore import AsyncClient, AsyncDocumentReference, AsyncTransaction, FieldFilter, Query

from examples.streak import rules
from examples.streak.records import Activity, Day, Entry, Kpis, Profile, Receipt, Standing, Total
from examples.streak.settings import BadSettingError
from examples.streak.stores import Database
from examples.streak.stores import firestore_documents as documents
from examples.streak.stores.firestore_calls import Calls, aggregation
from examples.streak.stores.firestore_logging import Logging
from examples.streak.stores.firestore_runs import FirestoreRuns

__all__ = ["FirestoreStore", "open_firestore"]

R = TypeVar("R", rules.Applied, rules.Recovered)

_ADDRESS: Final = re.compile(
    r"firestore://(?P<project>[a-z][a-z0-9.:-]*)(?:/(?P<database>\(default\)|[a-z][a-z0-9-]*)?)?"
)
_ID: Final = re.compile(r"[0-9a-f]{32}")
# Counting everybody takes its time.
_COUNT_S: Final = 20.0
# How many more streaks are read than the leaderboard has lines: at first, and when too many of those were over.
_MORE: Final = (50, 1_000)
_NO_CREDENTIALS: Final = (
    "DATABASE_URL is a Firestore database, and there are no credentials for it: name a service account's file in "
    "GOOGLE_APPLICATION_CREDENTIALS, run `gcloud auth application-default login`, or, for an emulator, "
    "set FIRESTORE_EMULATOR_HOST"
)


def open_firestore(url: str) -> Database:
    """Open the database of an address such as `firestore://project/database`; without a database, "(default)".

    It connects on first use, to the emulator of FIRESTORE_EMULATOR_HOST when that is set.
    """
    found = _ADDRESS.fullmatch(unquote(url))
    if found is None:
        raise BadSettingError("DATABASE_URL names no Firestore database: use firestore://project/database")
    try:
        client = AsyncClient(project=found["project"], database=found["database"])
    except DefaultCredentialsError:
        raise BadSettingError(_NO_CREDENTIALS) from None
    calls = Calls(client)
    return Database(FirestoreStore(calls), FirestoreRuns(calls), (client,), _prepare, calls.close)


async def _prepare() -> None:
    """Firestore has no tables. Its indexes are deployed beforehand, for building them takes minutes."""


class FirestoreStore:
    """What users ask for and do, in Firestore."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._users = calls.client.collection("users")
        self._activities = calls.client.collection("activities")

    async def ping(self) -> None:
        """Raise `StoreUnavailableError` when Firestore does not answer within a second."""
        await self._calls.ping()

    async def profile(self, user: str) -> Profile | None:
        """Return a user's profile; None before their first activity."""
        document = await self._find(self._user(user))
        return documents.to_profile(document) if document else None

    async def state(self, user: str) -> rules.State:
        """Return what the rules know of a user, as it is written; of someone new, that is nothing."""
        document = await self._find(self._user(user))
        return documents.to_state(document) if document else rules.State()

    async def activity(self, user: str, activity_id: str) -> Entry | None:
        """Return one of the user's own activities."""
        if not _ID.fullmatch(activity_id):
            return None
        document = await self._find(self._activity(user, activity_id))
        return documents.to_entry(document) if document else None

    async def activities(
        self, user: str, *, limit: int, before: str | None = None, category: rules.Category | None = None
    ) -> list[Entry]:
        """Return the user's activities, newest first: those with an id below `before`, of one category or of all."""
        query = self._activities.where(filter=FieldFilter("user", "==", user))
        if category is not None:
            query = query.where(filter=FieldFilter("category", "==", category))
        if before is not None:
            query = query.where(filter=FieldFilter("id", "<", before))
        found = await self._calls.ask(query.order_by("id", direction=Query.DESCENDING).limit(limit))
        return [documents.to_entry(each) for each in found]

    async def calendar(self, user: str, since: date, until: date) -> list[Day]:
        """Return the days, oldest first, on which the user did something."""
        query = (
            self._user(user)
            .collection("days")
            .where(filter=FieldFilter("day", ">=", since.isoformat()))
            .where(filter=FieldFilter("day", "<=", until.isoformat()))
            .order_by("day")
        )
        return [documents.to_day(each) for each in await self._calls.ask(query)]

    async def totals(self, user: str) -> list[Total]:
        """Return what the user has done of each category, in the order of their names; nothing of it is left out."""
        document = await self._find(self._user(user))
        return documents.to_totals(document) if document else []

    async def leaderboard(self, limit: int, today: date) -> list[Standing]:
        """Return the longest streaks that hold today: by streak, then XP, then name.

        Firestore cannot sort by the streak and leave out those that are over. So more are read than are shown, and if
        need be a good many more; where even those are over, before a maintenance that is late, the board is shorter.
        """
        query = (
            self._users.where(filter=FieldFilter("streak", ">", 0))
            .order_by("streak", direction=Query.DESCENDING)
            .order_by("xp", direction=Query.DESCENDING)
            .order_by("name")
        )
        board: list[Standing] = []
        for more in _MORE:
            found = await self._calls.ask(query.limit(limit + more))
            holding = (each for each in found if rules.holds_on(documents.to_state(each), today))
            board = [Standing(each["name"], each["streak"], each["xp"]) for each in holding][:limit]
            if len(board) == limit or len(found) < limit + more:
                break
        return board

    async def most_active(self, limit: int) -> list[str]:
        """Return the users who did something last: by the last day, then XP, then name."""
        query = (
            # Any day: this leaves out those without one.
            self._users.where(filter=FieldFilter("last_active", ">", ""))
            .order_by("last_active", direction=Query.DESCENDING)
            .order_by("xp", direction=Query.DESCENDING)
            .order_by("name")
            .limit(limit)
        )
        return [each["name"] for each in await self._calls.ask(query)]

    async def report(self, since: date) -> list[Total]:
        """Return what everybody did since a day, by category."""
        since_then = self._activities.where(filter=FieldFilter("day", ">=", since.isoformat()))

        async def count(transaction: AsyncTransaction) -> list[Total]:
            totals: list[Total] = []
            for category in sorted(rules.CATEGORIES):
                query = since_then.where(filter=FieldFilter("category", "==", category))
                sums = aggregation(query, "activities", minutes="minutes", xp="xp")
                found = await self._calls.aggregate(sums, transaction)
                if found["activities"]:
                    totals.append(Total(category, found["activities"], found["minutes"], found["xp"]))
            return totals

        return await self._calls.read_at_once(count, _COUNT_S)

    async def kpis(self, today: date) -> Kpis:
        """Count what the KPIs are made of, all of it at one moment."""
        users = self._users
        with_bonus = users.where(filter=FieldFilter("bonus", "==", True)).where(
            filter=FieldFilter("week", "==", rules.week_of(today).isoformat())
        )
        of_all = aggregation(users, "users", earned="freezes_earned", used="freezes_used")
        day = today.isoformat()
        going = aggregation(users.where(filter=FieldFilter("holds_until", ">=", day)), "streaks", days="streak")
        reached = aggregation(users.where(filter=FieldFilter("longest", ">=", rules.DAYS_PER_FREEZE)), "reached")
        kept = aggregation(users.where(filter=FieldFilter("week_holds_until", ">=", day)), "kept")

        async def count(transaction: AsyncTransaction) -> dict[str, int]:
            found: dict[str, int] = {}
            for query in (of_all, going, aggregation(with_bonus, "bonuses"), reached, kept):
                found |= await self._calls.aggregate(query, transaction)
            return found

        found = await self._calls.read_at_once(count, _COUNT_S)
        return Kpis(
            users=found["users"],
            active_streaks=found["streaks"],
            weekly_bonuses=found["bonuses"],
            freezes_earned=found["earned"],
            freezes_used=found["used"],
            reached_7_days=found["reached"],
            kept_7_days=found["kept"],
            streak_days=found["days"],
        )

    async def log_activity(self, user: str, activity: Activity, at: datetime) -> Receipt:
        """Write an activity and what it does to the streak, unless the user has one of this client key already."""
        return await self._calls.write("log_activity", Logging(self._calls, user, activity, at).attempt)

    async def apply_freeze(self, user: str, today: date) -> rules.Applied:
        """Let a freeze hold today, as `rules.apply_freeze` has it. Whoever is unknown has no streak."""
        return await self._change(
            "apply_freeze",
            user,
            lambda state: rules.apply_freeze(state, today),
            lambda applied: applied.applied or applied.settled.changed,
        )

    async def recover(self, user: str, today: date) -> rules.Recovered:
        """Buy back the streak that ended last, as `rules.recover` has it."""
        return await self._change(
            "recover",
            user,
            lambda state: rules.recover(state, today),
            lambda recovered: bool(recovered.recovered or recovered.settled.changed),
        )

    async def _change(
        self, operation: str, user: str, decide: Callable[[rules.State], R], is_change: Callable[[R], bool]
    ) -> R:
        reference = self._user(user)
        # Tells whether a commit was made whose answer got lost.
        mark = secrets.token_hex(8)
        sent: R | None = None

        async def change(transaction: AsyncTransaction) -> R:
            nonlocal sent
            document = await self._calls.get(reference, transaction)
            if document is None:
                return decide(rules.State())
            if sent is not None and document.get("mark") == mark:
                return sent
            decided = decide(documents.to_state(document))
            if is_change(decided):
                transaction.update(reference, {**documents.from_state(decided.state), "mark": mark})
                sent = decided
            return decided

        return await self._calls.write(operation, change)

    def _user(self, user: str) -> AsyncDocumentReference:
        return self._users.document(documents.key(user))

    def _activity(self, user: str, activity_id: str) -> AsyncDocumentReference:
        return self._activities.document(documents.activity_key(user, activity_id))

    async def _find(self, reference: AsyncDocumentReference) -> dict[str, Any] | None:
        return await self._calls.read(self._calls.get(reference))
