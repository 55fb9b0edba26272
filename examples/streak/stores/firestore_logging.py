"""How an activity is logged in Firestore: the user, the day, the activity and its client key, in one transaction."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from google.cloud.firestore import AsyncDocumentReference, AsyncTransaction

from examples.streak import rules
from examples.streak.records import Activity, Entry, Receipt, new_id
from examples.streak.stores import firestore_documents as documents
from examples.streak.stores.firestore_calls import Calls
from otel_perf import measure

__all__ = ["Logging"]


class Logging:
    """One activity that is being logged, through as many attempts as it takes."""

    def __init__(self, calls: Calls, user: str, activity: Activity, at: datetime) -> None:
        self._calls = calls
        self._user = user
        self._activity = activity
        self._at = at.astimezone(timezone.utc)
        self._today = rules.day_of(at)
        # The same for all attempts: so the next one sees whether a commit was made whose answer got lost.
        self._id = new_id(at)
        self._sent: Receipt | None = None
        client = calls.client
        self._of_user = client.collection("users").document(documents.key(user))
        self._of_day = self._of_user.collection("days").document(self._today.isoformat())
        self._of_entry = self._of_activity(self._id)
        self._of_key: AsyncDocumentReference | None = None
        if activity.client_key is not None:
            self._of_key = self._of_user.collection("keys").document(documents.hashed(activity.client_key))

    async def attempt(self, transaction: AsyncTransaction) -> Receipt:
        """Do it within a transaction: all reads come before the writes."""
        wanted = [self._of_user, self._of_day]
        if self._of_key is not None:
            wanted.append(self._of_key)
        if self._sent is not None:
            wanted.append(self._of_entry)
        user, day, *others = await self._calls.get_all(wanted, transaction)
        if self._sent is not None and others[-1] is not None:
            return self._sent
        state = documents.to_state(user) if user else rules.State()
        if self._of_key is not None and others[0] is not None:
            repeated = await self._calls.get(self._of_activity(others[0]["activity"]), transaction)
            return Receipt(documents.to_entry(repeated or {}), state, logged=None)
        logged = _update_weekly_consistency(state, self._activity, self._today)
        entry = self._entry(logged)
        self._write(transaction, user, day, entry, logged)
        self._sent = Receipt(entry, logged.state, logged)
        return self._sent

    def _of_activity(self, activity_id: str) -> AsyncDocumentReference:
        return self._calls.client.collection("activities").document(documents.activity_key(self._user, activity_id))

    def _entry(self, logged: rules.Logged) -> Entry:
        activity = self._activity
        return Entry(
            id=self._id,
            at=self._at,
            day=self._today,
            category=activity.category,
            minutes=activity.minutes,
            note=activity.note,
            xp=logged.xp,
            bonus_xp=logged.bonus_xp,
        )

    def _write(
        self,
        transaction: AsyncTransaction,
        user: dict[str, Any] | None,
        day: dict[str, Any] | None,
        entry: Entry,
        logged: rules.Logged,
    ) -> None:
        """Write four documents. `create` fails where somebody was faster, and the transaction is begun anew."""
        before = user or {"name": self._user, "joined_on": self._today.isoformat(), "totals": {}}
        total = before["totals"].get(entry.category, {"activities": 0, "minutes": 0, "xp": 0})
        more = {
            "activities": total["activities"] + 1,
            "minutes": total["minutes"] + entry.minutes,
            "xp": total["xp"] + entry.xp,
        }
        totals = {**before["totals"], entry.category: more}
        after = {**before, **documents.from_state(logged.state), "totals": totals}
        if user is None:
            transaction.create(self._of_user, after)
        else:
            transaction.set(self._of_user, after)
        counted = day or {"activities": 0, "xp": 0}
        of_day = {
            "day": self._today.isoformat(),
            "activities": counted["activities"] + 1,
            "xp": counted["xp"] + entry.xp,
        }
        transaction.set(self._of_day, of_day)
        transaction.create(self._of_entry, documents.from_entry(entry, self._user))
        if self._of_key is not None:
            transaction.create(self._of_key, {"activity": entry.id})


@measure("update_weekly_consistency", category="streak")
def _update_weekly_consistency(state: rules.State, activity: Activity, today: Any) -> rules.Logged:
    # In Firestore writes are sent with the commit: what is measured here are the rules.
    return rules.log_activity(state, activity.category, activity.minutes, today)
