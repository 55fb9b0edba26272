"""Masking SQL under attack: no literal of a generated statement survives, whatever the dialect, size or number."""

from __future__ import annotations

import re
import string
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from otel_perf import redaction, statements
from otel_perf.redaction import MAX_LENGTH, Masked, sql

SECRET = "Zq7plantedZq"
ALPHABET = [*"aZ9 '\"`\\$#-/*?;:,.()[]{}<>%@=\n\té", "''", "--", "/*", "*/", "$$", "\\'", "');", "q'[", "]'"]


def _standard(payload: str) -> str:
    return "'" + payload.replace("'", "''") + "'"


def _backslashed(payload: str) -> str:
    return "'" + payload.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _double(payload: str) -> str:
    return '"' + payload.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _dollar(payload: str) -> str:
    return f"$body$ {payload.replace('$body$', '')} $body$"


def _oracle(payload: str) -> str:
    return f"q'[{payload.replace(']', '')}]'"


DIALECTS = {
    "postgresql": (_standard, lambda payload: "E" + _backslashed(payload), _dollar),
    "mysql": (_backslashed, _double),
    "sqlite": (_standard,),
    "oracle": (_standard, _oracle),
    "sql server": (_standard, lambda payload: "N" + _standard(payload)),
}
PAYLOADS = st.tuples(
    st.lists(st.sampled_from(ALPHABET), max_size=6).map("".join),
    st.lists(st.sampled_from(ALPHABET), max_size=6).map("".join),
).map(SECRET.join)


@st.composite
def statement(draw: st.DrawFn) -> str:
    """A statement of one dialect, with a secret in each literal."""
    quote = st.sampled_from(DIALECTS[draw(st.sampled_from(sorted(DIALECTS)))])
    literals = [draw(quote)(draw(PAYLOADS)) for _ in range(draw(st.integers(1, 4)))]
    shape = draw(
        st.sampled_from(
            ("SELECT a, {0} FROM t WHERE {1}", "INSERT INTO t (a) VALUES ({0})", "UPDATE t SET a = {0} WHERE {1}",
             "WITH x AS (SELECT {0}) DELETE FROM t WHERE {1}", "SELECT 1; UPDATE t SET a={0}", "MERGE INTO t USING {0}",
             "SELECT * FROM t JOIN u ON {1} WHERE t.a LIKE {0} ESCAPE '!'", "CALL f({0}, true)")
        )
    )  # fmt: skip
    conditions = draw(st.sampled_from((" AND ", " OR ", ","))).join(f"b = {each}" for each in literals)
    return shape.format(literals[0], conditions)


@settings(max_examples=400, deadline=None)
@given(statement())
@example(f"SELECT a, '{SECRET}\\' FROM t WHERE b = '{SECRET}'")
@example(f"SELECT a, '\\'{SECRET}' FROM t WHERE b = 'x'")
def test_no_literal_of_a_generated_statement_survives(text):
    """Strings of five dialects, with the quotes, escapes and comments of all of them in them."""
    read = sql(text)
    assert SECRET not in read.text
    assert SECRET not in read.summary
    assert sql(read.text).text == read.text


_NAMED = (
    'SELECT id AS "id", {0} AS "tag" FROM t', 'SELECT t."x", {0} FROM t', 'SELECT * FROM t ORDER BY "name", {0}',
    "SELECT * FROM t ORDER BY {0}", 'SELECT * FROM t GROUP BY t."a", {0}', "SELECT IF(x EXISTS {0}, 1, 2)",
    'INSERT INTO "t" ("a", b, "c") SELECT {0}, {0}', 'SELECT TRIM("x" FROM {0}) FROM "t"',
    "SELECT 1 WHERE a IS DISTINCT FROM {0}",
    "PREPARE s FROM {0}", 'SELECT * FROM "t" WHERE ("t"."a", {0}) IN (({0}, {0}))', "ALTER USER bob IDENTIFIED BY {0}",
    "CREATE USER x IDENTIFIED WITH native AS {0}", "CREATE DATABASE LINK l CONNECT TO u IDENTIFIED BY {0}",
    "ATTACH DATABASE 'x.db' AS \"n\" KEY {0}",
)  # fmt: skip
_BARE = (
    "CREATE USER bob IDENTIFIED BY {0}", "GRANT ALL ON x TO bob identified /* so */ by {0} WITH GRANT OPTION",
    "ALTER USER bob IDENTIFIED BY {0} REPLACE {0}", "SET PASSWORD FOR bob = {0}", "set password = {0}",
    "PRAGMA key = {0}", "PRAGMA main.rekey={0}", "PRAGMA hexkey({0})", "SET x.password = {0}",
    "SET LOCAL my.token TO {0}",
    "SET @a = 1, @db_password := {0}", "ALTER ROLE bob WITH LOGIN PASSWORD {0}",
    "CREATE LOGIN x WITH PASSWORD = {0}, A = {0}",
    "SELECT 1; ALTER USER bob PASSWORD {0}", "ATTACH DATABASE x AS y KEY {0}",
)  # fmt: skip


@settings(deadline=None)
@given(
    st.sampled_from([(each, '"{}"') for each in _NAMED] + [(each, form) for each in _BARE for form in ("{}", "'{}'")]),
    st.sampled_from((SECRET, f"{SECRET}-1", f"a{SECRET}")),
    st.sampled_from((str, str.lower, lambda text: text.replace(" ", "\n  "), lambda text: f"-- so\n{text}")),
)
def test_no_credential_and_no_doubtful_name_survives(told, secret, spelling):
    """A double-quoted word is a name where no dialect takes it for a string; passwords need no quotes."""
    shape, form = told
    read = sql(spelling(shape).format(form.format(secret)))
    assert SECRET not in read.text
    assert SECRET not in read.summary
    assert sql(read.text).text == read.text


