"""Reading SQL without a grammar: literals, comments and quoted names of all common dialects, in one pass.

A parser of one dialect would let literals of another through. Where a text can be read in two ways (a backslash before
a quote, a quote that never ends), what follows is masked as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["UNPRINTABLE", "read"]

#: A character class: controls, writing-direction marks, halves of surrogate pairs.
UNPRINTABLE = r"\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"


# What begins a literal, a comment or a quoted name. Placeholders (`$1`, `:2`) and digits within names are none.
_OPENS = re.compile(
    r"""(?P<oracle>(?<!\w)[nN]?[qQ]')|(?P<string>(?:(?<!\w)(?:[nNeEbBxX]|[uU]&))?')|(?P<name>["`])|(?P<line>--|\#+)"""
    r"""|(?P<truth>(?<![\w.@$#:])(?i:true|false)(?![\w.]|\)s))|(?P<block>/\*)|(?P<dollar>(?<![\w$])\$(?:[^\W\d]\w*)?\$)"""
    r"""|(?P<number>(?<![\w@])(?<![$:](?=\d{1,3}(?![\w.])))\.?\d[\w.]*(?:(?<=[eE])[+-]\d+)?)"""
)
# Where a double-quoted word is a name in every dialect. Elsewhere MySQL and SQLite may take it for a string.
_BEFORE_NAME = re.compile(
    r"(?:\.|\b(?:(?P<list>FROM)|JOIN|(?P<into>INTO)|UPDATE|TABLE|COLUMN|TRUNCATE|ONLY|IF\s(?:NOT\s)?EXISTS|AS|INDEX|VIEW"
    r"|REFERENCES|CONSTRAINT)\s|(?P<columns>\bINTO\s+[\w.]+\s*\((?:\s*\w+\s*,)*))\s*\Z",
    re.IGNORECASE,
)
_COLUMNS = re.compile(r"[(,](?:\s*\w+\s*,)*")
# There FROM is followed by a value: `TRIM("x" FROM "y")`, MySQL's `PREPARE s FROM "..."`.
_FROM_VALUE = re.compile(
    r"(?:\bDISTINCT|\bPREPARE\s+\S+|\b(?:TRIM|SUBSTR(?:ING)?|EXTRACT|OVERLAY|POSITION)\s*\([^()]*)\sFROM\s+\Z",
    re.IGNORECASE,
)
# What gives away a password although it is no literal; the rest of such a statement is masked. A column that is called
# `password` is none of it.
_CREDENTIALS = re.compile(
    r"""(\bIDENTIFIED\s(?:BY|WITH|VIA|AS|USING)\b"""
    r"""|(?:\A|;)\s?(?:SET\sPASSWORD\b"""
    r"""|SET\s[^;]*?(?:pass|pwd|secret|token|key|credential)[^;=\s]{0,64}\s?(?:=|:=|\bTO\b)"""
    r"""|PRAGMA\s(?:\w+\.)?(?:(?:text|hex)?(?:re)?key|password)\b"""
    r"""|ATTACH\b[^;]*?\bKEY\b"""
    r"""|(?:CREATE|ALTER)\s(?:OR\sREPLACE\s)?(?:USER|ROLE|GROUP|LOGIN|SERVER|SUBSCRIPTION|CREDENTIAL|SECRET|CONNECTION"""
    r"""|(?:DATABASE|APPLICATION|MASTER|ASYMMETRIC|SYMMETRIC)\s\w+)\b[^;]*?\b(?:PASSWORD|SECRET|CONNECTION)\b))"""
    r"""(?!\s?\Z)[\s\S]*""",
    re.IGNORECASE,
)
_CLOSES = {"[": "]", "(": ")", "{": "}", "<": ">"}
_MARKS = re.compile(rf"(?!\n)[{UNPRINTABLE}]")
_PASSES = 4
_QUOTES = ("'", '"', "`")
_SPACES = re.compile(r"\s+")
_LISTS = re.compile(r"\(\s*\?(?:\s*,\s*\?)+\s*\)")
# As many placeholders as there happened to be values: those of IN, and of the rows of VALUES.
_HOLDER = r"(?:[-+]?\?|%s|%\(\w+\)s|[$:]\w+|NULL|DEFAULT)(?:::\w+)?"
_HOLDERS = rf"(?:ROW ?)?\( ?{_HOLDER}(?: ?, ?{_HOLDER})* ?\)"
_IN = re.compile(rf"(\bIN ?)(?:{_HOLDERS}|\( ?{_HOLDERS}(?: ?, ?{_HOLDERS})* ?\))", re.IGNORECASE)
_ROWS = re.compile(rf"(\bVALUES ?{_HOLDERS})(?: ?, ?{_HOLDERS})+", re.IGNORECASE)


def read(statement: str, limit: int) -> str:
    """The statement with `?` for each literal and for each list of values, no longer than the limit."""
    body = _masked(statement)
    for _ in range(_PASSES):  # the cut may go through a quoted name, and a lone `#` be left where a comment was
        again = _masked(body[:limit])
        if again == body:
            break
        body = again
    return body


def _masked(statement: str) -> str:
    plain = _SPACES.sub(" ", _without_literals(_MARKS.sub(" ", statement))).strip()
    plain = _CREDENTIALS.sub(r"\1 ?", plain)
    return _ROWS.sub(r"\1", _IN.sub(r"\1(?)", _LISTS.sub("(?)", plain)))


def _without_literals(statement: str) -> str:
    """The statement with `?` for each literal, in one pass: each step goes on behind what it found."""
    reader = _Reader(statement)
    kept: list[str] = []
    position = 0
    while found := _OPENS.search(statement, position):
        before = statement[position : found.start()]
        kept.append(before)
        end, shown = reader.read(found, before, kept)
        if end is None:  # it never ends, or can be read in two ways
            kept.append("?")
            return "".join(kept)
        kept.append(shown)
        position = end
    kept.append(statement[position:])
    return "".join(kept)


def _place(before: str) -> str | None:
    found = _BEFORE_NAME.search(before[-200:])
    return None if found is None else found.lastgroup


class _Reader:
    """Finds where the things in one statement end."""

    __slots__ = ("_even_until", "_last_quote", "_place", "_statement")

    def __init__(self, statement: str) -> None:
        self._statement = statement
        # Looked up once, so that many `#` do not read the same text again and again.
        self._last_quote = max(statement.rfind(each) for each in _QUOTES)
        self._even_until = -1
        # Where the last thing stood, if it is a name: in a FROM list, behind INTO, among its columns.
        self._place: str | None = None

    def read(self, found: re.Match[str], before: str, kept: Sequence[str]) -> tuple[int | None, str]:
        """Where the thing that was found ends, None where that cannot be told, and what is shown of it."""
        statement = self._statement
        start, end = found.span()
        place, self._place = self._place, None
        if found["number"] or found["truth"]:
            return end, "?"
        if found["string"]:
            return self._quoted("'", end), "?"
        if found["name"]:
            closed = self._quoted(found["name"], end)
            if closed is None:
                return None, ""
            as_name = self._is_name(before, kept, closed, place) or found["name"] == "`"
            return closed, statement[start:closed] if as_name else "?"
        if found["line"]:
            return self._line(found["line"], end)
        if found["block"]:
            closed = statement.find("*/", end)
            # PostgreSQL nests comments, others do not.
            return (None if closed < 0 or "/*" in statement[end:closed] else closed + 2), " "
        closer = found["dollar"] or _CLOSES.get(statement[end : end + 1], statement[end : end + 1]) + "'"
        closed = statement.find(closer, end + (0 if found["dollar"] else 1))
        return (None if closed < 0 else closed + len(closer)), "?"

    def _quoted(self, mark: str, start: int) -> int | None:
        statement = self._statement
        end = statement.find(mark, start)
        while end >= 0:
            back = end
            while back > start and statement[back - 1] == "\\":
                back -= 1
            if (end - back) % 2 and mark != "`":
                return None  # an escaped quote in one dialect, the end of the string in another
            if statement[end + 1 : end + 2] != mark:
                return end + 1
            end = statement.find(mark, end + 2)
        return None

    def _is_name(self, before: str, kept: Sequence[str], end: int, place: str | None) -> bool:
        between = before.strip()
        if (place, between) in {("list", ","), ("into", ".")}:
            self._place = place
        elif (place == "into" and between[:1] == "(") or (place == "columns" and between[:1] == ","):
            self._place = "columns" if _COLUMNS.fullmatch(between) else None
        if self._place is not None or self._statement[end : end + 1] == ".":
            self._place = self._place or _place(before)
            return True
        if _BEFORE_NAME.search(before[-200:]) is None:
            return False
        self._place = _place(before)
        if self._place != "list" or _FROM_VALUE.search("".join(kept[-9:])[-400:]) is None:
            return True
        self._place = None
        return False

    def _line(self, mark: str, start: int) -> tuple[int | None, str]:
        statement = self._statement
        following = statement[start : start + 1]
        newline = statement.find("\n", start) if start >= self._even_until else self._even_until
        end = len(statement) if newline < 0 else newline
        if mark in {"--", "#"} and (not following or following.isspace()):
            return end, " "
        if mark == "--":
            # MySQL knows such a comment only with a space behind it; a quote in it decides how the rest is read.
            return (None if any(each in statement[start:end] for each in _QUOTES) else end), " "
        if following.isalnum() or following == "_":
            # A comment, an operator or a table's name.
            return (None if self._last_quote >= start else start), mark
        # An operator of PostgreSQL or a comment of MySQL: the same thing as long as no string begins in its line.
        if start >= self._even_until:
            if any(statement.count(each, start, end) % 2 for each in _QUOTES):
                return None, ""
            self._even_until = end
        return start, mark
