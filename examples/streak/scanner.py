"""Walks the users in the order of their names, a batch after the other, over what a run has not accounted for yet."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from .records import Range

__all__ = ["FIRST", "Due", "Gap", "gaps", "scan"]

#: Before all names.
FIRST = ""


@dataclass(frozen=True, slots=True)
class Gap:
    """Users by name that nothing was done for: from after the first to the last with it; None for all that follow."""

    after: str
    until: str | None


Due = Callable[[str, "str | None"], Awaitable[Sequence[str]]]
"""Returns the next users after a name, up to another with it; fewer than a batch only where there are no more."""


def gaps(done: Sequence[Range]) -> Iterator[Gap]:
    """Return what is left beside the ranges that are done, which come in the database's order.

    Names are told apart here and never compared: which of two comes first is for the database's collation to say.
    """
    after = FIRST
    for part in done:
        if part.after != after:
            yield Gap(after, part.after)
        after = part.until
    # The users behind the last batch, of whom a run that was ended half-way knows nothing.
    yield Gap(after, None)


async def scan(left: Sequence[Gap], due: Due) -> AsyncGenerator[Range, None]:
    """Return the ranges that are to be accounted for. One batch of names is held at a time."""
    for gap in left:
        after = gap.after
        while names := await due(after, gap.until):
            yield Range(after, names[-1])
            after = names[-1]
