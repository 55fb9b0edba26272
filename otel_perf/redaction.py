"""What must not leave the process, removed where the value enters: pure functions and a table from key to redactor.

None of them raises, each reads a bounded part of its input in one pass, and doing it twice changes nothing. Where a
text can be read in two ways (a backslash before a quote, a quote that never ends), what follows is masked as a whole.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast
from urllib.parse import quote, unquote_plus, urlsplit, urlunsplit

from otel_perf import conventions as c
from otel_perf import documents, paths, statements, summaries

__all__ = [
    "MASK",
    "MAX_LENGTH",
    "TABLE",
    "Masked",
    "Statement",
    "as_text",
    "document",
    "exception",
    "exception_type",
    "hidden",
    "message",
    "query_string",
    "query_text",
    "redact",
    "redis_command",
    "sql",
    "text",
    "url",
]

MASK = "REDACTED"
MAX_LENGTH = 2048
_MAX_SQL = 16_384  # longer statements are cut before they are read, so that one call stays cheap
_LONG_SQL = 4096  # of longer ones only a few are kept in memory
_STACK_DEPTH = 30
_PASSES = 4  # a mask may stand where a word stood, and a quote behind it begin a quoted text

# Controls and writing-direction marks would let a hostile name write to a terminal or split a log line; half a
# surrogate pair cannot be encoded at all and would cost a whole batch.
_CONTROLS = re.compile(f"[{statements.UNPRINTABLE}]")


def text(value: str, limit: int = MAX_LENGTH) -> str:
    """Plain text without control characters, cut at `limit` characters."""
    if len(value) > limit:
        value = value[:limit]
    return value if value.isprintable() else _CONTROLS.sub(" ", value)


# Addresses ------------------------------------------------------------------------------------------------------------

_USER = re.compile(r"://[^/\s]*@")


def query_string(value: str, limit: int = MAX_LENGTH) -> str:
    """A URL query whose keys stay and whose values are masked: `?page=2` says `page=REDACTED`.

    What is over the limit is left out pair by pair.
    """
    parts: list[str] = []
    for part in value[:MAX_LENGTH].split("&"):
        key, equals, _ = part.partition("=")
        if equals:
            key = quote(unquote_plus(key), safe="[]._-", errors="replace")
            part = f"{key}={MASK}"  # noqa: PLW2901  # what was read is not needed any more
        elif part:
            part = MASK  # noqa: PLW2901
        limit -= len(part) + 1
        if limit < -1:
            break
        parts.append(part)
    return "&".join(parts)


def url(value: str) -> str:
    """A URL without user information, query values and fragment."""
    try:
        parts = urlsplit(_CONTROLS.sub(" ", value[:MAX_LENGTH]).strip().replace(" ", "%20"))
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        netloc = host if parts.port is None else f"{host}:{parts.port}"
        # An address within an address: `jdbc:postgresql://`, a proxy's.
        path = _USER.sub("://", parts.path) if "://" in parts.path else parts.path
        plain = urlunsplit((parts.scheme, netloc, path, "", ""))
    except ValueError:
        return MASK
    if len(value) > MAX_LENGTH and parts.netloc and not (parts.path or parts.query or parts.fragment):
        return MASK  # who knows whether that was the host: an @ may have been cut off
    masked = query_string(parts.query, MAX_LENGTH - len(plain) - 1)
    return text(f"{plain}?{masked}" if masked else plain)


# SQL ------------------------------------------------------------------------------------------------------------------


class Masked(str):
    """A query text without literals; `redact` takes it as it is, so that masking is paid for once.

    `sql`, `document` and `redis_command` answer it. Who makes one of something else vouches for it.
    """

    __slots__ = ()


class Statement(NamedTuple):
    """A SQL statement without its literals, and what it does."""

    text: Masked
    operation: str | None
    collection: str | None
    #: `db.query.summary`, of low cardinality: `SELECT users orders`.
    summary: str


def sql(statement: str) -> Statement:
    """A SQL statement with its literals masked, its comments removed and its operations and tables found."""
    if len(statement) <= _LONG_SQL:
        return _sql(statement)
    return _long_sql(statement[:_MAX_SQL])


def _read(statement: str) -> Statement:
    body = text(statements.read(statement, MAX_LENGTH))
    found = summaries.summarise(body)
    return Statement(Masked(body), found.operation, found.collection, found.text or "SQL")


_sql = lru_cache(maxsize=2048)(_read)
_long_sql = lru_cache(maxsize=64)(_read)


def query_text(value: str) -> Masked:
    """What is shown of a query, SQL or a document's filter that is masked already."""
    if value[:1] in {"{", "["} and len(value) <= MAX_LENGTH and documents.is_masked(value):
        return Masked(value)
    return sql(value).text


