"""A user's state as columns, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from examples.streak import rules
from examples.streak.stores.tables import users

__all__ = ["STATE_COLUMNS", "to_columns", "to_state"]

_NAMES = tuple(rules.State.__dataclass_fields__)
_DONE = _NAMES.index("done")

#: The columns in the order of `rules.State`.
STATE_COLUMNS = tuple(users.c[name] for name in _NAMES)


def to_state(values: Sequence[Any]) -> rules.State:
    """Make a state from the values of `STATE_COLUMNS`."""
    state: list[Any] = list(values)
    state[_DONE] = frozenset(filter(None, state[_DONE].split(",")))
    return rules.State(*state)


def to_columns(state: rules.State) -> dict[str, Any]:
    """Return a state as the columns of the user's row."""
    return {name: ",".join(sorted(state.done)) if name == "done" else getattr(state, name) for name in _NAMES}
