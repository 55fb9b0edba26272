"""Who is asking: bearer tokens, signed with the service's secret.

A token is `role.name.signature`: the role is `user` or `admin`, the signature is the HMAC-SHA256 of `role.name` in
hexadecimal. It says who someone is and nothing else, and holds until the secret changes: enough for a demonstration,
not a replacement for an identity provider.

    STREAK_SECRET=... python -m examples.streak.auth ada
    STREAK_SECRET=... python -m examples.streak.auth ada --admin
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .settings import BadSettingError, Settings

__all__ = ["NotTrustedError", "User", "mint", "verify"]

_NAME = re.compile(r"[a-z0-9_-]{1,32}", re.ASCII)
_ROLES = ("user", "admin")


class NotTrustedError(Exception):
    """The token is not one of ours; the text says why, and never holds the token."""


@dataclass(frozen=True, slots=True)
class User:
    """Whoever a token speaks for."""

    name: str
    admin: bool = False


def mint(secret: str, name: str, *, admin: bool = False) -> str:
    """Return the token of a user. Names are 1 to 32 of a-z, 0-9, `-` and `_`."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a user's name: use 1 to 32 of a-z, 0-9, - and _")
    claim = f"{_ROLES[admin]}.{name}"
    return f"{claim}.{_sign(secret, claim)}"


def verify(secret: str, token: str) -> User:
    """Return the user that a token speaks for, or raise `NotTrustedError`."""
    claim, _, signature = token.rpartition(".")
    # As bytes: a signature that came over the network may hold anything, and text that is not ASCII cannot be compared.
    if not hmac.compare_digest(_sign(secret, claim).encode(), signature.encode("utf-8", "replace")):
        raise NotTrustedError("the token is malformed or was not signed by this service")
    role, _, name = claim.partition(".")
    if role not in _ROLES or not _NAME.fullmatch(name):
        raise NotTrustedError("the token names no user")
    return User(name, admin=role == "admin")


def _sign(secret: str, claim: str) -> str:
    return hmac.new(secret.encode(), claim.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.streak.auth", description="Print a user's token.")
    parser.add_argument("name")
    parser.add_argument("--admin", action="store_true", help="let the user run maintenance")
    options = parser.parse_args(argv)
    try:
        if not os.environ.get("STREAK_SECRET", "").strip():
            raise BadSettingError("STREAK_SECRET is not set: give it what the service was started with")
        secret = Settings.from_environment(os.environ).secret
        print(mint(secret, options.name, admin=options.admin))
    except ValueError as problem:
        print(f"streak: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
