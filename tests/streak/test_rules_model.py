"""The rules against a naive model: a diary that is written day by day, from what the README promises.

The model knows no shortcuts: it turns one day after the other, and looks up what is in the diary.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import date, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from examples.streak import rules

BEGIN = date(2026, 2, 26)  # a Thursday: the first week is a short one


@dataclass
class Diary:
    """One user's diary, and what follows from it."""

    today: date = BEGIN
    active: set[date] = field(default_factory=set)
    resting: set[date] = field(default_factory=set)
    """Days that a freeze held."""
    bought: set[date] = field(default_factory=set)
    """Days that were bought back."""
    freezes: list[date] = field(default_factory=list)
    """Those held, each with the day that earned it."""
    earned: int = 0
    used: int = 0
    streak: int = 0
    longest: int = 0
    lost: tuple[int, date, str] | None = None
    """How long the streak was, the first day without it, and why it ended."""
    done: dict[date, set[str]] = field(default_factory=dict)
    bonuses: list[date] = field(default_factory=list)
    gained: list[int] = field(default_factory=list)
    paid: list[int] = field(default_factory=list)
    yesterday: Diary | None = None
    """As it was when yesterday was about to end."""

    @property
    def xp(self) -> int:
        return sum(self.gained) - sum(self.paid)

    @property
    def monday(self) -> date:
        day = self.today
        while day.weekday() != 0:
            day -= timedelta(days=1)
        return day

    @property
    def counted(self) -> set[date]:
        return self.active | self.resting | self.bought

    def midnight(self) -> None:
        """The day is over: it was active, or resting, or a freeze is spent on it, or the streak ends."""
        self.yesterday = None
        self.yesterday = deepcopy(self)
        if self.streak and self.today not in self.counted:
            if self.freezes:
                self.freezes.pop()
                self.used += 1
                self.resting.add(self.today)
            else:
                rested = self.today - timedelta(days=1) in self.resting - self.active - self.bought
                why = "freezes_exhausted" if rested else "missed"
                self.lost = (self.streak, self.today + timedelta(days=1), why)
                self.streak = 0
        self.today += timedelta(days=1)

    def earn_freeze(self) -> None:
        if len(self.freezes) < 3:
            self.freezes.append(self.today)
            self.earned += 1

    def log(self, category: str, minutes: int) -> tuple[int, int]:
        if self.today not in self.active:
            self.active.add(self.today)
            self.streak += 1
            if self.streak in range(7, 10_000, 7):  # 7, 14, 21, ...
                self.earn_freeze()
        self.longest = max(self.longest, self.streak)
        week = self.done.setdefault(self.monday, set())
        if len(week) == 3 and category not in week:
            self.bonuses.append(self.monday)
        week.add(category)
        base = 10 + min(60, minutes)
        bonus = base // 2 if len(week) == 4 else 0
        self.gained.append(base + bonus)
        return base + bonus, bonus

    def rest(self) -> str | None:
        if self.streak == 0:
            return "no_streak"
        if self.today in self.counted:
            return "day_is_held"
        if not self.freezes:
            return "no_freeze"
        self.freezes.pop()
        self.used += 1
        self.resting.add(self.today)
        return None

    def price(self) -> int:
        return 0 if self.lost is None else min(10 * self.lost[0], 500)

    def buy_back(self) -> str | None:
        if self.lost is None:
            return "nothing_lost"
        length, since, _ = self.lost
        if self.today not in (since, since + timedelta(days=1)):
            return "too_late"
        if self.xp < self.price():
            return "too_few_xp"
        self.paid.append(self.price())
        sevenths = [day for day in range(length + 1, length + self.streak + 1) if day % 7 == 0]
        already = [day for day in range(1, self.streak + 1) if day % 7 == 0]
        if len(sevenths) > len(already):
            self.earn_freeze()
        self.streak += length
        self.longest = max(self.longest, self.streak)
        day = since - timedelta(days=1)
        while day < self.today:
            self.bought.add(day)
            day += timedelta(days=1)
        self.lost = None
        return None


