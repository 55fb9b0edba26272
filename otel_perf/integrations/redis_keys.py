"""The keys that Redis commands read: which strategies they belong to, and which of them were found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from otel_perf.integrations.commands import command_name
from otel_perf.integrations.lookup import MAX_KEYS, Lookup, strategy_name

__all__ = ["Commands", "Key", "found", "lookup"]

Commands = Sequence[tuple[Any, ...]]

_READS = frozenset({"GET", "GETEX", "GETDEL", "HGET", "HGETALL", "MGET", "EXISTS"})
_WRITES = frozenset(
    {"SET", "SETEX", "PSETEX", "SETNX", "GETSET", "MSET", "APPEND", "DEL", "UNLINK", "EXPIRE", "PEXPIRE", "PERSIST",
     "INCR", "INCRBY", "DECR", "DECRBY", "HSET", "HDEL"}
)  # fmt: skip

_MANY = frozenset({"MGET", "EXISTS"})  # they take keys only


class Key(NamedTuple):
    """A key that is read: by which command, as its which key, and which strategy it belongs to."""

    place: int
    name: str
    position: int
    strategy: str


def lookup(name: str, commands: Commands) -> tuple[Lookup, list[Key]] | None:
    """The cache operation that these commands are, or None where no key belongs to a declared strategy."""
    keys = _asked(commands)
    strategies = [key.strategy for key in keys]
    if not strategies:
        written = (strategy_name(each[1]) for each in commands if len(each) > 1 and command_name(each[0]) in _WRITES)
        strategies = [found for found in written if found is not None][:1]
    if not strategies:
        return None
    return Lookup("redis", name.partition(" ")[0].lower(), strategies, span=False), keys


def found(keys: Sequence[Key], answers: Sequence[Any]) -> list[bool | None]:
    """For each key whether it was there; None where its command failed, which is neither hit nor miss."""
    return [_hit(key, answers) for key in keys]


def _asked(commands: Commands) -> list[Key]:
    keys: list[Key] = []
    for place, command in enumerate(commands):
        name = command_name(command[0])
        if name in _READS:
            read = command[1:] if name in _MANY else command[1:2]
            for position, key in enumerate(read[: MAX_KEYS - len(keys)]):
                strategy = strategy_name(key)
                if strategy is not None:
                    keys.append(Key(place, name, position, strategy))
    return keys


def _hit(key: Key, answers: Sequence[Any]) -> bool | None:
    answer = answers[key.place]
    if isinstance(answer, BaseException):  # a pipeline that does not raise answers with them
        return None
    if key.name == "MGET":
        return answer[key.position] is not None
    if key.name == "EXISTS":  # it says how many, not which: the share is true all the same
        return key.position < int(answer)
    return bool(answer) if key.name == "HGETALL" else answer is not None
