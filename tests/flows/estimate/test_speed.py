"""How long calls and trainings take, told from one timed call and a few timed steps; how many questions differ."""

import pytest

from flows.estimate import demands, speed

CALL = speed.Call("answer", rows=64, seconds=3.0, tokens=12.0, longest=16, ended=0.5, limit=16)


def test_requests_come_in_calls_like_the_timed_one():
    assert CALL.of(64, 16) == pytest.approx(3.0)
    assert CALL.of(640, 16) == pytest.approx(30.0)
    assert CALL.of(640, 8) == pytest.approx(15.0)  # replies half as long
    assert CALL.of(1, 16) == pytest.approx(3.0)  # a small call takes the steps of its longest reply
    assert CALL.of(0, 16) == 0
    assert CALL.of(64, 0) == pytest.approx(3.0 / 16)  # scores of given text


@pytest.mark.parametrize(
    ("tokens", "ended", "limit", "expected"),
    [
        (12.0, 0.5, 16, 12.0),  # the limit is what was measured
        (48.0, 0.0, 512, 512.0),  # none ended
        (40.0, 0.4, 512, 99.4),  # 40 tokens an end of 0.4 replies: one in 100 tokens, and the limit cuts some
    ],
)
def test_replies_that_were_cut_off_end_as_often_as_the_others(tokens, ended, limit, expected):
    call = speed.Call("answer", 64, 3.0, tokens, 48, ended, 16 if limit == 16 else 48)
    assert call.length(limit) == pytest.approx(expected, rel=1e-3)


def test_the_longest_reply_of_a_call_has_the_limit_unless_all_ended():
    assert speed.Call("answer", 64, 3.0, 12.0, 14, 0.9, 16).most(16) == 16
    assert speed.Call("answer", 64, 3.0, 12.0, 14, 1.0, 16).most(16) == 14


def test_a_training_is_its_fixed_part_and_its_tokens():
    known = speed.Training(2.0, 1000.0, [0.5, 0.4, 0.6, 0.5, 5.0, 0.4])
    least, most = known.seconds(100_000)
    assert 2 + 100 * 0.4 <= least < most < 2 + 100 * 5.0  # a single slow step does not count
    assert speed.Training(2.0, 1000.0, [0.7, 0.5]).seconds(1000) == (2.5, 2.7)


def shown(kinds, draws):
    """Kinds that so many draws show, all equally frequent."""
    return kinds * (1 - (1 - 1 / kinds) ** draws)


@pytest.mark.parametrize("kinds", [50, 400, 5000])
def test_questions_repeat_as_they_did(kinds):
    """What was seen of some tells how many more would show, without new ones for ever."""
    seen = [round(shown(kinds, draws)) for draws in (300, 150)]
    assert demands.different(300, *seen, 3000) == pytest.approx(shown(kinds, 3000), rel=0.15)
    assert demands.different(300, *seen, 300) == pytest.approx(seen[0], rel=0.01)


def test_fewer_questions_repeat_as_the_first_of_them_did():
    assert demands.different(40_000, 12_000, 7_500, 20_000) == pytest.approx(7_500)


def test_what_never_repeated_is_not_taken_to_repeat():
    assert demands.different(0, 0, 0, 70) == 70
    assert demands.different(30, 30, 15, 70) == 70


def test_what_shows_nothing_new_stays_as_it_is():
    assert demands.different(30, 5, 5, 70) == 5
    assert demands.different(30, 5, 5, 3) == 3
