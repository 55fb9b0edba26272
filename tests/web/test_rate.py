"""The limit of what visitors may send."""

from __future__ import annotations

from otel_perf.web.rate import Rate


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def test_one_client_and_all():
    """One client may use a quarter, all together the whole; it comes back evenly over a minute."""
    clock = Clock()
    rate = Rate(40, clock)
    assert [rate.take("a") for _ in range(12)] == [True] * 10 + [False] * 2
    assert sum(rate.take(client) for client in "bcdefgh" for _ in range(10)) == 30
    clock.now_s = 6.0
    assert rate.take("a")
    assert not rate.take("a")  # a quarter of four
    assert sum(rate.take(client) for client in "bcdefgh" for _ in range(10)) == 3
    clock.now_s = 1000.0
    assert [rate.take("a", 10), rate.take("a", 1)] == [True, False]


def test_a_small_limit():
    """Of very little one client gets at least one."""
    rate = Rate(1, Clock())
    assert [rate.take("a"), rate.take("a"), rate.take("b")] == [True, False, False]
    assert not Rate(0, Clock()).take("a")


def test_many_clients_are_bounded():
    """100,000 addresses are held in the memory of some thousands."""
    rate = Rate(1_000_000, Clock())
    assert sum(rate.take(str(client)) for client in range(100_000)) == 100_000
    assert len(rate._clients) <= 4096