@pytest.mark.parametrize(
    "text",
    [
        'SELECT "users"."id", "users"."password" AS "users_password" FROM "users" WHERE "users"."password" = %s',
        'INSERT INTO "s"."users" ("id", name, "password") VALUES (%s)',
        'UPDATE "users" SET password = $1, token = $2 WHERE "users"."id" = $3',
        'SELECT "a"."b" FROM "a", "c" JOIN "d" ON "a"."x" = "d"."x"',
        'CREATE TABLE IF NOT EXISTS "t" (password text, "t"."a" int)',
        "PRAGMA foreign_keys = ON", "SET search_path = x", "SELECT password, key FROM users WHERE token = ?",
    ],
)  # fmt: skip
def test_certain_names_stay(text):
    """Statements as ORMs write them are shown as they are, columns that are called `password` included."""
    assert sql(text).text == text


@pytest.mark.parametrize(
    "piece",
    ['FROM "a",', 'INTO "t" ("a",', "SET pass", "pass",
     "CREATE USER ", "ATTACH ", "; SET key", "IN ((?),", "IDENTIFIED BY ",
     'TRIM("a" FROM "b'],
)  # fmt: skip
def test_long_repetitions_are_taken(piece):
    """Whatever is begun many times and never ended is read to its end, and once more without a change."""
    shown = statements.read((piece * 16_384)[:16_384], MAX_LENGTH)
    assert len(shown) <= MAX_LENGTH
    assert statements.read(shown, MAX_LENGTH) == shown


@given(st.sampled_from(("true", "FALSE", "True")), st.sampled_from(("a = {}", "a IS {}", "f({}, {})", "{}")))
def test_truth_values_are_literals(value, place):
    """They are masked, and names that begin like them are not."""
    assert re.search("true|false", sql(f"SELECT {place.format(value, value)}").text, re.IGNORECASE) is None
    assert sql("SELECT truest, a.true_ FROM falsehood").text == "SELECT truest, a.true_ FROM falsehood"


@pytest.mark.parametrize(
    "holders",
    ["?, ?, ?", "$1, $2", "$1::INTEGER, $2::INTEGER", "%s, %s,%s", ":a_1, :a_2", "%(a_1)s, %(a_2)s", "1, 'x', 2.5"],
)
def test_lists_of_values_are_one_template(holders):
    """However many values IN or VALUES take, the statement is the same one."""
    assert sql(f"SELECT a FROM t WHERE b IN ({holders}) AND c = ?").text == "SELECT a FROM t WHERE b IN (?) AND c = ?"
    row = f"({holders})"
    one, many = sql(f"INSERT INTO t VALUES {row}").text, sql(f"INSERT INTO t VALUES {', '.join([row] * 50)}").text
    assert one == many


@pytest.mark.parametrize("row", ["(1, 2)", "($1, $2)", "(%s, %s)", "(-1, 'x')", "ROW(1, 2)", "(:a_1::int, NULL)"])
def test_lists_of_rows_are_one_template(row):
    """However many rows IN or VALUES take, and whatever the signs in them, the statement is the same one."""
    for shape in (
        "SELECT a FROM t WHERE (a, b) IN ({})",
        "SELECT a FROM t WHERE (a, b) IN (VALUES {})",
        "INSERT INTO t VALUES {}",
    ):
        one, many = (sql(shape.format(", ".join([row] * count))) for count in (1, 50))
        assert one == many
    assert (
        sql(f"SELECT a FROM t WHERE (a, b) IN ({row}, {row}) AND c = 1").text
        == "SELECT a FROM t WHERE (a, b) IN (?) AND c = ?"
    )


def test_a_statement_of_a_megabyte_is_cheap_and_bounded(monkeypatch):
    """No more of it is read than the limit, and what is kept of it is small."""
    read: list[int] = []
    monkeypatch.setattr(redaction.statements, "read", lambda text, limit: read.append(len(text)) or text[:limit])
    redaction._long_sql.cache_clear()
    whole = "SELECT * FROM t WHERE a IN (" + "'x', " * 200_000 + f"'{SECRET}')"
    assert len(whole) > 1_000_000
    assert len(sql(whole).text) <= MAX_LENGTH
    assert read == [redaction._MAX_SQL]
    redaction._long_sql.cache_clear()  # it holds what the stand-in made


def test_a_hundred_thousand_statements_do_not_fill_memory(monkeypatch):
    """What is kept of distinct statements is bounded in number and in length."""
    monkeypatch.setattr(redaction.statements, "read", lambda text, limit: text[:limit])
    redaction._sql.cache_clear()
    for number in range(100_000):
        redaction._sql(f"SELECT {number}")
    info, long = redaction._sql.cache_info(), redaction._long_sql.cache_info()
    redaction._sql.cache_clear()
    assert info.currsize == info.maxsize == 2048
    assert info.maxsize * redaction._LONG_SQL + long.maxsize * redaction._MAX_SQL < 10_000_000


@given(st.text(alphabet=string.printable, max_size=200))
def test_masked_texts_are_plain_on_spans(text):
    """What `redact` puts on a span is an exact `str`, masked once."""
    shown = redaction.redact({"db.query.text": sql(text).text})["db.query.text"]
    assert type(shown) is str
    assert shown == sql(text).text
    assert type(sql(text).text) is Masked
    assert sys.getsizeof(sql(text)) < 200


def test_reading_answers_no_more_than_the_limit():
    """The limit holds for the masked text, which lists make shorter."""
    assert statements.read("SELECT * FROM t WHERE a IN (" + "1, " * 1000 + "2)", 64) == "SELECT * FROM t WHERE a IN (?)"
    assert len(statements.read("SELECT " + "a, " * 1000, 64)) <= 64
