"""What the documents are made of, and how they become records again. Nothing of Google's library is needed for that.

    users/{user}                      the state, who they are, and what they did of each category
    users/{user}/days/{day}           one day of the calendar: a year is 365 small documents at most
    users/{user}/keys/{hash}          which activity a client key belongs to
    activities/{user}:{id}            one activity; the user comes first, so that writes spread over the key space
    runs/{id}                         one run of the maintenance
    runs/{id}/batches/{after}:{until} one range of it: what it came to, and the messages that are not sent yet
    maintenance/lease                 who may run it

Days are text (2026-03-04), which sorts; moments are timestamps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timezone
from typing import Any, Final
from urllib.parse import quote

from examples.streak import rules
from examples.streak.records import Day, Entry, Message, Profile, Range, Run, SettledBatch, Tally, Total

__all__ = [
    "COUNTS",
    "activity_key",
    "batch_key",
    "from_batch",
    "from_entry",
    "from_messages",
    "from_run",
    "from_state",
    "from_tally",
    "hashed",
    "key",
    "to_batch",
    "to_day",
    "to_entry",
    "to_messages",
    "to_moment",
    "to_profile",
    "to_range",
    "to_run",
    "to_state",
    "to_tally",
    "to_totals",
]

Document = Mapping[str, Any]

#: What a batch counts, in the order of `Tally`.
COUNTS: Final = tuple(Tally.__dataclass_fields__)
_RUN: Final = tuple(name for name in Run.__dataclass_fields__ if name not in {"tally", "unsent"})
_DAYS: Final = ("last_active", "held_until", "week", "lost_on", "missed_on", "rested_on")
_PLAIN: Final = tuple(name for name in rules.State.__dataclass_fields__ if name not in (*_DAYS, "done"))


def key(text: str) -> str:
    """Return a text as the id of a document: without slashes, never `.`, `..` or `__...__`, each text its own."""
    quoted = quote(text, safe="").replace(".", "%2E")
    return f"%5F{quoted[1:]}" if quoted.startswith("__") else quoted


def activity_key(user: str, activity_id: str) -> str:
    """Return the id of a user's activity: whoever asks with another name finds nothing."""
    return f"{key(user)}:{activity_id}"


def batch_key(part: Range) -> str:
    """Return the id of a batch."""
    return f"{key(part.after)}:{key(part.until)}"


def hashed(client_key: str) -> str:
    """Return the id of a client key, whatever it is made of."""
    return hashlib.sha256(client_key.encode()).hexdigest()


def to_moment(value: datetime) -> datetime:
    """Return a timestamp of Firestore, which has a type of its own, as a plain moment."""
    return datetime.combine(value.date(), value.timetz()).astimezone(timezone.utc)


def from_state(state: rules.State) -> dict[str, Any]:
    """Return a state as fields of the user's document, with some that are for queries only.

    `going` is what maintenance asks for. The KPIs ask for `holds_until`, the last day on which the streak holds when
    nothing more is done, and for `week_holds_until`, the same of streaks that have seven days. A document of an earlier
    version has neither, and is not counted until it is written again.
    """
    fields: dict[str, Any] = {name: getattr(state, name) for name in _PLAIN}
    for name in _DAYS:
        day: date | None = getattr(state, name)
        fields[name] = None if day is None else day.isoformat()
    last = rules.holds_until(state)
    holds_until = None if last is None else last.isoformat()
    return {
        **fields,
        "done": sorted(state.done),
        "going": state.streak > 0,
        "holds_until": holds_until,
        "week_holds_until": holds_until if state.streak >= rules.DAYS_PER_FREEZE else None,
    }


def to_state(document: Document) -> rules.State:
    """Return what the rules know of a user."""
    fields: dict[str, Any] = {name: document[name] for name in _PLAIN}
    for name in _DAYS:
        # A document of an earlier version has not all of them.
        fields[name] = _to_date(document.get(name))
    return rules.State(**fields, done=frozenset(document["done"]))


