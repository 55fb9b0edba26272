"""Names of functions, as labels want them: of one kind, and bounded."""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["innermost", "qualified_name"]

_LONGEST = 256
_DEEPEST = 16
_PARTIAL: Any = functools.partial  # of which type checkers would want to know what it is a partial of


def innermost(function: Any) -> Any:
    """The function that partials are made of."""
    for _ in range(_DEEPEST):
        if not isinstance(function, _PARTIAL):
            break
        function = function.func
    return function


def qualified_name(function: Any) -> str:
    """Module and qualified name of a function, of what is in a partial, or of the class of a callable object."""
    function = innermost(function)
    named = isinstance(getattr(function, "__qualname__", None), str)
    owner: object = function if named else function.__class__
    name = str(getattr(owner, "__qualname__", "?")).replace("<locals>.", "")
    return f"{getattr(owner, '__module__', None) or '?'}.{name}"[:_LONGEST]
