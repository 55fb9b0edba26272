"""Firestore as the service's database: its address, its credentials, and what the documents look like."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta, timezone
from typing import Any
from unittest import mock

import pytest
from google.cloud import firestore
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.streak import rules
from examples.streak.records import Activity, Entry, Range
from examples.streak.settings import BadSettingError
from examples.streak.stores import Database, open_database
from examples.streak.stores import firestore_documents as documents
from otel_perf import instrument

NOON = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = date(2026, 3, 4)


@pytest.fixture
async def opened(firestore_emulator) -> AsyncIterator[Database]:
    """An empty database."""
    with mock.patch.dict(os.environ, FIRESTORE_EMULATOR_HOST=firestore_emulator.address):
        database = open_database(f"firestore://tests-{uuid.uuid4().hex[:12]}")
    yield database
    await database.close()


def client_of(database: Database) -> firestore.AsyncClient:
    client: firestore.AsyncClient = database.measured[0]
    return client


async def documents_in(database: Database, collection: str) -> dict[str, dict[str, Any]]:
    """The documents of a collection, by their ids."""
    return {each.id: each.to_dict() or {} for each in await client_of(database).collection(collection).get()}


# What it is opened with ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "project", "database"),
    [
        ("firestore://my-project/streaks", "my-project", "streaks"),
        ("firestore://my-project/(default)", "my-project", "(default)"),
        ("firestore://my-project/%28default%29", "my-project", "(default)"),
        ("firestore://my-project/", "my-project", "(default)"),
        ("firestore://example.com:my-project", "example.com:my-project", "(default)"),
    ],
)
def test_addresses(monkeypatch: pytest.MonkeyPatch, url: str, project: str, database: str) -> None:
    """The address names a project and perhaps a database; nothing is connected for that."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:1")
    opened = open_database(url)
    assert (client_of(opened).project, client_of(opened)._database) == (project, database)


@pytest.mark.parametrize(
    "url", ["firestore://", "firestore:///db", "firestore://p/secret@x/y", "firestore://P r/d", "firestore:p"]
)
def test_bad_addresses(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Anything else is refused with what would do; the address is not repeated."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:1")
    with pytest.raises(BadSettingError, match="use firestore://project/database") as caught:
        open_database(url)
    assert "secret" not in str(caught.value)


def test_missing_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Without credentials it does not open, and says where they may come from."""
    for name in ("FIRESTORE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # asks the network otherwise
    with pytest.raises(BadSettingError, match="gcloud auth application-default login"):
        open_database("firestore://my-project")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(BadSettingError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        open_database("firestore://my-project")


def test_the_library_is_not_imported_for_others() -> None:
    """A service on SQL loads nothing of Google's."""
    program = (
        "import sys\n"
        "from examples.streak.stores import open_database\n"
        "open_database('sqlite+aiosqlite:///unused.db')\n"
        "print([name for name in sys.modules if name.startswith(('google.cloud.firestore', 'google.api_core'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.anyio
async def test_closing_what_was_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no connection before the first use, and is prepared and closed without one; also twice."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:1")
    opened = open_database("firestore://my-project")
    await opened.prepare()
    await opened.close()
    await opened.close()


@pytest.mark.anyio
async def test_it_is_measured(telemetry, opened: Database) -> None:
    """`instrument` takes what is measured: a write is one transaction with its calls."""
    with instrument(*opened.measured):
        await opened.store.log_activity("ada", Activity("learn", 20), NOON)
    names = [span.name for span in telemetry.spans]
    assert {"transaction", "commit"} <= {name.split()[0] for name in names}
    assert not any("ada" in str(span.attributes) for span in telemetry.spans)


# What it writes -----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_documents_of_an_activity(opened: Database) -> None:
    """A user, an activity, a day and a key; days are text, moments are timestamps, in UTC."""
    at = datetime(2026, 3, 5, 3, 30, 0, 123456, timezone(timedelta(hours=2)))
    receipt = await opened.store.log_activity("ada", Activity("learn", 20, "note", "key/1"), at)
    users = await documents_in(opened, "users")
    assert set(users) == {"ada"}
    ada = users["ada"]
    assert (ada["name"], ada["joined_on"], ada["last_active"], ada["week"]) == (
        "ada",
        "2026-03-04",
        "2026-03-04",
        "2026-03-02",
    )
    assert (ada["going"], ada["done"], ada["lost_on"]) == (True, ["learn"], None)
    assert ada["totals"] == {"learn": {"activities": 1, "minutes": 20, "xp": 30}}
    (entry,) = (await documents_in(opened, "activities")).items()
    assert entry[0] == f"ada:{receipt.entry.id}"
    assert entry[1]["at"] == at
    assert (entry[1]["user"], entry[1]["day"]) == ("ada", "2026-03-04")
    assert await documents_in(opened, "users/ada/days") == {
        "2026-03-04": {"day": "2026-03-04", "activities": 1, "xp": 30}
    }
    (key,) = (await documents_in(opened, "users/ada/keys")).items()
    assert (len(key[0]), key[1]) == (64, {"activity": receipt.entry.id})
    again = await opened.store.activity("ada", receipt.entry.id)
    assert again == receipt.entry
    assert again is not None
    assert type(again.at) is datetime
    assert again.at.tzinfo is timezone.utc