def to_profile(document: Document) -> Profile:
    """Return who a user is, at a glance."""
    return Profile(
        name=document["name"],
        joined_on=date.fromisoformat(document["joined_on"]),
        streak=document["streak"],
        longest=document["longest"],
        freezes=document["freezes"],
        xp=document["xp"],
        held_until=_to_date(document["held_until"]),
    )


def to_totals(document: Document) -> list[Total]:
    """Return what a user did of each category."""
    return [
        Total(category, total["activities"], total["minutes"], total["xp"])
        for category, total in sorted(document["totals"].items())
    ]


def to_day(document: Document) -> Day:
    """Return one day of the calendar."""
    return Day(date.fromisoformat(document["day"]), document["activities"], document["xp"])


def from_entry(entry: Entry, user: str) -> dict[str, Any]:
    """Return an activity as a document."""
    fields: dict[str, Any] = {name: getattr(entry, name) for name in Entry.__dataclass_fields__}
    return {**fields, "day": entry.day.isoformat(), "user": user}


def to_entry(document: Document) -> Entry:
    """Return an activity."""
    fields = {name: document[name] for name in Entry.__dataclass_fields__}
    return Entry(**{**fields, "at": to_moment(document["at"]), "day": date.fromisoformat(document["day"])})


def from_run(run: Run) -> dict[str, Any]:
    """Return a run as a document. Its tally is written when it ends; until then it is the sum of its batches."""
    fields: dict[str, Any] = {name: getattr(run, name) for name in _RUN}
    return {**fields, "day": run.day.isoformat(), "tally": None, "unsent": 0}


def to_run(document: Document, tally: Tally, unsent: int) -> Run:
    """Return a run with what it came to."""
    fields = {name: document[name] for name in _RUN}
    ended_at = document["ended_at"]
    moments = {
        "started_at": to_moment(document["started_at"]),
        "ended_at": None if ended_at is None else to_moment(ended_at),
    }
    return Run(**{**fields, **moments, "day": date.fromisoformat(document["day"])}, tally=tally, unsent=unsent)


def from_tally(tally: Tally) -> dict[str, int]:
    """Return a tally as fields."""
    return {name: getattr(tally, name) for name in COUNTS}


def to_tally(document: Document) -> Tally:
    """Return what was counted."""
    return Tally(**{name: document[name] for name in COUNTS})


def from_batch(batch: SettledBatch) -> dict[str, Any]:
    """Return a batch as a document.

    Names stand in lists by the kind of their message, which keeps a batch of 10,000 users below the 1 MiB that a
    document may have.
    """
    return {
        "after": batch.range.after,
        "until": batch.range.until,
        **from_tally(batch.tally),
        **from_messages(batch.messages),
        "changed": list(batch.changed),
    }


def from_messages(messages: Iterable[Message]) -> dict[str, Any]:
    """Return the messages of a batch that are to be sent, with how many there are."""
    users: dict[str, list[str]] = {}
    for message in messages:
        users.setdefault(message.kind, []).append(message.user)
    return {"messages": users, "unsent": bool(users), "left": sum(map(len, users.values()))}


def to_batch(document: Document) -> SettledBatch:
    """Return a batch as it was settled."""
    changed = tuple(document["changed"])
    return SettledBatch(to_range(document), to_tally(document), to_messages(document), changed)


def to_messages(document: Document) -> tuple[Message, ...]:
    """Return the messages of a batch that are not sent yet, by name."""
    pairs = [(user, kind) for kind, users in document["messages"].items() for user in users]
    return tuple(Message(user, kind) for user, kind in sorted(pairs))


def to_range(document: Document) -> Range:
    """Return the range of a batch."""
    return Range(document["after"], document["until"])


def _to_date(value: str | None) -> date | None:
    return None if value is None else date.fromisoformat(value)
