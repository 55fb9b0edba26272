"""The summary of a SQL statement: its operations and their targets, in the order in which they stand.

The form is that of `db.query.summary` in the OpenTelemetry semantic conventions for database client spans, section
"Generating a summary of the query": `{operation1} {target1} {operation2} {target2} {target3} ...`, at most 255
characters and never cut within a word. Two things are done for low cardinality: operations are written in capitals
(also in `db.operation.name`), and plain names stand without quotes (also in `db.collection.name`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["NAME", "Summary", "summarise"]

MAX_LENGTH = 255
_MAX_NAME = 128
_MAX_OPERATION = 64

#: A name, quoted or not, with what it is qualified by.
NAME = r'(?:"[^"]*"|`[^`]*`|\[[^\]]*\]|[\w$#]+)(?:\.(?:"[^"]*"|`[^`]*`|\[[^\]]*\]|[\w$#]+))*'
# Placeholders come first, so that `:from` and `%(select)s` are no words.
_TOKENS = re.compile(rf"[:@]\w+|%\(\w*\)s|(?P<name>{NAME})|(?P<mark>[(),;?])")
_PLAIN = re.compile(r'(?:(?:"[\w$]+"|`[\w$]+`|\[[\w$]+\]|[\w$#]+)\.)*(?:"[\w$]+"|`[\w$]+`|\[[\w$]+\]|[\w$#]+)')
_QUOTES = re.compile(r'["`\[\]]')

# Reserved in every dialect; the others are operations where a statement may begin.
_QUERIES = frozenset(("SELECT",))
_CHANGES = frozenset(("INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE"))
# What stands before a statement within a statement.
_BEFORE_STATEMENT = frozenset(("(", ")", "AS", "EXPLAIN", "ANALYZE", "VERBOSE"))
_BEFORE_TARGET = frozenset(("FROM", "JOIN", "INTO", "TABLE", "USING"))
_TAKES_TARGET = frozenset(("UPDATE", "TRUNCATE", "CALL", "EXEC", "EXECUTE", "COPY"))
_DEFINES = frozenset(("CREATE", "ALTER", "DROP"))
_DEFINED = frozenset(("INDEX", "VIEW", "SEQUENCE", "SCHEMA", "DATABASE", "FUNCTION", "PROCEDURE", "TYPE", "TRIGGER"))
_PASSED = frozenset(("IF", "NOT", "EXISTS", "ONLY", "TABLE", "LATERAL", "CONCURRENTLY", "OR", "IGNORE"))
_ENDS_LIST = frozenset(
    ("WHERE", "GROUP", "ORDER", "HAVING", "LIMIT", "WINDOW", "SET", "VALUES", "UNION", "EXCEPT", "INTERSECT", "FETCH",
     "OFFSET", "RETURNING", "FOR")
)  # fmt: skip


class Summary(NamedTuple):
    """What a statement does, to what, and both in short."""

    operation: str | None
    collection: str | None
    text: str


class _Level:
    """What is known of one pair of brackets, or of the statement itself."""

    __slots__ = ("asked", "listing", "named")

    def __init__(self) -> None:
        self.asked = False  # whether there was an operation
        self.listing = False  # within a FROM list, where a comma means another table
        self.named = False  # within WITH, where a word is the name of what follows


class _Reader:
    """Goes through the words of one masked statement."""

    __slots__ = (
        "_before",
        "_begins",
        "_bound",
        "_called",
        "_levels",
        "_main",
        "_verb",
        "_wanted",
        "first",
        "parts",
        "targets",
    )

    def __init__(self) -> None:
        self.parts: list[tuple[str, list[str]]] = []
        self.targets: list[str] = []
        self.first: str | None = None
        self._main: str | None = None
        self._verb = ""
        self._begins = True  # the next word is the first of a statement
        self._wanted = False  # the next name is a target
        self._called = False  # behind FROM a name with a bracket is a function
        self._before = ""
        self._levels = [_Level()]
        self._bound: set[str] = set()  # names that WITH gives

    @property
    def operation(self) -> str | None:
        """The operation of the statement itself, else the first of all."""
        return self._main or self.first

    def mark(self, mark: str) -> None:
        """Reads a bracket, a comma, a semicolon or a mask."""
        level = self._levels[-1]
        if mark == "(":
            self._levels.append(_Level())
        elif mark == ")" and len(self._levels) > 1:
            self._levels.pop()
        elif mark == ";":
            self._levels, self._begins = [_Level()], True
            self._bound.clear()
        self._wanted = self._called = mark == "," and level.listing
        self._before = mark

    def name(self, name: str, following: str = "") -> None:
        """Reads a word or a quoted name."""
        word = name.upper() if name[0] not in '"`[' else ""
        level = self._levels[-1]
        if self._begins and word != "WITH":
            self._begins = False
            if word:
                self._operation(word, level)
        elif word == "WITH" and (self._begins or self._before == "("):
            self._begins, level.named = False, True
        elif level.named and self._before in {"WITH", "RECURSIVE", ","} and word != "RECURSIVE":
            self._bound.add(name.lower())
        elif word in _QUERIES or (word in _CHANGES and self._before in _BEFORE_STATEMENT):
            self._operation(word, level)
        elif word in _BEFORE_TARGET or (word in _DEFINED and self._verb in _DEFINES):
            self._want(word, level)
        elif word in _ENDS_LIST:
            level.listing = self._wanted = False
        elif self._wanted and word not in _PASSED:
            self._wanted = False
            if not (self._called and following.lstrip()[:1] == "("):
                self._target(name)
        self._before = word or name

    def _operation(self, word: str, level: _Level) -> None:
        self._verb = word = word[:_MAX_OPERATION]
        self.first = self.first or word
        if len(self._levels) == 1:
            self._main = self._main or word
        level.asked, level.named, level.listing = True, False, False
        self._wanted, self._called = word in _TAKES_TARGET, False
        self.parts.append((word, []))

    def _want(self, word: str, level: _Level) -> None:
        # EXTRACT(YEAR FROM x), IS DISTINCT FROM x and COPY t FROM STDIN name no table.
        if word == "FROM" and (
            not (level.asked or len(self._levels) == 1) or self._before == "DISTINCT" or self._verb == "COPY"
        ):
            return
        self._wanted, self._called = True, word in {"FROM", "JOIN", "USING"}
        level.listing = word == "FROM" or (word in {"JOIN", "USING"} and level.listing)

    def _target(self, name: str) -> None:
        if name.lower() in self._bound:
            return
        if _PLAIN.fullmatch(name):
            name = _QUOTES.sub("", name)
        if len(name) > _MAX_NAME:
            name = name[:_MAX_NAME]
        self.targets.append(name)
        if not self.parts:
            self.parts.append(("", []))
        named = self.parts[-1][1]
        if name not in named:
            named.append(name)


def summarise(masked: str) -> Summary:
    """The summary of a statement whose literals are masked already."""
    reader = _Reader()
    for found in _TOKENS.finditer(masked):
        name, mark = found["name"], found["mark"]
        if name:
            reader.name(name, masked[found.end() : found.end() + 2])
        elif mark:
            reader.mark(mark)
    length = 0
    words: list[str] = []
    for operation, targets in reader.parts:
        for word in (operation, *targets):
            length += len(word) + 1
            if word and length <= MAX_LENGTH + 1:
                words.append(word)
    return Summary(reader.operation, reader.targets[0] if reader.targets else None, " ".join(words))