# Documents ------------------------------------------------------------------------------------------------------------


def document(value: object) -> Masked:
    """A filter of a document store with its values masked: `{"email": ?, "age": {"$gt": ?}}`."""
    return Masked(text(documents.masked(value, MAX_LENGTH)))


# Redis ----------------------------------------------------------------------------------------------------------------


def redis_command(*args: object) -> Masked:
    """A Redis command whose name stays and whose arguments are masked: `SET ? ?`."""
    if not args:
        return Masked("")
    name = args[0].decode("latin-1") if isinstance(args[0], bytes) else as_text(args[0])
    return Masked(" ".join([text(name, 64), *(["?"] * min(len(args) - 1, 8))]))


# Errors ---------------------------------------------------------------------------------------------------------------

_IN_PIPELINE = "Command of pipeline caused error: "

# What is masked in free text. Each alternative begins only where a word or a quoted text begins, and succeeds or fails
# in one pass over it, so the whole is linear.
_PLAIN_QUOTED = r"""(?<!\w)[bBrRuUfF]?'(?:[^'\\]|\\[\s\S]?|'(?=\w))*(?:'|\Z)|"(?:[^"\\]|\\[\s\S]?)*(?:"|\Z)"""
# Those of messages in other languages too.
_QUOTED = (
    rf"{_PLAIN_QUOTED}|\u00ab[^\u00bb]*(?:\u00bb|\Z)|\u201e[^\u201c\u201d]*(?:[\u201c\u201d]|\Z)"
    r"|\u201c[^\u201d]*(?:\u201d|\Z)|\u2018[^\u2019]*(?:\u2019|\Z)|\u300c[^\u300d]*(?:\u300d|\Z)"
)
_IN_TEXT = re.compile(
    rf"""(?P<quoted>{_QUOTED})"""
    r"""|(?P<url>(?<!\w)\w{2,16}://[^\s'"<>]+)"""
    rf"""|(?P<key>(?<![\w-])[\w-]*?(?:pass(?:word|wd|phrase)?|secret|token|api[_-]?key|authorization|bearer|cookie"""
    rf"""|session|credential)[\w-]*(?:\s*[=:]\s*|\s+)(?:(?:bearer|basic|digest)\s+)?)(?:{_QUOTED}|\S+)"""
    r"""|(?P<row>\)=\(|(?<=\w\s)\((?=[^(),]*,))[\s\S]*"""
    r"""|(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)*"""
    r"""|(?<![\w-])(?=[\w-]*\d)[\w-]{20,}"""
    r"""|\b\d{3,}\b""",
    re.IGNORECASE,
)
# How Firestore names a document; an id may have spaces, so that its end cannot be told.
_DOCUMENT_NAME = re.compile(r"(\bdatabases/[^/\s]{1,100}/documents/)[^\r\n]*")
# Where database drivers repeat values unquoted.
# PostgreSQL speaks the server's language: a line that begins with one word and a colon is such a part.
_REPEATED = re.compile(r"\[SQL:|\[parameters:|\n[ \t]*[^\W\d_]+(?:\s?\d+)?\s?[:\uff1a]|(?<=for query argument )\$\d+:")
# Redis says where a script failed; what it failed with is the script's own text.
_IN_SCRIPT = ("user_script", "user_function")
_CODE = re.compile(r"[A-Z][A-Z0-9_]{1,31}(?= |\Z)")
# What Redis itself says; any other text of a `ResponseError` may be a script's, of which the first word is kept.
_REDIS_SAYS = re.compile(
    r"(?:ERR )?(?:unknown (?:sub)?command|wrong number of arguments|syntax error|value is |no such key"
    r"|index out of range)",
    re.IGNORECASE,
)


def message(value: str) -> str:
    """The text of an error without quoted values, numbers, addresses and secrets.

    Where database drivers repeat values unquoted, the rest is left out: SQLAlchemy's `[SQL: ...]` and
    `[parameters: ...]`, PostgreSQL's details and quoted lines, asyncpg's arguments, the command of a Redis pipeline.
    """
    if value.startswith("Command # "):
        _, found_cause, cause = value.rpartition(" of pipeline caused error: ")
        value = f"{_IN_PIPELINE}{cause if found_cause else ''}"
    if any(each in value for each in _IN_SCRIPT):
        return _of_script(value)
    value = value[:MAX_LENGTH]
    if "/documents/" in value:
        value = _DOCUMENT_NAME.sub(r"\1{id}", value)
    value = text(_REPEATED.split(value, maxsplit=1)[0]).strip()
    for _ in range(_PASSES):
        masked = text(_IN_TEXT.sub(_masked, value)).strip()
        if masked == value:
            break
        value = masked
    return value


