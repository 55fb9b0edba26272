"""Numbers as exporters can write them: what an application hands over may be of any numeric class."""

from __future__ import annotations

from typing import Any

__all__ = ["plain"]

_LOW, _HIGH = -(2**63), 2**63 - 1


def plain(value: Any) -> int | float:
    """A plain int of 64 bits, or a plain float: flags become 0 and 1, numpy's and decimal numbers floats.

    One number that cannot be written would cost the whole scrape, or each export from then on.

    Raises:
        TypeError, ValueError: for what is no number.
    """
    kind = value.__class__
    if kind is float:
        return value  # type: ignore[no-any-return]  # its class says so
    if isinstance(value, int):
        return int(value) if _LOW <= value <= _HIGH else float(value)
    if isinstance(value, (str, bytes, bytearray)):  # `float` would read it
        raise TypeError(f"expected a number, not {value!r}")
    return float(value)
