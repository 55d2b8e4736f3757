"""The controller of admission by itself, in time that is a number: providers with limits that nobody tells, and its state
machine against what must always hold. What it does in front of real requests: test_admission.py."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from provider_models import (
    BREAKER,
    KINDS,
    NEVER,
    SECOND,
    AtOnce,
    Bucket,
    Chance,
    Controller,
    Fixed,
    Sliding,
    Trouble,
    simulate,
)

from graphbit._ffi import lib

MINUTE = 60 * SECOND


# ---------------------------------------------------------------- hidden limits


def takes(seconds: float) -> Callable[[random.Random], float]:
    """Answers that take about so long; refusals come at once."""
    return lambda dice: dice.uniform(0.67, 1.33) * seconds


@pytest.mark.parametrize("retry_after", [False, True], ids=["", "Retry-After"])
@pytest.mark.parametrize("per_minute", [1_200, 6_000])
@pytest.mark.parametrize("kind", ["a bucket", "a small bucket"])
def test_limits_that_only_refusals_tell_are_found(kind: str, per_minute: int, retry_after: bool, seed: int) -> None:
    limit = {"requests": KINDS[kind](per_minute)}
    it = simulate(Controller(), limit, seconds=210, seed=seed, retry_after=retry_after)
    assert it.rate(30, 210) >= 0.90 * per_minute
    assert it.share_refused(30, 210) <= 0.01


@pytest.mark.parametrize("retry_after", [False, True], ids=["", "Retry-After"])
@pytest.mark.parametrize("per_minute", [300, 600, 3_000])
def test_a_limit_of_the_last_minute_that_only_refusals_tell_is_found(
    per_minute: int, retry_after: bool, seed: int
) -> None:
    """It takes what a minute allows in a moment, so that there is nothing to learn from the first one."""
    limit = {"requests": Sliding(per_minute)}
    it = simulate(Controller(), limit, seconds=300, seed=seed, retry_after=retry_after)
    assert it.rate(60, 300) >= 0.95 * per_minute
    assert it.share_refused(60, 300) <= 0.01


@pytest.mark.parametrize("per_minute", [600, 3_000])
def test_a_limit_by_the_clocks_minute_that_only_refusals_tell_is_found(per_minute: int, seed: int) -> None:
    """It takes two of its minutes, which begin at 43 seconds: the first might have been trouble."""
    it = simulate(Controller(), {"requests": Fixed(per_minute)}, seconds=480, seed=seed)
    assert it.rate(43, 463) >= 0.95 * per_minute
    assert it.share_refused(103, 463) <= 0.01


@pytest.mark.parametrize("seconds", [10, 40])
@pytest.mark.parametrize("since", [3, 100])
def test_a_server_that_refused_everything_for_a_while_is_soon_used_as_before(
    since: int, seconds: int, seed: int
) -> None:
    trouble = {"requests": Trouble(since, since + seconds)}
    it = simulate(Controller(), trouble, seconds=since + seconds + 120, seed=seed, at_once=AtOnce(20))
    over = since + seconds
    assert it.rate(over + 20, over + 120) >= 0.90 * 20 * 60
    assert it.share_refused(over, over + 120) <= 0.015


@pytest.mark.parametrize("minutes", [1, 60])
@pytest.mark.parametrize(("seconds", "demand"), [(1, 10), (1, 100), (20, 10)])
def test_after_an_outage_the_next_probe_is_soon_followed_by_all_the_others(
    seconds: int, demand: int, minutes: int, seed: int
) -> None:
    over = 100 + 60 * minutes
    outage = {"requests": Trouble(100, over, 503)}
    it = simulate(Controller(), outage, seconds=over + 300, seed=seed, latency=takes(seconds), demand=demand)
    begins = over + 33 + 1.33 * seconds + 10  # the longest the breaker waits; what the probe takes
    assert it.rate(begins, begins + 100) >= 0.85 * demand * 60 / seconds  # a few more or less of slow ones are much
    assert not [at for at in it.refused if at >= over * SECOND]


@pytest.mark.parametrize(("outage", "seconds", "per_minute"), [(6, 1, 600), (10, 10, 6_000), (15, 20, 120)])
def test_overload_for_seconds_costs_no_minutes(outage: int, seconds: int, per_minute: int, seed: int) -> None:
    limits = {"requests": Sliding(per_minute), "requests, in trouble": Trouble(600, 600 + outage, 503)}
    over = 600 + outage
    it = simulate(Controller(), limits, seconds=over + 200, seed=seed, latency=takes(seconds), demand=100)
    assert it.rate(over + 60, over + 200) >= 0.85 * min(per_minute, 100 * 60 / seconds)


@pytest.mark.parametrize(("per_minute", "factor", "seconds"), [(300, 0.3, 10), (300, 0.5, 20), (1_200, 0.25, 20)])
def test_a_limit_by_the_clocks_minute_that_was_lowered_is_no_noise(
    per_minute: int, factor: float, seconds: int, seed: int
) -> None:
    """A row of refusals that lasts for seconds is none, whatever it is."""
    for at in (900, 905, 910, 920, 930, 940):
        limit = {"requests": Fixed(per_minute)}
        it = simulate(
            Controller(), limit, seconds=1_800, seed=seed, latency=takes(seconds), events=[(at, factor)], demand=1_500
        )
        assert it.rate(1_200, 1_800) >= 0.85 * per_minute * factor


def test_a_limit_of_few_a_minute_is_not_taken_for_another_kind(seed: int) -> None:
    """One more or less is a large part of it."""
    it = simulate(Controller(), {"requests": Fixed(5)}, seconds=5_400, seed=seed)
    assert it.rate(900, 5_400) >= 0.80 * 5
    assert it.share_refused(900, 5_400) <= 0.08


def test_overload_beside_a_limit_by_the_minute_sets_a_window_that_means_something(seed: int) -> None:
    """It only grows while it is what holds requests back, not while the limit does."""
    controller = Controller()
    limits = {"requests": Sliding(120), "requests, in trouble": Trouble(300, 304, 503)}
    it = simulate(controller, limits, seconds=1_500, seed=seed, demand=50)
    assert 1 <= controller.read(1_500 * SECOND).window <= 50
    assert it.rate(400, 1_500) >= 0.95 * 120
    assert it.share_refused(400, 1_500) <= 0.01


@pytest.mark.parametrize(("per_minute", "count"), [(200, 3), (600, 5)])
def test_a_limit_by_the_minute_does_not_hide_one_of_requests_at_once_that_comes_later(
    per_minute: int, count: int, seed: int
) -> None:
    limit = {"requests": Sliding(per_minute)}
    it = simulate(Controller(), limit, seconds=1_500, seed=seed, at_once=AtOnce(count, since=400))
    assert it.rate(300, 400) >= 0.90 * per_minute
    assert it.rate(600, 1_500) >= 0.90 * count * 60
    assert it.share_refused(600, 1_500) <= 0.015


@pytest.mark.parametrize("seconds", [10, 30])
@pytest.mark.parametrize("kind", ["a bucket", "a small bucket", "the last minute", "a minute of the clock"])
def test_limits_are_found_as_well_where_an_answer_takes_long(kind: str, seconds: int, seed: int) -> None:
    """That a request was taken is known long before its answer: refusals come at once."""
    it = simulate(Controller(), {"requests": KINDS[kind](1_200)}, seconds=600, seed=seed, latency=takes(seconds))
    assert it.rate(60, 600) >= 0.90 * 1_200
    assert it.share_refused(60, 600) <= 0.015


@pytest.mark.parametrize("seconds", [1, 10, 30])
@pytest.mark.parametrize("count", [4, 20, 100])
def test_a_limit_of_requests_at_once_is_found(count: int, seconds: int, seed: int) -> None:
    it = simulate(
        Controller(), {}, seconds=30 + 180 * seconds, seed=seed, at_once=AtOnce(count), latency=takes(seconds)
    )
    begins, full = 30 * seconds, count * 60 / seconds
    assert it.rate(begins, 30 + 180 * seconds) >= 0.90 * full or count < 10  # a whole one more or less is much of a few
    assert it.rate(begins, 30 + 180 * seconds) >= 0.70 * full
    # Whoever sends less than one in two seconds tries more often than each hundredth time.
    assert it.share_refused(begins, 30 + 180 * seconds) <= (0.015 if full > 30 else 0.03)


@pytest.mark.parametrize("factor", [0.5, 2.0], ids=["half", "twice"])
@pytest.mark.parametrize("announces", [True, False], ids=["announced", "refusals alone"])
def test_a_limit_that_changes_is_followed_within_half_a_minute(announces: bool, factor: float, seed: int) -> None:
    before, after = 3_000, 3_000 * factor
    it = simulate(
        Controller(), {"requests": Bucket(before)}, seconds=210, seed=seed, announces=announces, events=[(120, factor)]
    )
    assert it.rate(150, 210) == pytest.approx(after, rel=0.06)
    assert it.share_refused(150, 210) <= 0.02


@pytest.mark.parametrize("per_minute", [600, 1_200, 3_000])
@pytest.mark.parametrize("factor", [0.5, 2.0], ids=["half", "twice"])
def test_a_limit_of_the_last_minute_that_changes_is_followed_by_the_minute(
    per_minute: int, factor: float, seed: int
) -> None:
    """After a halving it takes nothing for half a minute, whoever asks; and what was sent unevenly stays so from minute to minute."""
    limit = {"requests": Sliding(per_minute)}
    it = simulate(Controller(), limit, seconds=390, seed=seed, events=[(240, factor)])
    assert it.rate(270, 390) >= 0.90 * per_minute * factor
    assert it.share_refused(270, 390) <= 0.015


@pytest.mark.parametrize("per_minute", [600, 1_200])
def test_a_bucket_that_was_widened_is_not_flooded(per_minute: int, seed: int) -> None:
    """By the time its room is used up the pace may be far too fast; but there is one, so that few are refused. Once in a hundred times
    that is taken for noise at first, and more are."""
    shares = []
    for i in range(5):
        limit = {"requests": Bucket(per_minute)}
        it = simulate(Controller(), limit, seconds=300, seed=seed + i, events=[(150, 2.0)])
        assert it.rate(180, 300) >= 0.90 * 2 * per_minute
        shares.append(it.share_refused(180, 300))
    assert sorted(shares)[2] <= 0.04
    assert max(shares) <= 0.25


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_refusals_by_chance_do_not_narrow_it_to_nothing(share: float, seed: int) -> None:
    """A single run may be unlucky; without a look at what narrowing brings each of them ends at 1 to 3 %."""
    rates = []
    for i in range(16):
        chance = {"requests": Chance(share, seed + i)}
        it = simulate(Controller(), chance, seconds=300, seed=seed + i, demand=100)
        rates.append(it.rate(100, 300) / (100 * 60))
    assert sum(rates) / len(rates) >= 0.4  # 0.81 on average of many


@pytest.mark.parametrize("factor", [0.1, 0.15, 0.25])
def test_a_limit_that_was_lowered_by_much_does_not_pass_for_chance(factor: float, seed: int) -> None:
    """Most of what is sent is refused at first, and a fraction of it is far too much still. Once in thirty times that is seen late."""
    shares = []
    for i in range(7):
        it = simulate(Controller(), {"requests": Bucket(1_200, 40)}, seconds=400, seed=seed + i, events=[(100, factor)])
        assert it.rate(150, 400) >= 0.90 * 1_200 * factor
        shares.append(it.share_refused(150, 400))
    assert sorted(shares)[3] <= 0.015
    assert max(shares) <= 0.15


def test_few_requests_do_not_wait_for_a_limit_that_has_room() -> None:
    controller = Controller(requests_per_minute=60)
    for _ in range(31):
        assert controller.ask(0)[0] == "go"
    verdict, until = controller.ask(0)
    assert verdict == "wait" and 0 < until < 2 * SECOND


def test_after_a_pause_they_come_back_one_after_the_other(seed: int) -> None:
    controller = Controller()
    permits = [controller.ask(0)[1] for _ in range(100)]
    for permit in permits[1:]:
        controller.settle(SECOND, permit)
    controller.settle(SECOND, permits[0], 429, retry_after_ms=10_000, dice=seed << 32)
    at, sent, out = SECOND, [], []
    while len(sent) < 60:
        verdict, got = controller.ask(at)
        if verdict == "go":
            sent.append(at)
            out.append(got)
            continue
        assert got > at
        at = min(got, out[0].sent_ns + SECOND if out else NEVER)
        while out and out[0].sent_ns + SECOND <= at:
            controller.settle(at, out.pop(0))
    assert sent[0] >= 11 * SECOND
    assert max(sum(1 for it in sent if start <= it < start + SECOND // 10) for start in sent) <= 20
    assert sent[-1] - sent[0] >= SECOND // 4


def test_a_pause_that_a_server_asks_for_is_kept_also_when_it_refuses_again() -> None:
    controller = Controller()
    first, second = controller.ask(0)[1], controller.ask(0)[1]
    controller.settle(0, first, 429, retry_after_ms=5_000)
    controller.settle(0, second, 429, retry_after_ms=1_000)
    assert controller.ask(0) == ("wait", 5 * SECOND)
    assert controller.read(0).cool_downs == 1 and controller.read(0).limited == 2


# ---------------------------------------------------------------- the circuit breaker


def opened() -> Controller:
    controller = Controller()
    for _ in range(32):
        verdict, permit = controller.ask(0)
        if verdict == "go":
            controller.settle(0, permit, 500)
    return controller


def test_of_a_thousand_callers_one_is_the_probe() -> None:
    controller = opened()
    verdict, until = controller.ask(0)
    assert verdict == "open" and until == SECOND
    answers = [controller.ask(until) for _ in range(1_000)]
    assert [verdict for verdict, _ in answers].count("go") == 1
    assert controller.read(until).breaker == lib.GB_BREAKER_HALF_OPEN
    controller.settle(until, answers[0][1], 200)
    assert controller.read(until).breaker == lib.GB_BREAKER_CLOSED
    assert controller.ask(until + SECOND)[0] == "go"


def test_a_probe_that_fails_doubles_the_time_and_one_that_is_given_up_does_not() -> None:
    controller = opened()
    at = SECOND
    for seconds in (2, 4, 8, 16, 30, 30):
        _, probe = controller.ask(at)
        controller.settle(at, probe, 503)
        assert controller.ask(at) == ("open", at + seconds * SECOND)
        at += seconds * SECOND
    _, probe = controller.ask(at)
    controller.settle(at, probe, ending=lib.GB_ENDING_UNKNOWN)
    assert controller.ask(at)[0] == "go"


def test_a_probe_keeps_to_what_the_user_allows_and_the_server_asks() -> None:
    controller = Controller(requests_per_minute=16)
    now, sent = SECOND, []
    while now < 2 * MINUTE:
        verdict, got = controller.ask(now)
        if verdict == "go":
            sent.append(now)
            controller.settle(now, got, 500)
        else:
            now = max(got, now + SECOND // 10)
    assert max(sum(1 for it in sent if at <= it < at + MINUTE) for at in sent) <= 16
    asked = Controller()
    permits = [asked.ask(0)[1] for _ in range(32)]
    for permit in permits:
        asked.settle(0, permit, 503, retry_after_ms=50_000)
    assert asked.ask(2 * SECOND) == ("wait", 50 * SECOND)
    assert asked.ask(50 * SECOND)[0] == "go"


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429])
def test_what_the_caller_did_wrong_opens_nothing(status: int) -> None:
    controller = Controller()
    at = 0
    for _ in range(200):
        verdict, got = controller.ask(at)
        if verdict == "wait":
            at = got
            continue
        assert verdict == "go"
        controller.settle(at, got, status)
    assert controller.read(at).breaker == lib.GB_BREAKER_CLOSED


# ---------------------------------------------------------------- what always holds


class Machine(RuleBasedStateMachine):
    """Requests come, end in every way, and time passes."""

    @initialize(
        concurrency=st.sampled_from([0, 1, 3, 10]),
        requests=st.sampled_from([0, 1, 7, 60]),
        tokens=st.sampled_from([0, 500, 5_000]),
        flags=st.integers(0, 7),
    )
    def begin(self, concurrency: int, requests: int, tokens: int, flags: int) -> None:
        self.concurrency, self.requests, self.tokens = concurrency, requests, tokens
        self.breaks = bool(flags & BREAKER)
        self.controller = Controller(
            flags, concurrency=concurrency, requests_per_minute=requests, tokens_per_minute=tokens
        )
        self.now = 1_000 * SECOND
        self.out: list[Any] = []
        self.sent: list[list[int]] = []  # when, tokens
        self.sent_as: dict[int, list[int]] = {}  # of those on their way, by number
        self.probing = False

    @rule(nanoseconds=st.one_of(st.integers(0, SECOND), st.integers(0, 90 * SECOND)))
    def passes(self, nanoseconds: int) -> None:
        self.now += nanoseconds

    @rule(size=st.integers(0, 2_000))
    def asks(self, size: int) -> None:
        verdict, got = self.controller.ask(self.now, size)
        if verdict == "go":
            assert not self.probing, "the breaker lets one through while it tries"
            self.probing = bool(got.is_probe)
            self.out.append(got)
            if not got.is_probe:  # a probe passes what is known
                self.sent.append([self.now, got.input_tokens + got.output_tokens])
            self.sent_as[got.number] = [0, 0] if got.is_probe else self.sent[-1]
        elif verdict == "wait":
            assert got > self.now, "it says to ask again at a time that has been"
            if got == NEVER:
                assert self.out, "nothing is on its way, so nothing will ever let it through"
        else:
            assert self.breaks and got >= self.now

    @precondition(lambda self: self.out)
    @rule(
        data=st.data(),
        status=st.sampled_from([200, 200, 200, 400, 429, 500, 503]),
        retry_after=st.sampled_from([-1, -1, 0, 700, 30_000]),
        share=st.floats(0, 1),
        unknown=st.booleans(),
        head=st.sampled_from(["", "", "x-ratelimit-limit-requests: 20\r\nx-ratelimit-remaining-requests: 3\r\nx-ratelimit-reset-requests: 9s"]),
    )  # fmt: skip
    def ends(self, data: Any, status: int, retry_after: int, share: float, unknown: bool, head: str) -> None:
        permit = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        if permit.is_probe:
            self.probing = False
        # A reply never says more than was reserved: then the limit is a limit.
        tokens = int(permit.input_tokens * share), int(permit.output_tokens * share)
        ending = lib.GB_ENDING_UNKNOWN if unknown and status == 500 else None
        self.controller.settle(
            self.now, permit, status, ending=ending, retry_after_ms=retry_after, tokens=tokens, head=head
        )
        used = 0 if status in (429, 503) else sum(tokens)
        entry = self.sent_as.pop(permit.number)
        entry[1] = used

    @invariant()
    def keeps_count(self) -> None:
        stats = self.controller.read(self.now)
        assert stats.in_flight == len(self.out)
        if self.concurrency:
            assert len(self.out) <= self.concurrency + self.probing

    @invariant()
    def no_minute_has_too_many(self) -> None:
        """Of any window that ends now; those that ended earlier were looked at then."""
        recent = [amount for at, amount in self.sent if at > self.now - MINUTE]
        if self.requests:
            assert len(recent) <= self.requests
        if self.tokens:
            largest = max(recent, default=0)
            # One that is larger than the limit goes when nothing else counts.
            assert sum(recent) <= max(self.tokens, largest)

    def teardown(self) -> None:
        """Whoever waits is let through in the end, when all that is on its way ends well."""
        if not hasattr(self, "controller"):
            return
        for permit in self.out:
            self.controller.settle(self.now, permit)
        for _ in range(2_000):
            verdict, got = self.controller.ask(self.now, 10)
            if verdict == "go":
                return
            assert got != NEVER
            self.now = max(self.now + 1, got)
        raise AssertionError("it starves")


TestMachine = Machine.TestCase
TestMachine.settings = settings(stateful_step_count=60)
