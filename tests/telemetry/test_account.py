"""The account of the spans: a sum that cannot be wrong."""

from __future__ import annotations

from collections import deque

from opentelemetry.sdk.trace import ReadableSpan

from otel_perf.telemetry.account import Account, Tally, emptied


def test_each_span_is_in_one_place():
    """Queued, in hand, delivered, lost: what is made is their sum at each step."""
    account = Account()
    account._queue.extend(ReadableSpan(str(number)) for number in range(5))
    account._refused.append(None)
    assert account.tally() == Tally(6, 0, 1, 5)
    for _ in range(3):
        account._queue.popleft()
    account._in_hand += 3
    assert account.tally() == Tally(6, 0, 1, 5)
    with account._changed:
        account._settle(3, 1, "rejected")
    assert account.tally() == Tally(6, 2, 2, 2)
    assert (account.made, account.queued, account.lost) == (6, 2, {"queue_full": 1, "rejected": 1})


def test_what_comes_after_the_end_is_lost():
    """Nobody takes it from the queue any more."""
    account = Account()
    account._closed = account._encoded_all = True
    account._queue.append(ReadableSpan("late"))
    assert account.tally() == Tally(1, 0, 1, 0)
    assert account.lost == {"closed": 1}


def test_opened_anew_it_is_empty():
    """As in a forked child, with a lock of its own."""
    account = Account()
    account._refused.append(None)
    lock = account._changed
    account._open()
    assert account.tally() == Tally(0, 0, 0, 0)
    assert account._changed is not lock


def test_emptying_counts():
    """What was there."""
    queue = deque([1, 2, 3])
    assert (emptied(queue), emptied(queue), len(queue)) == (3, 0, 0)
