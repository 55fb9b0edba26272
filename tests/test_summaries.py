"""Summaries of statements: operations and targets in their order, as the semantic conventions have them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_perf.redaction import sql
from otel_perf.summaries import MAX_LENGTH, summarise


@pytest.mark.parametrize(
    ("statement", "summary"),
    [
        # The conventions' own examples; what is between single quotes may be a literal and is left out.
        ("SELECT * FROM wuser_table WHERE username = ?", "SELECT wuser_table"),
        ("INSERT INTO shipping_details (order_id, address) SELECT order_id, address FROM orders WHERE order_id = ?",
         "INSERT shipping_details SELECT orders"),
        ("SELECT * FROM songs, artists WHERE songs.artist_id == artists.id", "SELECT songs artists"),
        ("SELECT order_date FROM (SELECT * FROM orders o JOIN customers c ON o.customer_id = c.customer_id)",
         "SELECT SELECT orders customers"),
        ("SELECT * FROM \"song list\", 'artists'", 'SELECT "song list"'),
        ("call some_stored_procedure", "CALL some_stored_procedure"),
        # Joins and lists.
        ("SELECT * FROM users u LEFT JOIN orders o ON o.user_id = u.id", "SELECT users orders"),
        ("SELECT a, b FROM t1 AS x, t2 y JOIN t3 USING (id), t4", "SELECT t1 t2 t3 t4"),
        ("SELECT * FROM a JOIN b ON f(a.x, b.y) = 1 WHERE c IN (1, 2) ORDER BY d, e", "SELECT a b"),
        ("SELECT * FROM people p JOIN people q ON p.id = q.boss", "SELECT people"),
        # Names that WITH gives are no tables.
        ("WITH x AS (SELECT a FROM t) SELECT * FROM x JOIN users USING (id)", "SELECT t SELECT users"),
        ("WITH x AS (SELECT a FROM t), y (a, b) AS (DELETE FROM z RETURNING *) SELECT * FROM x, y",
         "SELECT t DELETE z SELECT"),
        ("WITH RECURSIVE r AS (SELECT 1 UNION ALL SELECT n FROM r) INSERT INTO foo SELECT * FROM r",
         "SELECT SELECT INSERT foo SELECT"),
        # Statements within and behind statements.
        ("SELECT * FROM a WHERE b IN (SELECT c FROM d) AND e = ?", "SELECT a SELECT d"),
        ("SELECT 1; DELETE FROM foo; UPDATE b SET c = 1", "SELECT DELETE foo UPDATE b"),
        ("(SELECT 1 FROM x) UNION (SELECT 2 FROM y)", "SELECT x SELECT y"),
        ("EXPLAIN ANALYZE SELECT * FROM q", "EXPLAIN SELECT q"),
        # Words that are operations elsewhere.
        ("SELECT id FROM a FOR UPDATE", "SELECT a"),
        ("INSERT INTO t (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET x = 2", "INSERT t"),
        ("INSERT OR REPLACE INTO t VALUES (1)", "INSERT t"),
        ("SELECT replace(a, 'x', 'y') FROM t", "SELECT t"),
        ("MERGE INTO t USING s ON t.id = s.id WHEN MATCHED THEN UPDATE SET a = 1", "MERGE t s"),
        # FROM that names no table.
        ("SELECT EXTRACT(YEAR FROM created) FROM ev WHERE a IS DISTINCT FROM b", "SELECT ev"),
        ("COPY t FROM STDIN", "COPY t"),
        # Placeholders are no words.
        ("SELECT %(select)s, :from, @table FROM t", "SELECT t"),
        # Changes and definitions.
        ("UPDATE ONLY a SET x = 1 FROM b WHERE a.id = b.id", "UPDATE a b"),
        ("delete from public.users", "DELETE public.users"),
        ('SELECT 1 FROM "public"."users"', "SELECT public.users"),
        ("TRUNCATE TABLE x", "TRUNCATE x"),
        ("CREATE TABLE IF NOT EXISTS foo (id int)", "CREATE foo"),
        ("CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)", "CREATE i"),
        ("DROP VIEW v", "DROP v"),
        ("COMMIT", "COMMIT"),
        ("", "SQL"),
        ("?", "SQL"),
    ],
)  # fmt: skip
def test_operations_and_targets(statement, summary):
    """In the order in which they stand, each target once for its operation."""
    assert sql(statement).summary == summary


@pytest.mark.parametrize(
    ("statement", "operation", "collection"),
    [
        ("WITH x AS (SELECT a FROM t) DELETE FROM z", "DELETE", "t"),
        ("select * from Users", "SELECT", "Users"),
        ("WITH x AS (SELECT 1) SELECT 2", "SELECT", None),
        ("VACUUM", "VACUUM", None),
    ],
)
def test_the_operation_is_that_of_the_statement_itself(statement, operation, collection):
    """Of one that begins with WITH it is the one behind; the collection is the first table."""
    read = sql(statement)
    assert (read.operation, read.collection) == (operation, collection)
    assert operation in read.summary.split()


def test_it_is_short_and_cut_between_words():
    """At most 255 characters, of names that are whole but for those that are longer than a name should be."""
    names = [f"table_{number}" for number in range(200)]
    summary = sql(f"SELECT * FROM {', '.join(names)}").summary
    assert len(summary) <= MAX_LENGTH
    assert summary.split()[1:] == names[: len(summary.split()) - 1]
    assert len(sql(f"SELECT * FROM {'t' * 1000}").summary) == len("SELECT ") + 128


@settings(max_examples=200)
@given(
    st.text(max_size=200)
    | st.lists(
        st.sampled_from(
            ["SELECT", "FROM", "WITH", "x", "AS", "(", ")", ",", ";", "?", '"a b"', "JOIN", "UPDATE", "a.b"]
        )
    ).map(" ".join)
)
def test_any_text_has_a_summary(text):
    """Also what is no SQL at all."""
    found = summarise(text)
    assert len(found.text) <= MAX_LENGTH
    assert found.operation is None or 0 < len(found.operation) <= 64


@pytest.mark.parametrize(
    ("statement", "summary"),
    [
        ("SELECT * FROM generate_series(?, ?)", "SELECT"),
        ("SELECT * FROM users u, unnest ($1) x JOIN LATERAL pg_catalog.f(u.id) ON ?", "SELECT users"),
        ('SELECT * FROM "f"(?) JOIN users ON ?', "SELECT users"),
        ("INSERT INTO t (a) SELECT b FROM unnest(?)", "INSERT t SELECT"),
        ("CALL work(?)", "CALL work"),
        ("CREATE TABLE t (a int)", "CREATE t"),
        ("DELETE FROM t WHERE a IN (?)", "DELETE t"),
    ],
)
def test_a_function_is_no_collection(statement, summary):
    """What stands in FROM with a bracket behind it is called; tables with a list of columns are targets."""
    found = summarise(statement)
    assert found.text == summary
    assert found.collection == (summary.split()[1:2] or [None])[0] or found.collection == "t"
