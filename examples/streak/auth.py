"""Who is asking: bearer tokens, signed with the service's secret.

A token is `role.name.signature` or `role.name.until.signature`: the role is `user` or `admin`, `until` the Unix time
from which on it is good for nothing, the signature the HMAC-SHA256 of what stands before it, in hexadecimal. It says
who someone is and nothing else. One without `until` holds until the secret changes: enough for a demonstration and for
a scheduler, not a replacement for an identity provider.

    STREAK_SECRET=... python -m examples.streak.auth ada --days 30
    STREAK_SECRET=... python -m examples.streak.auth root --admin
"""

from __future__ import annotations

import argparse
import hmac
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from .settings import BadSettingError, Settings

__all__ = ["NotTrustedError", "User", "mint", "verify"]

_NAME = re.compile(r"[a-z0-9_-]{1,32}", re.ASCII)
_ROLES = ("user", "admin")
_UNTIL = re.compile(r"[0-9]{1,12}", re.ASCII)
_MAX_DAYS = 3_650
_DAY_S = 86_400


class NotTrustedError(Exception):
    """The token is not one of ours; the text says why, and never holds the token."""


@dataclass(frozen=True, slots=True)
class User:
    """Whoever a token speaks for."""

    name: str
    admin: bool = False


def mint(secret: str, name: str, *, admin: bool = False, until: datetime | None = None) -> str:
    """Return the token of a user. Names are 1 to 32 of a-z, 0-9, `-` and `_`."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a user's name: use 1 to 32 of a-z, 0-9, - and _")
    claim = f"{_ROLES[admin]}.{name}"
    if until is not None:
        claim += f".{int(until.timestamp())}"
    return f"{claim}.{_sign(secret, claim)}"


def verify(secret: str, token: str, at_s: float | None = None) -> User:
    """Return the user that a token speaks for, now or at another moment, or raise `NotTrustedError`."""
    claim, _, signature = token.rpartition(".")
    # As bytes: a signature that came over the network may hold anything, and text that is not ASCII cannot be compared.
    if not hmac.compare_digest(_sign(secret, claim).encode(), signature.encode("utf-8", "replace")):
        raise NotTrustedError("the token is malformed or was not signed by this service")
    role, _, rest = claim.partition(".")
    name, limited, until = rest.partition(".")
    if role not in _ROLES or not _NAME.fullmatch(name) or (limited and not _UNTIL.fullmatch(until)):
        raise NotTrustedError("the token names no user")
    if limited and int(until) <= (time.time() if at_s is None else at_s):
        raise NotTrustedError("the token has expired")
    return User(name, admin=role == "admin")


def _sign(secret: str, claim: str) -> str:
    return hmac.digest(secret.encode(), claim.encode("utf-8", "replace"), "sha256").hex()


def _days(value: str) -> int:
    days = int(value)
    if not 1 <= days <= _MAX_DAYS:
        raise argparse.ArgumentTypeError(f"{days}: use 1 to {_MAX_DAYS}")
    return days


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.streak.auth", description="Print a user's token.")
    parser.add_argument("name")
    parser.add_argument("--admin", action="store_true", help="let the user run maintenance and see the KPIs")
    parser.add_argument("--days", type=_days, help="how long it holds (default: until the secret changes)")
    options = parser.parse_args(argv)
    try:
        if not os.environ.get("STREAK_SECRET", "").strip():
            raise BadSettingError("STREAK_SECRET is not set: give it what the service was started with")
        secret = Settings.from_environment(os.environ).secret
        until = None
        if options.days is not None:
            until = datetime.fromtimestamp(time.time() + options.days * _DAY_S, timezone.utc)
        print(mint(secret, options.name, admin=options.admin, until=until))
    except ValueError as problem:
        print(f"streak: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
