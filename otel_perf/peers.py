"""The services that an app calls: which host and path belong to which, in which category, and what the call does there.

`measure.peer` adds one's own, which win over the well-known ones in `known_peers`. A host that nobody declared stands
for itself, and its operation is the method.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from ipaddress import ip_network
from typing import NamedTuple

from otel_perf import known_peers, paths

__all__ = ["Call", "Found", "Peer", "declare", "declared", "find", "generation", "secrets"]

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_HOST = re.compile(r"[a-z0-9_*-]+(?:\.[a-z0-9_*-]+)*|\[?[0-9a-f:]*:[0-9a-f:.]*\]?")
_PART = re.compile(r"([^{}*]*)(?:\{(\w+)\}([^{}*]*))?")
_WORD = re.compile(r"[\w.:/-]+(?: [\w.:/-]+)*")
_PRIVATE_ENDS = frozenset({"internal", "local", "localhost", "svc", "test"})
#: What stands for a part of a path that must not be seen: `{token}`, `{api_key}`.
_SECRET = re.compile(
    r"(?:\w*_)?(?:api_?key|auth|bot|code|credential|e?mail|hook|key|pass(?:word)?|phone|secret|session|sig(?:nature)?"
    r"|token|webhook)(?:_\w*)?",
    re.IGNORECASE,
)
_MASK = "REDACTED"
_LONGEST = 128
_MOST_PARTS = 32
_KEPT = 1024
_LONGEST_KEPT = 256


@dataclass(frozen=True, slots=True)
class Peer:
    """One service: its hosts, perhaps with the beginning of a path, and what its operations are called."""

    service: str
    hosts: tuple[str, ...]
    category: str | None = None
    operations: Mapping[str, str] = field(default_factory=dict[str, str])


class Call(NamedTuple):
    """What a call does: the name of the operation, and the template of its path where one was declared."""

    operation: str
    template: str | None


class _Pattern(NamedTuple):
    """A path: per part what it begins and ends with, or the whole of it."""

    parts: tuple[tuple[str, str] | str, ...]
    #: Whether anything may follow.
    open: bool
    call: Call

    def fits(self, parts: list[str]) -> bool:
        if len(parts) < len(self.parts) if self.open else len(parts) != len(self.parts):
            return False
        for wanted, part in zip(self.parts, parts, strict=False):
            if isinstance(wanted, str):
                if wanted != part:
                    return False
            else:
                before, after = wanted
                if not (len(part) > len(before) + len(after) and part.startswith(before) and part.endswith(after)):
                    return False
        return True


class Found:
    """A peer in the form that a call is looked up in."""

    __slots__ = ("_any", "_by_method", "_known", "category", "service")

    def __init__(self, peer: Peer) -> None:
        self.service = peer.service
        self.category = peer.category
        self._by_method: dict[str, list[_Pattern]] = {}
        self._any: list[_Pattern] = []
        self._known: dict[tuple[str, str], Call] = {}
        for pattern, name in peer.operations.items():
            method, made = _operation(peer.service, pattern, name)
            (self._by_method.setdefault(method, []) if method else self._any).append(made)
        for patterns in (*self._by_method.values(), self._any):
            patterns.sort(key=_vague)

    def call(self, method: str, path: str) -> Call:
        """What a call of this method and path does; what is in no list is called by its method."""
        key = (method, path)
        found = self._known.get(key)
        if found is None:
            found = self._look(method, path)
            if len(path) <= _LONGEST_KEPT:
                if len(self._known) >= _KEPT:  # it is found anew in no time, and holds what is in use
                    self._known.clear()
                self._known[key] = found
        return found

    def _look(self, method: str, path: str) -> Call:
        parts = path.split("/", _MOST_PARTS + 1)
        for patterns in (self._by_method.get(method, ()), self._any):
            for pattern in patterns:
                if pattern.fits(parts):
                    return pattern.call
        return Call(method, None)


class _Host(NamedTuple):
    """One host pattern of a peer, and the beginning of the paths that it is for."""

    pattern: re.Pattern[str]
    prefix: str
    found: Found
    #: The first that fits is taken: whole names before patterns, long ones before short ones.
    order: tuple[bool, int, int]


def _vague(pattern: _Pattern) -> tuple[bool, list[bool], int]:
    return pattern.open, [not isinstance(part, str) for part in pattern.parts], -len(pattern.parts)


def _operation(service: str, pattern: str, name: str) -> tuple[str, _Pattern]:
    refuse = partial(_refuse, f"operation {pattern!r} of {service!r}")
    if not name or len(name) > _LONGEST or not _WORD.fullmatch(name):
        raise refuse(f"is called {name!r}", "give it a short plain name, such as create_charge")
    method, _, path = pattern.partition(" ") if not pattern.startswith("/") else ("", "", pattern)
    if method and method not in _METHODS:
        raise refuse(f"has the method {method!r}", "begin with one such as GET or POST, or with the path")
    open_ended = path.endswith("/*")
    written = path.removesuffix("/*").split("/")
    if not path.startswith("/") or len(path) > 2 * _LONGEST or len(written) > _MOST_PARTS or not path.isprintable():
        raise refuse(f"has the path {path[: 2 * _LONGEST]!r}", "write it as in GET /v1/customers/{id}")
    parts: list[tuple[str, str] | str] = []
    for each in written:
        read = _PART.fullmatch(each)
        if read is None or set(each) & set("?# "):
            raise refuse(f"has {each!r} in its path", "one {name} a part, no query, and * only as the last part")
        parts.append(each if read[2] is None else (read[1], read[3]))
    return method, _Pattern(tuple(parts), open_ended, Call(name, path))


def _host(service: str, pattern: str, found: Found) -> _Host:
    name, slash, rest = pattern.lower().partition("/")
    refuse = partial(_refuse, f"host {pattern[:_LONGEST]!r} of {service!r}")
    if _network(pattern):
        raise refuse("is a network", "write its addresses one by one, or with a star, as in 10.0.0.*")
    if len(pattern) > 253 or not _HOST.fullmatch(name):
        raise refuse("cannot be one", "write it as in api.example.com or *.example.com, without scheme and port")
    name = name.strip("[]")
    parts = re.split(r"\*+", name)
    end = parts[-1].strip(".")
    if len(parts) > 4 or (name.startswith("*") and "." not in end and end not in _PRIVATE_ENDS):
        raise refuse("would fit too much", "end it with a domain, with no more than 3 stars before that")
    # What the user writes of a path has its case.
    prefix = pattern.partition("/")[2]
    return _Host(
        re.compile(".*".join(re.escape(part) for part in parts)), f"/{prefix.rstrip('/')}" if slash and rest else "",
        found, ("*" in name, -len(name.replace("*", "")), -len(prefix)),
    )  # fmt: skip


def _network(pattern: str) -> bool:
    try:
        ip_network(pattern, strict=False)
    except ValueError:
        return False
    return "/" in pattern


def _refuse(what: str, why: str, remedy: str) -> ValueError:
    return ValueError(f"{what} {why}: {remedy}")


def _entries(peers: Iterable[Peer]) -> list[_Host]:
    hosts: list[_Host] = []
    for peer in peers:
        found = Found(peer)
        hosts += [_host(peer.service, pattern, found) for pattern in peer.hosts]
    hosts.sort(key=lambda each: each.order)
    return hosts


class _Hosts:
    """Host patterns in the order in which they are tried; most hosts fit none, which one look tells."""

    __slots__ = ("_any", "_hosts")

    def __init__(self, peers: Iterable[Peer] = ()) -> None:
        self._hosts = _entries(peers)
        self._any = re.compile("|".join(each.pattern.pattern for each in self._hosts) or r"(?!)")

    def of(self, host: str) -> list[tuple[str, Found]]:
        if not self._any.fullmatch(host):
            return []
        return [(each.prefix, each.found) for each in self._hosts if each.pattern.fullmatch(host)]


_own: dict[str, Peer] = {}
_own_hosts = _Hosts()
_known_hosts: _Hosts | None = None
#: Counts declarations, so that whoever keeps what was found knows when to ask again.
generation: int = 0


def declare(
    service: str, *hosts: str, category: str | None = None, operations: Mapping[str, str] | None = None
) -> Peer:
    """Declares a service that the app calls; declaring it again replaces it.

    Raises:
        ValueError: for a name, a host or an operation that cannot be understood; the message says what to write.
    """
    global _own_hosts, generation
    for what, value in (("service", service), ("category", category)):
        if value is not None and (not value or len(value) > _LONGEST or not _WORD.fullmatch(value)):
            raise _refuse(f"{what} {value[:_LONGEST]!r}", "cannot be a name", "give it a short plain one, such as push")
    if not hosts:
        raise _refuse(f"service {service!r}", "has no host", "give at least one, such as api.example.com")
    peer = Peer(service, hosts, category, dict(operations or {}))
    made = _Hosts([*(each for name, each in _own.items() if name != service), peer])
    _own.pop(service, None)
    _own[service] = peer
    _own_hosts = made
    generation += 1
    return peer


def declared() -> tuple[Peer, ...]:
    """The services that were declared, in the order of their declaration; not the well-known ones."""
    return tuple(_own.values())


def find(host: str) -> tuple[tuple[str, Found], ...]:
    """The peers of a host, each with the beginning of the paths that it is for; the first that fits is meant."""
    global _known_hosts
    if _known_hosts is None:
        _known_hosts = _Hosts(Peer(*each) for each in known_peers.PEERS)
    host = host.lower().removesuffix(".")[:253]
    return (*_own_hosts.of(host), *_known_hosts.of(host))


@lru_cache(maxsize=_KEPT)
def _marked(template: str) -> tuple[tuple[str, str] | None, ...]:
    """Per part of a template: what stands around a secret, or None for what may be seen."""
    marked: list[tuple[str, str] | None] = []
    for part in template.split("/"):
        read = _PART.fullmatch(part)
        if read is None or read[2] is None or not _SECRET.fullmatch(read[2]):
            marked.append(None)
        else:
            marked.append((read[1], read[3]))
    return tuple(marked)


def secrets(template: str | None, path: str) -> tuple[tuple[str, str], ...]:
    """The parts of a path that must not be seen, each with what is shown in its place.

    Where a template was declared its placeholders say which: `{token}`, `{bot}`, `{api_key}`. What no template knows is
    a guess, as `{token}` is in `paths`.
    """
    return (_secrets if len(path) <= _LONGEST_KEPT else _secrets.__wrapped__)(template, path)


@lru_cache(maxsize=_KEPT)
def _secrets(template: str | None, path: str) -> tuple[tuple[str, str], ...]:
    marked = () if template is None else _marked(template.removesuffix("/*"))
    found: dict[str, str] = {}
    for index, part in enumerate(path.split("/")):
        if index >= len(marked):
            if part and paths.is_token(part):
                found[part] = _MASK
        else:
            around = marked[index]
            if around is not None:
                found[part] = f"{around[0]}{_MASK}{around[1]}"
    return tuple(found.items())
