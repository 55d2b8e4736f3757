"""Limits that a server announces, and the controller of admission by itself, in time that is a number: they are used up, not
overstepped, and followed when they change. What only refusals tell: test_admission_model.py."""

from __future__ import annotations

import random

import pytest
from provider_models import KINDS, SECOND, Bucket, Controller, simulate

MINUTE = 60 * SECOND


@pytest.mark.parametrize(
    ("kind", "per_minute"),
    [(kind, number) for kind in KINDS for number in (60, 600, 6_000) if "small" not in kind or number > 60],
)
def test_limits_that_are_announced_are_used_up_and_not_overstepped(kind: str, per_minute: int, seed: int) -> None:
    controller = Controller()
    it = simulate(controller, {"requests": KINDS[kind](per_minute)}, seconds=240, seed=seed, announces=True)
    assert it.rate(60, 240) >= 0.95 * per_minute
    # A bucket with less room than a minute's refuses what the announced limit allows; that has to be learned.
    assert it.share_refused(30, 240) <= 0.01


def test_tokens_are_held_to_their_limit_although_an_answers_length_is_not_known(seed: int) -> None:
    limits = {"requests": Bucket(10_000), "tokens": Bucket(120_000)}
    it = simulate(Controller(), limits, seconds=240, seed=seed, announces=True, tokens=(300, 700))
    assert it.rate(60, 240) >= 0.95 * 120
    assert it.share_refused(30, 240) <= 0.01


@pytest.mark.parametrize(("per_minute", "at_once"), [(3, 1), (10, 1), (30, 1), (60, 1), (60, 2), (300, 2), (3_000, 50)])
def test_a_limit_that_is_enforced_by_the_second_is_used_up_as_well(per_minute: int, at_once: int, seed: int) -> None:
    """60 a minute may mean one a second. The first ones that come at once are refused, and no more."""
    it = simulate(Controller(), {"requests": Bucket(per_minute, at_once)}, seconds=600, seed=seed, announces=True)
    assert it.rate(60, 600) >= 0.98 * per_minute
    assert not [at for at in it.refused if at >= 60 * SECOND]


@pytest.mark.parametrize("per_minute", [60, 600, 3_000])
@pytest.mark.parametrize("factor", [0.5, 2.0], ids=["half", "twice"])
@pytest.mark.parametrize("kind", ["a bucket", "a small bucket", "the last minute"])
def test_an_announced_limit_that_changes_is_followed_as_soon_as_it_takes_anything(
    kind: str, factor: float, per_minute: int, seed: int
) -> None:
    """Of the last minute that is, after a halving, half a minute, in which everything is refused: three tries tell."""
    limit = {"requests": KINDS[kind](per_minute)}
    it = simulate(Controller(), limit, seconds=240, seed=seed, announces=True, events=[(120, factor)])
    assert it.rate(150, 210) >= 0.95 * per_minute * factor
    assert it.rate(120, 240) >= (0.7 if kind == "the last minute" and factor < 1 else 0.9) * per_minute * factor
    # What was on its way when it changed, and the tries.
    assert len([at for at in it.refused if at >= 120 * SECOND]) <= 3 + per_minute / 600
    assert not [at for at in it.refused if at >= 150 * SECOND]


def test_a_limit_of_the_clocks_minute_that_was_lowered_is_met_by_few(seed: int) -> None:
    for changes in (105, 120, 150, 162):
        for factor in (0.1, 0.5):
            limit = {"requests": KINDS["a minute of the clock"](600)}
            it = simulate(Controller(), limit, seconds=320, seed=seed, announces=True, events=[(changes, factor)])
            assert it.rate(223, 283) >= 0.95 * 600 * factor
            assert len([at for at in it.refused if at >= changes * SECOND]) <= 25