def _of_redis(value: str) -> str:
    cause = value.rpartition(" of pipeline caused error: ")[2] if value.startswith("Command # ") else value
    if _REDIS_SAYS.match(cause):
        return value
    code = _CODE.match(cause)
    return code[0] if code else "ERR"


def _of_script(value: str) -> str:
    code = _CODE.match(value.removeprefix(_IN_PIPELINE))
    return f"{code[0] if code else 'ERR'} in a Redis script"


def _masked(found: re.Match[str]) -> str:
    if found["key"] is not None:
        return f"{found['key']}{MASK}"
    if found["url"] is not None:
        shown = url(found["url"])
        at = shown.find("/", shown.find("://") + 3)  # keys stand in paths too, as in those of webhooks
        return shown if at < 0 else shown[:at] + paths.without_tokens(shown[at:])
    return f"{found['row']}?)" if found["row"] is not None else "?"


def exception_type(error: BaseException) -> str:
    """The value of `error.type` for an exception: its class, with the module unless that is `builtins`."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def exception(error: BaseException) -> dict[str, str]:
    """An exception as event attributes: type, redacted message, and the stack as places, without source lines.

    Source lines can hold literals, and reading them costs file access.
    """
    steps = list(traceback.walk_tb(error.__traceback__))[-_STACK_DEPTH:]
    kind, told = exception_type(error), as_text(error)
    frames = [f'File "{f.f_code.co_filename}", line {line}, in {f.f_code.co_name}\n' for f, line in steps]
    return {
        c.EXCEPTION_TYPE: kind,
        c.EXCEPTION_MESSAGE: message(_of_redis(told) if kind == "redis.exceptions.ResponseError" else told),
        c.EXCEPTION_STACKTRACE: "".join(frames)[-MAX_LENGTH:],
    }


def as_text(value: object) -> str:
    """The text of a value, whatever its `__str__` does."""
    try:
        return str(value)
    except Exception:  # somebody's `__str__` fails, which is no fault of ours
        return f"<{type(value).__qualname__}>"


# The table ------------------------------------------------------------------------------------------------------------


def _path(value: str) -> str:
    return value.split("?", 1)[0]


def _connection(value: str) -> str:
    return url(value.split(";", 1)[0]) if "://" in value else MASK


def hidden(_: str) -> str:
    """The mask, whatever it was."""
    return MASK


_HEADERS: dict[str, Callable[[str], str]] = {
    **dict.fromkeys(
        (
            "authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "x-auth-token", "x-csrf-token",
        ),
        hidden,
    ),
    "location": url,
    "referer": url,
}  # fmt: skip

TABLE: dict[str, Callable[[str], str]] = {
    c.URL_QUERY: query_string,
    c.URL_FULL: url,
    c.DB_QUERY_TEXT: query_text,
    c.EXCEPTION_MESSAGE: message,
    "url.original": url,
    "url.fragment": hidden,
    "http.url": url,
    "http.target": _path,
    "http.referer": url,
    "messaging.url": url,
    "db.statement": query_text,
    "db.statement.parameters": hidden,
    "db.connection_string": _connection,
    # Other libraries write the names of headers with underscores.
    **{
        f"http.{side}.header.{spelling}": redactor
        for name, redactor in _HEADERS.items()
        for spelling in (name, name.replace("-", "_"))
        for side in ("request", "response")
    },
}


def redact(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with every value that the table knows redacted and every string cut to its limit."""
    clean: dict[str, Any] = {}
    for key, value in attributes.items():
        if value.__class__ is str and key not in TABLE and len(value) <= MAX_LENGTH and value.isprintable():
            clean[key] = value  # as `text` would have it, without the call
        elif value.__class__ is Masked:
            clean[key] = str(value)  # an exact one, which is what spans take at once
        elif isinstance(value, str):
            redactor = TABLE.get(key)
            clean[key] = text(redactor(value) if redactor is not None else value)
        elif isinstance(value, (list, tuple)):
            items = cast("Sequence[object]", value)
            redactor = TABLE.get(key, text)
            clean[key] = [text(redactor(item)) if isinstance(item, str) else item for item in items]
        else:
            clean[key] = value
    return clean