@pytest.mark.anyio
@pytest.mark.parametrize("name", [".", "..", "__x__", "a/b", "a%2Fb", "é", "🎻", "a:b", "x" * 32])
async def test_names_that_documents_may_not_have(opened: Database, name: str) -> None:
    """Any name is a user's, and nobody else's."""
    receipt = await opened.store.log_activity(name, Activity("learn", 20, client_key="/"), NOON)
    assert await opened.store.activity(name, receipt.entry.id) == receipt.entry
    assert await opened.store.activities(name, limit=5) == [receipt.entry]
    assert await opened.store.activity("ada", receipt.entry.id) is None
    assert await opened.runs.due(TODAY + timedelta(days=1), after="", until=None, limit=5) == [name]
    run = await opened.runs.begin(TODAY, "cli", NOON)
    batch = await opened.runs.settle(run.id, Range("", name), TODAY + timedelta(days=2))
    assert batch.changed == (name,)
    assert (await opened.store.state(name)).streak == 0


@pytest.mark.anyio
@pytest.mark.parametrize("activity_id", ["", "/", "..", "users/ada", "x" * 2_000, "A" * 32, "\x00" * 32])
async def test_ids_that_are_none(opened: Database, activity_id: str) -> None:
    """What no activity can be called is not asked for."""
    assert await opened.store.activity("ada", activity_id) is None


@given(st.lists(st.text("ab_./:%é🎻", min_size=1, max_size=8), min_size=2, max_size=2, unique=True))
@settings(max_examples=100)
def test_each_text_has_its_own_key(texts: list[str]) -> None:
    """Keys are what Firestore takes, and no two texts share one."""
    keys = [documents.key(text) for text in texts]
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert "/" not in key
        assert key not in (".", "..")
        assert not (key.startswith("__") and key.endswith("__"))


days = st.one_of(st.none(), st.dates(max_value=date(9999, 12, 1)))
states = st.builds(
    rules.State,
    streak=st.integers(0, 10_000),
    last_active=days,
    held_until=days,
    week=days,
    done=st.frozensets(st.sampled_from(rules.CATEGORIES)),
    bonus=st.booleans(),
    xp=st.integers(0, 2**53),
    lost_streak=st.integers(0, 10_000),
    lost_on=days,
    missed_on=days,
    rested_on=days,
)


@given(states)
@settings(max_examples=100)
def test_states_as_documents(state: rules.State) -> None:
    """A state comes back as it was; days sort as text."""
    fields = documents.from_state(state)
    assert documents.to_state(fields) == state
    assert fields["going"] is (state.streak > 0)


@given(st.dates(), st.dates())
@settings(max_examples=50)
def test_days_sort_as_text(one: date, other: date) -> None:
    """The earlier day is the lesser text, from the first year to the last."""
    assert (one < other) == (one.isoformat() < other.isoformat())


def test_entries_as_documents() -> None:
    """An activity comes back as it was, its moment in UTC."""
    entry = Entry("0" * 32, NOON, TODAY, "learn", 20, None, 30, 0)
    assert documents.to_entry(documents.from_entry(entry, "ada")) == entry


@pytest.mark.anyio
async def test_the_board_passes_over_streaks_that_are_over(opened: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long streaks that are over are read and left out, and more are read in their place, as far as that goes."""
    for name, days, until in (
        ("a", 4, 9),
        ("b", 4, 9),
        ("c", 3, 9),
        ("d", 3, 9),
        ("e", 3, 9),
        ("f", 2, 0),
        ("g", 1, 0),
    ):
        for before in range(days - 1, -1, -1):
            at = NOON - timedelta(days=before + until)
            await opened.store.log_activity(name, Activity("learn", 10), at)
    monkeypatch.setattr("examples.streak.stores.firestore._MORE", (1, 5))
    for limit, names in ((1, ["f"]), (2, ["f", "g"]), (9, ["f", "g"])):
        assert [line.name for line in await opened.store.leaderboard(limit, TODAY)] == names
    monkeypatch.setattr("examples.streak.stores.firestore._MORE", (1, 4))
    assert await opened.store.leaderboard(1, TODAY) == []


@pytest.mark.anyio
async def test_a_document_of_an_earlier_version(opened: Database) -> None:
    """What the state has got since is not in it: it reads as a user of whom nothing was missed yet."""
    await opened.store.log_activity("ada", Activity("learn", 10), NOON)
    (key, fields), *_ = (await documents_in(opened, "users")).items()
    new = ("missed_on", "rested_on", "holds_until", "week_holds_until")
    assert set(new) <= set(fields)
    older = {name: value for name, value in fields.items() if name not in new}
    document = client_of(opened).collection("users").document(key)
    await document.delete()  # the emulator keeps fields that are not in what is set
    await document.set(older)
    assert (await opened.store.state("ada")).missed_on is None
    assert (await opened.store.kpis(TODAY)).active_streaks == 0
    await opened.store.log_activity("ada", Activity("learn", 10), NOON)
    assert (await opened.store.kpis(TODAY)).active_streaks == 1