def test_replies_that_overtake_each_other_bring_no_limit_back() -> None:
    """A refusal says that the limit was lowered, and the answers to what was sent before still name the old one."""
    controller = Controller()

    def head(limit: int, remaining: int) -> str:
        return (
            f"x-ratelimit-limit-requests: {limit}\r\nx-ratelimit-remaining-requests: {remaining}\r\n"
            "x-ratelimit-reset-requests: 1s"
        )

    permits = [controller.ask(0)[1] for _ in range(4)]
    controller.settle(SECOND, permits[0], head=head(60, 59))
    controller.settle(SECOND, permits[2], 429, head=head(30, 0))
    assert controller.read(SECOND).quotas[0].limit == 30
    controller.settle(SECOND, permits[1], head=head(60, 58))
    assert controller.read(SECOND).quotas[0].limit == 30
    controller.settle(SECOND, permits[3], head=head(90, 58))
    assert controller.read(SECOND).quotas[0].limit == 90


@pytest.mark.parametrize("heads", [["-day: 1000"], ["-day: 1000", "-minute: 1000"], [": 5000"]])
def test_what_a_server_announces_never_loosens_the_users_own_limit(heads: list[str]) -> None:
    controller = Controller(requests_per_minute=10)
    now, sent = SECOND, []
    while now < 4 * MINUTE:
        verdict, got = controller.ask(now)
        if verdict == "go":
            sent.append(now)
            controller.settle(now, got, head=f"x-ratelimit-limit-requests{heads[len(sent) % len(heads)]}")
        else:
            now = got
    assert max(sum(1 for it in sent if at <= it < at + MINUTE) for at in sent) == 10


def test_nobody_is_kept_waiting_for_tomorrow() -> None:
    controller = Controller()
    head = "x-ratelimit-limit-requests-day: 100\r\nx-ratelimit-remaining-requests-day: 0\r\nx-ratelimit-reset-requests-day: 9h"
    now = 0
    for status in (200, 429, 429, 429, 429):
        asked, (verdict, got) = now, controller.ask(now)
        while verdict == "wait":
            now = got
            verdict, got = controller.ask(now)
        assert now <= asked + 2.2 * SECOND
        controller.settle(now, got, status, head=head)


@pytest.mark.parametrize("seed_", range(20))
def test_whatever_a_server_says_does_no_harm(seed_: int) -> None:
    dice = random.Random(seed_)
    controller = Controller(
        requests_per_minute=dice.choice([0, 7, 2**32 - 1]), tokens_per_minute=dice.choice([0, 99, 2**50])
    )
    numbers = ["0", "1", "4294967294", "4294967295", "99999999999999999999", "-1", "", "1e9", "7"]
    resets = [*numbers, "0s", "1ms", "999999h", "2026-11-24T00:00:00Z", "9999-12-31T23:59:59Z"]
    now, out = SECOND, []
    for _ in range(400):
        now += dice.choice([0, 1, SECOND, MINUTE, 2**40])
        verdict, got = controller.ask(now, dice.choice([0, 100, 2**40, 2**63]))
        if verdict == "go":
            out.append(got)
        if out and dice.random() < 0.8:
            lines = [
                f"{family}{what}: {dice.choice(resets)}"
                for family in ("x-ratelimit-", "anthropic-ratelimit-")
                for what in (
                    "limit-requests", "remaining-requests", "reset-requests", "limit-tokens-day", "tokens-limit",
                    "input-tokens-remaining", "tokens-reset", "requests-limit",
                )
                if dice.random() < 0.5
            ]  # fmt: skip
            controller.settle(
                now,
                out.pop(dice.randrange(len(out))),
                dice.choice([200, 429, 503, 500]),
                tokens=(dice.choice([-1, 5, 2**63 - 1]), dice.choice([-1, 5, 2**63 - 1])),
                retry_after_ms=dice.choice([-1, 0, 2**62]),
                head="\r\n".join(lines),
                dice=dice.getrandbits(64),
            )
        controller.read(now)
