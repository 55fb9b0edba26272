"""Reading SQL without a grammar: literals, comments and quoted names of all common dialects, in one pass.

A parser of one dialect would let literals of another through. Where a text can be read in two ways (a backslash before
a quote, a quote that never ends), what follows is masked as a whole.
"""

from __future__ import annotations

import re

__all__ = ["read"]

# What begins a literal, a comment or a quoted name. Placeholders (`$1`, `:2`) and digits within names are none.
_OPENS = re.compile(
    r"""(?P<oracle>(?<!\w)[nN]?[qQ]')|(?P<string>(?:(?<!\w)(?:[nNeEbBxX]|[uU]&))?')|(?P<name>["`])|(?P<line>--|\#)"""
    r"""|(?P<block>/\*)|(?P<dollar>(?<![\w$])\$(?:[^\W\d]\w*)?\$)"""
    r"""|(?P<number>(?<![\w@])(?<![$:](?=\d{1,3}(?![\w.])))\.?\d[\w.]*(?:(?<=[eE])[+-]\d+)?)"""
)
# Where a double-quoted word is a name in every dialect. Elsewhere MySQL and SQLite may take it for a string.
_BEFORE_NAME = re.compile(
    r"(?:\.|\b(?:FROM|JOIN|INTO|UPDATE|TABLE|TRUNCATE|ONLY|EXISTS|AS|BY|INDEX|VIEW|REFERENCES|CONSTRAINT)\s"
    r"|\bINTO\s+[\w.]*\s*\()\s*\Z",
    re.IGNORECASE,
)
_CLOSES = {"[": "]", "(": ")", "{": "}", "<": ">"}
_FIRST_WORD = re.compile(r"[A-Za-z]+")
_WORD = r'(?:"[^"]*"|`[^`]*`|\[[^\]]*\]|[\w$#]+)'
_TABLE_NAME = re.compile(
    rf"\b(?:FROM|INTO|UPDATE|TABLE|TRUNCATE|JOIN)\s+(?:(?:IF|NOT|EXISTS|ONLY|TABLE)\s+)*({_WORD}(?:\.{_WORD})*)",
    re.IGNORECASE,
)
_SPACES = re.compile(r"\s+")
_LISTS = re.compile(r"\(\s*\?(?:\s*,\s*\?)+\s*\)")


def read(statement: str, limit: int) -> tuple[str, str | None, str | None]:
    """The statement with `?` for each literal, its first word in capitals, and its first table."""
    body = _SPACES.sub(" ", _without_literals(statement)).strip()
    body = _LISTS.sub("(?)", body)
    if len(body) > limit:
        body = _without_literals(body[:limit])  # the cut may have gone through a quoted name
    operation = _FIRST_WORD.search(body)
    table = _TABLE_NAME.search(body)
    return (
        body,
        operation[0].upper() if operation else None,
        re.sub(r'["`\[\]]', "", table[1]) if table else None,
    )


def _without_literals(statement: str) -> str:
    """The statement with `?` for each literal, in one pass: each step goes on behind what it found."""
    kept: list[str] = []
    position = 0
    while found := _OPENS.search(statement, position):
        before = statement[position : found.start()]
        kept.append(before)
        end, shown = _read(statement, found, before, "".join(kept[-3:-1]))
        if end is None:  # it never ends, or can be read in two ways
            kept.append("?")
            return "".join(kept)
        kept.append(shown)
        position = end
    kept.append(statement[position:])
    return "".join(kept)


def _read(statement: str, found: re.Match[str], before: str, earlier: str) -> tuple[int | None, str]:
    """Where the thing that was found ends, None where that cannot be told, and what is shown of it."""
    start, end = found.span()
    if found["number"]:
        return end, "?"
    if found["string"]:
        return _quoted(statement, "'", end), "?"
    if found["name"]:
        closed = _quoted(statement, found["name"], end)
        if closed is None:
            return None, ""
        as_name = found["name"] == "`" or _is_name(statement, before, earlier, closed)
        return closed, statement[start:closed] if as_name else "?"
    if found["line"]:
        return _line(statement, found["line"], end)
    if found["block"]:
        closed = statement.find("*/", end)
        # PostgreSQL nests comments, others do not.
        return (None if closed < 0 or "/*" in statement[end:closed] else closed + 2), " "
    closer = found["dollar"] or _CLOSES.get(statement[end : end + 1], statement[end : end + 1]) + "'"
    closed = statement.find(closer, end + (0 if found["dollar"] else 1))
    return (None if closed < 0 else closed + len(closer)), "?"


def _quoted(statement: str, mark: str, start: int) -> int | None:
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


def _is_name(statement: str, before: str, earlier: str, end: int) -> bool:
    if statement[end : end + 1] == "." or _BEFORE_NAME.search(before[-200:]):
        return True
    # The columns of INSERT INTO "t" ("a", "b"), one after the other.
    between = before.strip()
    if between == "(":
        return earlier[-1:] == '"' and re.search(r"\bINTO\s", earlier, re.IGNORECASE) is not None
    return between == "," and earlier[-1:] == '"'


def _line(statement: str, mark: str, start: int) -> tuple[int | None, str]:
    newline = statement.find("\n", start)
    end = len(statement) if newline < 0 else newline
    following = statement[start : start + 1]
    if not following or following.isspace():
        return end, " "
    if mark == "--":
        # MySQL knows such a comment only with a space behind it; a quote in it decides how all the rest is read.
        return (None if re.search("['\"`]", statement[start:end]) else end), " "
    if following.isalnum() or following == "_":
        # A comment, an operator or a table's name.
        return (None if re.search("['\"`]", statement[start:]) else start), mark
    return start, mark
