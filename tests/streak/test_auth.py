"""Tokens: signed, limited in time where that is wanted, and worth nothing when anything about them is changed."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.streak import auth
from examples.streak.auth import NotTrustedError, User, mint, verify
from tests.streak.conftest import NOW, SECRET

_AT_S = NOW.timestamp()


@pytest.mark.parametrize("admin", [False, True])
def test_token_ends_when_it_was_to(admin: bool) -> None:
    """A token that is limited in time holds up to that moment, and one that is not holds for ever."""
    token = mint(SECRET, "ada", admin=admin, until=NOW + timedelta(hours=1))
    assert verify(SECRET, token, _AT_S) == User("ada", admin=admin)
    assert verify(SECRET, token, _AT_S + 3_599) == User("ada", admin=admin)
    with pytest.raises(NotTrustedError, match="expired"):
        verify(SECRET, token, _AT_S + 3_600)
    assert verify(SECRET, mint(SECRET, "ada", admin=admin), 1e12) == User("ada", admin=admin)


def test_without_a_moment_it_is_now() -> None:
    """Whoever gives no moment asks about now."""
    now = datetime.now(timezone.utc)
    assert verify(SECRET, mint(SECRET, "ada", until=now + timedelta(hours=1))) == User("ada")
    with pytest.raises(NotTrustedError, match="expired"):
        verify(SECRET, mint(SECRET, "ada", until=now - timedelta(hours=1)))


def test_end_is_signed() -> None:
    """The end of a token cannot be moved, dropped or added."""
    limited, endless = mint(SECRET, "ada", until=NOW), mint(SECRET, "ada")
    role, name, until, signature = limited.split(".")
    for forged in (
        f"{role}.{name}.{int(until) + 9_999_999}.{signature}",
        f"{role}.{name}.{signature}",
        endless.replace("ada.", f"ada.{until}."),
    ):
        with pytest.raises(NotTrustedError, match="not signed"):
            verify(SECRET, forged, _AT_S)


@given(st.text(max_size=200))
def test_noise_is_no_token(noise: str) -> None:
    """Whatever is sent as a token is refused, and never repeated."""
    with pytest.raises(NotTrustedError) as refusal:
        verify(SECRET, noise, _AT_S)
    assert len(noise) < 30 or noise not in str(refusal.value)


@given(st.integers(min_value=0, max_value=10_000), st.characters(codec="ascii"))
def test_changed_token_is_refused(place: int, letter: str) -> None:
    """No letter of a token can be another."""
    token = mint(SECRET, "ada", until=NOW + timedelta(days=1))
    place %= len(token)
    changed = token[:place] + letter + token[place + 1 :]
    if changed != token:
        with pytest.raises(NotTrustedError):
            verify(SECRET, changed, _AT_S)


def test_signed_nonsense_is_refused() -> None:
    """What the service would never sign is refused though the signature is right."""
    for claim in ("user", "root.ada", "user.Ada", "user.ada.", "user.ada.soon", "user.ada.1.2", "user." + "x" * 33):
        with pytest.raises(NotTrustedError, match="names no user"):
            verify(SECRET, f"{claim}.{auth._sign(SECRET, claim)}", _AT_S)


def test_large_token_is_refused() -> None:
    """A token of a megabyte is refused like any other."""
    with pytest.raises(NotTrustedError):
        verify(SECRET, "x" * 1_000_000, _AT_S)


def test_command_makes_tokens_that_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints a token that holds for the days it was told."""
    monkeypatch.setenv("STREAK_SECRET", SECRET)
    assert auth._main(["ada", "--days", "30"]) == 0
    token = capsys.readouterr().out.strip()
    now_s = datetime.now(timezone.utc).timestamp()
    assert verify(SECRET, token, now_s + 29 * 86_400) == User("ada")
    with pytest.raises(NotTrustedError, match="expired"):
        verify(SECRET, token, now_s + 31 * 86_400)
    for days in ("0", "-1", "3651", "soon"):
        with pytest.raises(SystemExit):
            auth._main(["ada", f"--days={days}"])
    assert "Traceback" not in capsys.readouterr().err
