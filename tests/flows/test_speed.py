"""The model of how long calls and trainings take, fitted to what would be measured."""

import pytest

from flows.estimate import speed


def found(**given):
    """What the probe measures of an engine that takes 2 ms a step, 0.1 ms a prompt and 10 us a token."""

    def seconds(rows, conversations, tokens):
        return 0.002 * tokens + 1e-4 * conversations + 1e-5 * rows * tokens

    draws = given.get("draws", 4)
    rows = 60 * draws
    return {
        "kind": "answer", "draws": draws, "longest": 16, "probed": 16, "short": seconds(draws, 0, 16), "short_steps": 16,
        "conversations": 60, "rows": rows, "one": seconds(rows, 60, 1),
        "full": [seconds(rows, 60, 16), 1.5 * seconds(rows, 60, 16)], "tokens": 16.0, "steps": 16, "ended": 0.0,
    } | given  # fmt: skip


def test_a_step_a_prompt_and_a_token_are_told_apart():
    fitted = speed.fitted(found())
    assert (fitted.step, fitted.prompt, fitted.token) == pytest.approx((0.002, 1e-4, 1e-5))
    assert fitted.spread == pytest.approx(1.5)


def test_a_small_call_takes_the_steps_of_its_longest_reply():
    fitted = speed.fitted(found())
    small = fitted.seconds(20, 1, 1, 2048, 6, 16)
    assert small == pytest.approx(16 * 0.002 + 20 * 1e-4 + 20 * 6 * 1e-5)
    assert fitted.seconds(20, 1, 5, 2048, 6, 16) == pytest.approx(small + 4 * 16 * 0.002)  # five calls
    assert fitted.seconds(20, 1, 1, 10, 6, 16) == pytest.approx(small + 16 * 0.002)  # ten rows side by side
    assert fitted.seconds(40, 1, 1, 2048, 6, 16) < 2 * small


def test_a_step_costs_the_same_whatever_is_asked():
    several = [speed.fitted(found()), speed.fitted(found(short=0.1))]
    assert several[0].step < several[1].step
    assert [other.step for other in speed.alike(several)] == [several[0].step] * 2
    assert speed.alike([]) == []


def test_one_conversation_alone_tells_no_cost_of_a_token():
    alone = speed.fitted(found(draws=1, rows=1, conversations=1, full=[0.03, 0.03], one=0.002))
    assert alone.token == 0
    assert alone.step > 0
    assert alone.prompt >= 0


@pytest.mark.parametrize(
    ("tokens", "ended", "limit", "expected"),
    [
        (12.0, 0.5, 16, 12.0),  # the limit is what was measured
        (48.0, 0.0, 512, 512.0),  # none ended
        (40.0, 0.4, 512, 99.4),  # 40 tokens an end of 0.4 replies: one in 100 tokens, and the limit cuts some
    ],
)
def test_replies_that_were_cut_off_end_as_often_as_the_others(tokens, ended, limit, expected):
    fitted = speed.fitted(found(tokens=tokens, ended=ended, probed=16 if limit == 16 else 48))
    assert fitted.length(limit) == pytest.approx(expected, rel=1e-3)


def test_the_longest_reply_of_a_call_has_the_limit_unless_all_ended():
    assert speed.fitted(found(ended=0.9, steps=14)).longest(16) == 16
    assert speed.fitted(found(ended=1.0, steps=14)).longest(16) == 14


def test_a_training_is_its_fixed_part_and_its_tokens():
    known = speed.Training(2.0, 1000.0, [0.5, 0.4, 0.6, 0.5, 5.0, 0.4])
    least, most = known.seconds(100_000)
    assert 2 + 100 * 0.4 <= least < most < 2 + 100 * 5.0  # a single slow step does not count
    assert speed.Training(2.0, 1000.0, [0.5, 0.7]).seconds(1000) == (2.5, 2.7)


def shown(kinds, draws):
    """Kinds that so many draws show, all equally frequent."""
    return kinds * (1 - (1 - 1 / kinds) ** draws)


@pytest.mark.parametrize("kinds", [50, 400, 5000])
def test_questions_repeat_as_they_did(kinds):
    """What was seen of some tells how many more would show, without new ones for ever."""
    seen = [round(shown(kinds, draws)) for draws in (300, 150)]
    assert speed.different(300, *seen, 3000) == pytest.approx(shown(kinds, 3000), rel=0.15)
    assert speed.different(300, *seen, 300) == pytest.approx(seen[0], rel=0.01)


def test_fewer_questions_repeat_as_the_first_of_them_did():
    assert speed.different(40_000, 12_000, 7_500, 20_000) == pytest.approx(7_500)


def test_what_never_repeated_is_not_taken_to_repeat():
    assert speed.different(0, 0, 0, 70) == 70
    assert speed.different(30, 30, 15, 70) == 70


def test_what_shows_nothing_new_stays_as_it_is():
    assert speed.different(30, 5, 5, 70) == 5
    assert speed.different(30, 5, 5, 3) == 3
