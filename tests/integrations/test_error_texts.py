"""What real servers and drivers say of a failure, without the values that they repeat."""

from __future__ import annotations

import asyncio
import json
import sqlite3

import asyncpg
import psycopg
import pytest
import redis
import redis.asyncio
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from otel_perf import conventions as c
from otel_perf import redaction
from otel_perf.telemetry.operation import QUERY, start

SECRET = "zq7planted"
ADDRESS = f"{SECRET}@example.com"
NUMBER = "4929123456781234"

TABLE = (
    "CREATE TABLE IF NOT EXISTS error_texts (email text UNIQUE CHECK (length(email) > 3), age int NOT NULL, "
    "code varchar(5), day date, data jsonb)"
)
# Each fails on PostgreSQL, and names a value: as a literal in the statement or in what the server answers.
FAILING = [
    f"INSERT INTO error_texts VALUES ('{ADDRESS}', 1)",  # the second one violates a constraint
    f"INSERT INTO error_texts (email) VALUES ('x{ADDRESS}')",  # the whole row is in the detail
    "INSERT INTO error_texts VALUES ('zq7', 1)",
    f"SELECT * FROM error_texts WHERE age = '{SECRET}'",
    f"INSERT INTO error_texts VALUES ('y{ADDRESS}', 1, '{SECRET}')",
    f"INSERT INTO error_texts VALUES ('y{ADDRESS}', 1, 'a', '{SECRET}')",
    f"""INSERT INTO error_texts VALUES ('y{ADDRESS}', 1, 'a', now(), '{{"a": {SECRET}')""",
    f"SELEC '{SECRET}'",
    f"SELECT {NUMBER}999999999999::int",
    f"SELECT '{NUMBER}99'::int",
    f"SELECT * FROM error_texts WHERE '{SECRET}' = ANY (email)",
    f"DO $$ BEGIN EXECUTE 'SELECT ''{SECRET}''::int'; END $$",
    f"DO $$ BEGIN RAISE EXCEPTION 'no such customer: %', quote_literal('{SECRET}'); END $$",
    f"DO $$ BEGIN RAISE EXCEPTION 'it failed' USING DETAIL = 'of {SECRET}', HINT = 'ask'; END $$",
]


def clean(error: BaseException) -> str:
    """What a span says of an error; nothing of it may be a value."""
    shown = json.dumps(redaction.exception(error))
    for value in (SECRET, "zq7", ADDRESS, NUMBER):
        assert value not in shown.replace(__file__, ""), str(error)
    return redaction.exception(error)[c.EXCEPTION_MESSAGE]


@pytest.fixture
def table(postgresql_server):
    with psycopg.connect(postgresql_server.dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS error_texts")
        connection.execute(TABLE)
        connection.execute(FAILING[0])
    return postgresql_server


@pytest.mark.parametrize("statement", FAILING)
def test_psycopg(table, statement):
    """Details, quoted lines, contexts and hints of the server."""
    with psycopg.connect(table.dsn, autocommit=True) as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute(statement)
    assert clean(caught.value)


def test_psycopg_parameters(table):
    """Bound values, which the server repeats in its details."""
    with psycopg.connect(table.dsn, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.UniqueViolation) as caught:
            connection.execute("INSERT INTO error_texts VALUES (%s, %s)", (ADDRESS, 1))
        assert ADDRESS in str(caught.value)
        assert clean(caught.value) == "duplicate key value violates unique constraint ?"
        with pytest.raises(psycopg.errors.DataError) as caught:
            connection.execute("SELECT %s::text::int", (SECRET,))
        clean(caught.value)


def test_asyncpg(table):
    """The same by asyncpg, which also repeats the argument that it cannot encode."""

    async def main() -> None:
        connection = await asyncpg.connect(table.dsn)
        try:
            for statement in FAILING:
                with pytest.raises(asyncpg.PostgresError) as caught:
                    await connection.execute(statement)
                assert clean(caught.value)
            for arguments in ((ADDRESS, 1), (ADDRESS, SECRET), (int(NUMBER), 1), ("b", 1, SECRET * 3)):
                with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)) as caught:
                    await connection.execute(
                        f"INSERT INTO error_texts (email, age{', code' if len(arguments) > 2 else ''}) "
                        f"VALUES ({', '.join(f'${number + 1}' for number in range(len(arguments)))})",
                        *arguments,
                    )
                assert clean(caught.value)
        finally:
            await connection.close()

    asyncio.run(main())


def test_sqlalchemy(table):
    """Statement and parameters, which SQLAlchemy adds to what the driver says: sync."""
    engine = create_engine(table.sync_url)
    with engine.connect() as connection:
        for statement in FAILING[:10]:
            with pytest.raises(SQLAlchemyError) as caught:
                connection.exec_driver_sql(statement.replace("%", "%%"))
            clean(caught.value)
            connection.rollback()
        with pytest.raises(SQLAlchemyError) as caught:
            connection.execute(text("INSERT INTO error_texts VALUES (:email, :age)"), {"email": ADDRESS, "age": 1})
        assert "[parameters:" in str(caught.value)
        assert "duplicate key value violates unique constraint ?" in clean(caught.value)
        clean(caught.value.orig)
    engine.dispose()


