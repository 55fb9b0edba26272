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
    """Of very little a whole report comes through, after some time another; of nothing nothing does."""
    clock = Clock()
    rate = Rate(1, clock)
    assert [rate.take("a", 8), rate.take("a"), rate.take("b")] == [True, False, False]
    clock.now_s = 480.0
    assert [rate.take("b", 8), rate.take("b")] == [True, False]
    assert not Rate(0, Clock()).take("a")
    assert not Rate(0, Clock()).permits("a")


def test_what_is_refused_takes_nothing():
    """Who is refused may send something smaller at once, be it for the client's limit or for that of all."""
    rate = Rate(32, Clock())
    assert [rate.take("a", 9), rate.take("a", 8)] == [False, True]
    assert [rate.take(client, 8) for client in "bc"] == [True, True]
    assert [rate.take("d", 6), rate.take("e", 3), rate.take("e", 2)] == [True, False, True]
    assert not rate.permits("f")


def test_networks_of_ipv6():
    """All 2^64 addresses of a network are one client; a mapped address is that of IPv4, no address is itself."""
    rate = Rate(40, Clock())
    assert [rate.take(f"2001:db8::{each}", 4) for each in range(3)] == [True, True, False]
    assert rate.take("2001:db8:0:1::1", 4)
    assert rate.take("::ffff:203.0.113.5", 8)
    assert not rate.take("203.0.113.5", 4)
    assert rate.take("::ffff:203.0.113.6", 4)
    assert rate.take("fe80::1%eth0")
    assert rate.take("unix:/run/app.sock")


def test_many_clients_are_bounded():
    """100,000 addresses are held in the memory of some thousands."""
    rate = Rate(1_000_000, Clock())
    assert sum(rate.take(str(client)) for client in range(100_000)) == 100_000
    assert len(rate._clients) <= 4096
