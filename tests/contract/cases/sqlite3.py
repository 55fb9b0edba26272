"""sqlite3 of the standard library: connections that are made while it is measured."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from sqlite3 import dbapi2
from typing import Any

from tests.contract.cases import Case, Servers


class SQLite3(Case):
    name = "sqlite3"

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.target = "sqlite3"
        case = self

        class Cursor(sqlite3.Cursor):
            def execute(self, *args: Any) -> Any:
                if case.error is not None:
                    raise case.error
                return super().execute(*args)

        self.kind = Cursor

    def _run(self, statement: str) -> Any:
        with closing(sqlite3.connect(":memory:")) as connection:
            return connection.cursor(self.kind).execute(statement).fetchone()[0]

    def work(self) -> Any:
        return self._run("SELECT 42")

    def hostile(self) -> Any:
        return self._run("SELECT '\x1b[31m'\n-- " + "x" * 50_000)

    def state(self) -> list[Any]:
        return [sqlite3.connect, dbapi2.connect, sqlite3.Connection]