class Lives(RuleBasedStateMachine):
    """Whatever a user does, in whatever order, the rules and the diary say the same.

    `kept` is a user whom maintenance visits each day, `left` one whom it visits only now and then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.diary = Diary()
        self.kept = rules.State()
        self.left = rules.State()
        self.ended: rules.Settled | None = None
        self.spent = 0
        self.applied = 0
        self.came_today = False

    @property
    def today(self) -> date:
        return self.diary.today

    def _pass_a_day(self) -> None:
        self.came_today = False
        self.diary.midnight()
        settled = rules.settle(self.kept, self.today)
        self.spent += settled.freezes_spent
        if settled.broken:
            self.ended = settled
        self.kept = settled.state

    def _log(self, category: rules.Category, minutes: int) -> None:
        streak, bonuses, earned = self.diary.streak, len(self.diary.bonuses), self.diary.earned
        xp, bonus_xp = self.diary.log(category, minutes)
        for logged in self._both(lambda state: rules.log_activity(state, category, minutes, self.today)):
            assert (logged.xp, logged.bonus_xp) == (xp, bonus_xp)
            assert logged.grew == (self.diary.streak > streak)
            assert logged.freeze_earned == (self.diary.earned > earned)
            assert logged.bonus_earned == (len(self.diary.bonuses) > bonuses)
            assert (logged.milestone is not None) == (logged.grew and self.diary.streak in (7, 30, 100, 365))

    def _both(self, do):  # type: ignore[no-untyped-def] # three kinds of outcome, each with its state
        self.came_today = True
        kept, left = do(self.kept), do(self.left)
        assert not kept.settled.changed, "maintenance of today leaves nothing to settle"
        self.kept, self.left = kept.state, left.state
        assert self.kept == self.left
        return kept, left

    @rule(days=st.integers(1, 3) | st.integers(1, 12))
    def pass_days(self, days: int) -> None:
        for _ in range(days):
            self._pass_a_day()

    @rule(category=st.sampled_from(rules.CATEGORIES), minutes=st.integers(0, 200))
    def log(self, category: rules.Category, minutes: int) -> None:
        self._log(category, minutes)

    @rule(days=st.integers(2, 16) | st.integers(40, 60), first=st.integers(0, 3), kinds=st.integers(1, 4))
    def keep_on(self, days: int, first: int, kinds: int) -> None:
        """Does something each day for some days."""
        for passed in range(days):
            self._log(rules.CATEGORIES[(first + passed % kinds) % 4], 5)
            self._pass_a_day()

    @rule()
    def rest(self) -> None:
        refusal = self.diary.rest()
        for applied in self._both(lambda state: rules.apply_freeze(state, self.today)):
            assert applied.refusal == refusal
            assert applied.applied == (refusal is None)
        self.applied += refusal is None

    @rule(active_first=st.integers(0, 3), then=st.booleans())
    def fall(self, active_first: int, then: bool) -> None:
        """Does nothing until the streak ends; then perhaps begins anew, and perhaps buys it back."""
        while self.diary.streak:
            self._pass_a_day()
        for _ in range(active_first):
            self._log("move", 0)
            self._pass_a_day()
        if then:
            self._buy_back()

    @rule()
    def buy_back(self) -> None:
        self._buy_back()

    def _buy_back(self) -> None:
        price, length, earned = self.diary.price(), self.diary.lost and self.diary.lost[0], self.diary.earned
        refusal = self.diary.buy_back()
        for recovered in self._both(lambda state: rules.recover(state, self.today)):
            assert recovered.refusal == refusal
            assert (recovered.recovered, recovered.paid_xp) == ((length, price) if refusal is None else (0, 0))
            assert recovered.freeze_earned == (self.diary.earned > earned)

    @precondition(lambda self: self.diary.yesterday is not None and not self.came_today)
    @rule(category=st.sampled_from(rules.CATEGORIES), minutes=st.integers(0, 200))
    def log_late(self, category: rules.Category, minutes: int) -> None:
        """Does something in the last moment of yesterday; it is written when maintenance has been here."""
        yesterday, lost = self.diary.yesterday, self.diary.lost
        assert yesterday is not None
        before = yesterday.today
        yesterday.log(category, minutes)
        yesterday.midnight()
        self.diary = yesterday
        logged = rules.log_activity(self.kept, category, minutes, before)
        assert logged.restored == (lost[0] if lost and lost[1] == self.today else 0)
        self.spent -= logged.freeze_returned
        self.kept = logged.state
        # It comes to what it had come to in time, but that a streak that was lost before is forgotten.
        in_time = rules.settle(rules.log_activity(self.left, category, minutes, before).state, self.today).state
        if logged.restored:
            assert self.diary.yesterday is not None
            self.diary.lost = self.diary.yesterday.lost = None
            in_time = replace(in_time, lost_streak=0, lost_on=None)
        assert replace(in_time, missed_on=None) == replace(self.kept, missed_on=None)
        self.left = self.kept

    @rule()
    def maintain(self) -> None:
        self.left = rules.settle(self.left, self.today).state
        assert self.left == self.kept
        assert not rules.settle(self.left, self.today).changed, "a second run of a day finds nothing"

    @invariant()
    def the_diary_agrees(self) -> None:
        diary, state = self.diary, self.kept
        assert (state.streak, state.longest) == (diary.streak, diary.longest)
        assert (state.freezes, state.freezes_earned, state.freezes_used) == (
            len(diary.freezes), diary.earned, diary.used
        )  # fmt: skip
        assert (state.lost_streak, state.lost_on) == (diary.lost[:2] if diary.lost else (0, None))
        if diary.lost is not None:
            assert self.ended is not None
            assert (self.ended.broken, self.ended.reason) == (diary.lost[0], diary.lost[2])
        assert state.xp == diary.xp
        assert state.last_active == max(diary.active, default=None)
        assert state.active_on(self.today) == (self.today in diary.active)
        assert state.held_on(self.today) == (self.today in diary.counted)
        week = state.in_week(diary.monday)
        assert week.done == diary.done.get(diary.monday, set())
        assert week.bonus == (diary.monday in diary.bonuses)

    @invariant()
    def it_adds_up(self) -> None:
        state = self.kept
        assert 0 <= state.streak <= state.longest
        assert 0 <= state.freezes == state.freezes_earned - state.freezes_used <= 3
        assert state.freezes_used == self.spent + self.applied
        assert state.xp >= 0
        assert len(self.diary.bonuses) == len(set(self.diary.bonuses))

    @invariant()
    def maintenance_makes_up_for_what_it_missed(self) -> None:
        at_once = rules.settle(self.left, self.today)
        assert at_once.state == self.kept
        if at_once.broken:
            assert self.ended is not None
            assert (at_once.broken, at_once.reason) == (self.ended.broken, self.ended.reason)


Lives.TestCase.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
TestLives = Lives.TestCase
