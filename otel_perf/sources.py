"""Where settings come from: arguments, the environment, `pyproject.toml`. The only reader of `os.environ`."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

__all__ = ["SettingsError", "checked", "find", "opted_in", "parse", "standard"]

_toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

# Variables of our tools, and those that Kubernetes makes for a service whose name begins with otel-perf.
_NOT_SETTINGS = re.compile(r"OTEL_PERF_(REQUIRE|TARGETS|TOOLS|(.+_)?(SERVICE_(HOST|PORT)|PORT)(_.+)?)", re.ASCII)


class SettingsError(ValueError):
    """A setting has a value that cannot be used; the message names it and says what to do."""


@contextmanager
def opted_in(*conventions: str) -> Generator[None, None, None]:
    """Opts into stable semantic conventions for the length of the block: upstream reads the variable at first use."""
    name = "OTEL_SEMCONV_STABILITY_OPT_IN"
    before = os.environ.get(name)
    chosen = [part.strip() for part in (before or "").split(",") if part.strip()]
    chosen += [each for each in conventions if each not in chosen and f"{each}/dup" not in chosen]
    os.environ[name] = ",".join(chosen)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def checked(arguments: Mapping[str, object], names: Sequence[str]) -> Mapping[str, object]:
    """The table of `pyproject.toml`, after a look for unknown names in every source.

    Raises:
        SettingsError: for an unknown name, or a file that cannot be read.
    """
    table = _pyproject_table()
    _refuse_unknown(arguments, names, "configure()")
    _refuse_unknown(table, names, "[tool.otel_perf] in pyproject.toml")
    set_there = [name for name, value in os.environ.items() if name.startswith("OTEL_PERF_") and value.strip()]
    _refuse_unknown(
        [name for name in set_there if not _NOT_SETTINGS.fullmatch(name)],
        [f"OTEL_PERF_{name.upper()}" for name in names],
        "otel_perf in the environment",
    )
    return table


def _pyproject_table() -> Mapping[str, object]:
    try:
        source = Path("pyproject.toml").read_bytes()
    except OSError:
        return {}
    if b"otel_perf" not in source:
        return {}
    try:
        whole: Any = _toml.loads(source.decode("utf-8"))
    except ValueError as error:  # also what is no UTF-8
        raise SettingsError(f"pyproject.toml cannot be read: {error}") from error
    tools: Any = whole.get("tool")
    try:
        table: object = tools.get("otel_perf", {})
    except AttributeError:  # there are none
        return {}
    if not isinstance(table, dict):
        raise SettingsError("[tool.otel_perf] in pyproject.toml must be a table")
    return cast("Mapping[str, object]", table)


def _refuse_unknown(given: Iterable[str], names: Sequence[str], where: str) -> None:
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names)}"
            raise SettingsError(f"{where} has no setting {name!r}{hint}")


def find(
    name: str, standard: str | None, arguments: Mapping[str, object], table: Mapping[str, object]
) -> tuple[object, str] | None:
    """The value of a setting and the name of the source that gave it, or None where none did."""
    if arguments.get(name) is not None and arguments[name] != "":
        return arguments[name], name
    own = f"OTEL_PERF_{name.upper()}"
    for variable in (own, standard):
        # The specification wants an empty variable to count as unset; an empty argument often comes from one.
        if variable and os.environ.get(variable, "").strip():
            return os.environ[variable], variable
    if name in table:
        return table[name], f"{name} in [tool.otel_perf]"
    return None


def standard(variable: str) -> str:
    """The value of a standard variable that is no setting of ours; empty where it is not set."""
    return os.environ.get(variable, "").strip()


def parse(each: Any, value: object, source: str) -> object:
    """What a field of the settings makes of a value.

    Raises:
        SettingsError: for a value that cannot be used; secrets are not repeated in it.
    """
    hidden = each.metadata["secret"] or "@" in str(value)  # an address may have a password in it
    shown = "(hidden)" if hidden else repr(value)
    try:
        if source == each.metadata["standard"] and each.metadata["convert"]:
            value = each.metadata["convert"](float(str(value)))
        parsed = each.metadata["parse"](value)
    except (ValueError, TypeError) as error:
        reason = str(error) or "it cannot be read"
        message = f"{source}={shown} cannot be used: {reason}. Correct it, or remove it to get the default"
        raise SettingsError(message) from None
    return parsed
