"""What must not leave the process, removed where the value enters: pure functions and a table from key to redactor."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote_plus, urlsplit, urlunsplit

from sqlparse import lexer
from sqlparse import tokens as T

from otel_perf import conventions as c

__all__ = ["MASK", "TABLE", "Statement", "exception", "query_string", "redact", "redis_command", "sql", "text", "url"]

MASK = "REDACTED"
MAX_LENGTH = 2048
_MAX_SQL = 16_384  # longer statements are cut before they are read, so that one call stays cheap

# Controls would let a hostile name write to a terminal or split a log line.
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
# Quoted text, numbers of three digits and more, mail addresses, and what follows key=, token: and the like.
_IN_TEXT = re.compile(
    r"""(?P<quoted>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.)*")|(?P<mail>[\w.+-]+@[\w-]+\.[\w.-]+)"""
    r"""|(?P<key>\b(?:pass(?:word|wd)?|secret|token|api[_-]?key|authorization|bearer|cookie|session)\b\s*[=:]?\s*)\S+"""
    r"""|(?P<number>\b\d{3,}\b)""",
    re.IGNORECASE,
)


class Statement(NamedTuple):
    """A SQL statement without its literals, and what it does."""

    text: str
    operation: str | None
    collection: str | None

    @property
    def summary(self) -> str:
        """The low-cardinality name of the statement: `SELECT users`."""
        return " ".join(part for part in (self.operation, self.collection) if part) or "SQL"


def text(value: str, limit: int = MAX_LENGTH) -> str:
    """Plain text without control characters, cut at `limit` characters."""
    if len(value) > limit:
        value = value[:limit]
    return value if value.isprintable() else _CONTROLS.sub(" ", value)


def query_string(value: str) -> str:
    """A URL query whose keys stay and whose values are masked: `?page=2` says `page=REDACTED`."""
    parts = []
    for part in value[:MAX_LENGTH].split("&"):
        key, equals, _ = part.partition("=")
        parts.append(f"{quote(unquote_plus(key), safe='[]._-')}={MASK}" if equals else MASK if part else "")
    return "&".join(parts)


def url(value: str) -> str:
    """A URL without user information, query values and fragment."""
    try:
        parts = urlsplit(value[:MAX_LENGTH])
        host = parts.hostname or ""
        netloc = f"{host}:{parts.port}" if parts.port else host
    except ValueError:
        return MASK
    return text(urlunsplit((parts.scheme, netloc, parts.path, query_string(parts.query), "")))


@lru_cache(maxsize=2048)
def sql(statement: str) -> Statement:
    """A SQL statement with its literals masked, its comments removed and its operation and table found.

    Tokens come from sqlparse's lexer, which is linear in the length of the statement.
    """
    words: list[str] = []
    operation: str | None = None
    collection: str | None = None
    wants_table = False
    for kind, value in lexer.tokenize(statement[:_MAX_SQL]):
        if kind in T.Comment:
            words.append(" ")
        elif kind in T.Literal and kind not in T.Literal.String.Symbol:
            words.append("?")
        elif kind in T.Whitespace:
            words.append(" ")
        else:
            words.append(value)
            if operation is None and (kind in T.Keyword or kind in T.Name):
                operation = value.upper()
                wants_table = operation in {"UPDATE", "TRUNCATE"}
            elif collection is None and kind in T.Keyword and value.upper() in {"FROM", "INTO", "TABLE", "JOIN"}:
                wants_table = True
            elif wants_table and (kind in T.Name or kind in T.Literal.String.Symbol or kind in T.Keyword):
                if value.upper() not in {"IF", "NOT", "EXISTS", "ONLY", "SELECT"}:
                    collection, wants_table = value.strip('"`[]')[:128], False
    body = re.sub(r"\s+", " ", "".join(words)).strip()
    body = re.sub(r"\(\s*\?(?:\s*,\s*\?)+\s*\)", "(?)", body)
    return Statement(text(body), operation, collection)


def redis_command(*args: object) -> str:
    """A Redis command whose name stays and whose arguments are masked: `SET ? ?`."""
    if not args:
        return ""
    name = str(args[0].decode("latin-1") if isinstance(args[0], bytes) else args[0])
    return " ".join([text(name, 64), *(["?"] * min(len(args) - 1, 8))])


def message(value: str) -> str:
    """The text of an error without quoted values, numbers, addresses and secrets.

    What follows SQLAlchemy's `[SQL: ...]` and `[parameters: ...]` is left out.
    """
    value = value[:MAX_LENGTH].split("[SQL:", 1)[0].split("[parameters:", 1)[0].rstrip()

    def mask(found: re.Match[str]) -> str:
        if found["key"]:
            return f"{found['key']}{MASK}"
        return "?"

    return text(_IN_TEXT.sub(mask, value))


def exception_type(error: BaseException) -> str:
    """The value of `error.type` for an exception: its class, with the module unless that is `builtins`."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def exception(error: BaseException) -> dict[str, str]:
    """An exception as event attributes: type, redacted message, and the stack as places, without source lines.

    Source lines can hold literals, and reading them costs file access.
    """
    steps = list(traceback.walk_tb(error.__traceback__))[-30:]
    frames = [f'File "{f.f_code.co_filename}", line {line}, in {f.f_code.co_name}\n' for f, line in steps]
    return {
        c.EXCEPTION_TYPE: exception_type(error),
        c.EXCEPTION_MESSAGE: message(str(error)),
        c.EXCEPTION_STACKTRACE: "".join(frames)[-MAX_LENGTH:],
    }


def _sql_text(value: str) -> str:
    return sql(value).text


TABLE: dict[str, Callable[[str], str]] = {
    c.URL_QUERY: query_string,
    c.URL_FULL: url,
    c.DB_QUERY_TEXT: _sql_text,
    c.EXCEPTION_MESSAGE: message,
    "http.url": url,
    "http.target": lambda value: value.split("?", 1)[0],
    "db.statement": _sql_text,
}


def redact(attributes: dict[str, object]) -> dict[str, object]:
    """Attributes with every value that the table knows redacted and every string cut to its limit."""
    clean: dict[str, object] = {}
    for key, value in attributes.items():
        if isinstance(value, str):
            redactor = TABLE.get(key)
            value = text(redactor(value) if redactor is not None else value)
        clean[key] = value
    return clean