def test_sqlalchemy_async(table):
    """The same through asyncpg."""

    async def main() -> None:
        engine = create_async_engine(table.url)
        async with engine.connect() as connection:
            with pytest.raises(SQLAlchemyError) as caught:
                await connection.execute(
                    text("INSERT INTO error_texts (email, age) VALUES (:email, :age)"), {"email": ADDRESS, "age": 1}
                )
            clean(caught.value)
            await connection.rollback()
            with pytest.raises(SQLAlchemyError) as caught:
                await connection.execute(text("SELECT * FROM error_texts WHERE age = :age"), {"age": SECRET})
            clean(caught.value)
        await engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        ("INSERT INTO t VALUES (?, 1)", (ADDRESS,)),
        (f"INSERT INTO t VALUES ('{ADDRESS}', 1)", ()),
        (f"SELECT '{SECRET}", ()),
        (f'SELECT "{SECRET}', ()),
        (f"SELECT * FROM t WHERE '{SECRET}' '{SECRET}'", ()),
        (f"SELECT json('{SECRET}')", ()),
        ("SELECT json(?)", (SECRET,)),
        ("INSERT INTO t VALUES ('a', ?)", (SECRET,)),
        ("SELECT ?", ({SECRET: 1},)),
        (f"SELECT load_extension('{SECRET}')", ()),
    ],
)
def test_sqlite3(statement, values):
    """SQLite says little, but for what it cannot read."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (email text UNIQUE, age int CHECK (typeof(age) = 'integer'))")
    connection.execute(f"INSERT INTO t VALUES ('{ADDRESS}', 1)")
    with pytest.raises((sqlite3.Error, sqlite3.Warning)) as caught:
        connection.execute(statement, values)
    clean(caught.value)
    connection.close()


def test_redis(redis_server):
    """Arguments of unknown commands, of scripts and of pipelines."""
    client = redis.Redis(port=redis_server.port)
    client.set("error_texts", SECRET)
    for command in (
        ("NOSUCH", SECRET, ADDRESS), ("LPUSH", "error_texts", SECRET), ("INCRBY", "error_texts", SECRET),
        ("EVAL", f"return redis.error_reply('ERR not here: \"{SECRET}\"')", 0), ("EVAL", f"retur '{SECRET}'", 0),
        ("SET", "k", SECRET, SECRET), ("CONFIG", "SET", "nosuch", SECRET), ("CLIENT", "NOSUCH", SECRET),
        ("AUTH", "someone", SECRET), ("EVAL", f"return redis.error_reply('{SECRET} here')", 0),
        ("EVAL", f"error('{SECRET}')", 0), ("EVAL", f"return {SECRET}(1)", 0),
    ):  # fmt: skip
        with pytest.raises(redis.RedisError) as caught:
            client.execute_command(*command)
        assert clean(caught.value)
    for given in (("NOSUCH",), ("GET",), ("SET", "k", 1, 2)):
        with pytest.raises(redis.RedisError) as caught:
            client.execute_command(*given)
        assert len(clean(caught.value).split()) > 1  # what Redis itself says is kept
    with client.pipeline() as pipeline:
        pipeline.eval(f"return redis.error_reply('{SECRET} here')", 0)
        with pytest.raises(redis.RedisError) as caught:
            pipeline.execute()
    assert clean(caught.value) == "ERR"
    with client.pipeline() as pipeline:
        pipeline.lpush("error_texts", SECRET)
        with pytest.raises(redis.RedisError) as caught:
            pipeline.execute()
    assert "WRONGTYPE" in clean(caught.value)
    with pytest.raises(redis.DataError) as caught:
        client.set("k", {SECRET: 1})
    clean(caught.value)
    client.close()


def test_redis_async(redis_server):
    """The same by the asynchronous client."""

    async def main() -> None:
        client = redis.asyncio.Redis(port=redis_server.port)
        await client.set("error_texts", SECRET)
        async with client.pipeline() as pipeline:
            pipeline.lpush("error_texts", SECRET)
            with pytest.raises(redis.RedisError) as caught:
                await pipeline.execute()
        clean(caught.value)
        with pytest.raises(redis.RedisError) as caught:
            await client.execute_command("NOSUCH", SECRET)
        clean(caught.value)
        await client.aclose()

    asyncio.run(main())


def test_on_the_span_of_a_query(telemetry, table):
    """The event of a failed query has none of it, and neither has anything else of its span."""
    op = start(QUERY, "INSERT error_texts", ("postgresql", "INSERT", "error_texts"), {c.DB_QUERY_TEXT: FAILING[0]})
    with psycopg.connect(table.dsn) as connection:
        try:
            connection.execute(FAILING[0])
        except psycopg.Error as error:
            op.stop(error)
    span = telemetry.span("INSERT error_texts")
    assert span.events[0].attributes[c.EXCEPTION_TYPE] == "psycopg.errors.UniqueViolation"
    assert SECRET not in span.to_json().replace(__file__, "")
