import pickle
import subprocess
import sys
import time
from importlib.metadata import version

import pytest
import yaml

from tasks.core import engines
from tasks.core.asking import local
from tasks.core.asking.local import installed
from tasks.core.asking.opener import Opener
from tasks.core.asking.tally import Tally
from tasks.core.engines.contract import Sampling
from tasks.core.errors import BadInput, OutOfMemory, StageFailed
from tasks.core.models.pointer import Pointer
from tests.support.models import ENGINE, Scripted, digest_of, scripted_model
from tests.support.paths import ROOT
from tests.support.tiny import user

QUESTIONS = [user(f"add {i} {i}") for i in range(50)]


def echo(prompt, draw):
    return f"{prompt} #{draw}"


def test_replies_come_back_in_order_and_are_asked_for_once(tmp_path):
    model, engine = scripted_model(tmp_path, echo)
    sampling = Sampling(6, 1.0, 1.0, 8, 1)
    first = model.generate(QUESTIONS, sampling, "x")
    assert [reply.text for reply in first[7]] == [f"add 7 7 #{draw}" for draw in range(6)]
    assert engine.asked == 300
    again, second = scripted_model(tmp_path, echo)
    assert again.generate(QUESTIONS, sampling, "x") == first
    assert second.asked == 0


class Slow(Scripted):
    """Tells how far it is before every reply."""

    tell_progress = None

    def generate(self, prompts, sampling, first_draw=0):
        if self.tell_progress:
            for number in range(len(prompts) * sampling.n + 1):
                self.tell_progress(number)
        return super().generate(prompts, sampling, first_draw)


def test_progress_is_told_in_requests_and_inside_of_a_shard(tmp_path):
    model, _ = scripted_model(tmp_path, echo)
    model._engine = Slow(echo)
    told = []
    model.host.progress = lambda what, done, total: told.append((what, done, total))
    model.generate(QUESTIONS, Sampling(6, 1.0, 1.0, 8, 1), "x")
    numbers = [done for _, done, _ in told]
    assert {(what, total) for what, _, total in told} == {("x", 300)}
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(301))
    told.clear()
    model.generate(QUESTIONS, Sampling(6, 1.0, 1.0, 8, 1), "x")
    assert told == [("x", 0, 0)]


def test_equal_conversations_share_their_replies(tmp_path):
    model, engine = scripted_model(tmp_path, echo)
    replies = model.generate([user("a"), user("b"), user("a")], Sampling(1, 0.0, 1.0, 4, 0), "x")
    assert replies[0] == replies[2] != replies[1]
    assert engine.asked == 2
    used = model.take_tally()
    assert (used.requests, used.made, used.distinct) == (3, 2, 2)
    assert (used.prompt_tokens, used.tokens) == (used.distinct_prompt_tokens, used.distinct_tokens) == (2, 6)


def test_the_tally_of_stored_replies_is_known_and_costs_nothing(tmp_path):
    sampling = Sampling(2, 1.0, 1.0, 8, 1)
    first, _ = scripted_model(tmp_path, echo)
    first.generate(QUESTIONS, sampling, "x")
    paid = first.take_tally()
    assert first.take_tally() == Tally()
    second, _ = scripted_model(tmp_path, echo)
    second.generate(QUESTIONS, sampling, "x")
    stored = second.take_tally()
    assert (stored.made, stored.tokens, stored.prompt_tokens, stored.seconds) == (0, 0, 0, 0.0)
    assert (stored.distinct_tokens, stored.distinct_prompt_tokens) == (paid.tokens, paid.prompt_tokens) == (500, 300)
    both = paid + stored
    assert (both.requests, both.made, both.distinct, both.tokens) == (200, 100, 200, 500)


def test_a_text_is_asked_as_it_stands(tmp_path):
    model, _ = scripted_model(tmp_path, echo)
    del model.render  # the real one
    assert model.render(["as it stands <eos>"]) == ["as it stands <eos>"]
    chat, _ = scripted_model(tmp_path, echo, name="openai", endpoint={"protocol": "chat"})
    del chat.render
    assert chat.render([user("a")]) == ['[{"content": "a", "role": "user"}]']
    with pytest.raises(BadInput, match="a chat server takes messages and no plain text"):
        chat.render(["as it stands"])


def test_more_prompts_or_samples_ask_only_for_what_is_new(tmp_path):
    model, engine = scripted_model(tmp_path, echo)
    model.generate(QUESTIONS[:30], Sampling(4, 1.0, 1.0, 8, 1), "x")
    asked = engine.asked
    model.generate(QUESTIONS[:30], Sampling(8, 1.0, 1.0, 8, 1), "x")
    assert engine.asked == asked + 30 * 4
    model.generate(QUESTIONS, Sampling(8, 1.0, 1.0, 8, 1), "x")
    assert engine.asked <= asked + 30 * 4 + 20 * 8 + 2 * 2 * 4 * 2  # at most the block at the seam is asked again


def test_everything_that_matters_is_in_the_key(tmp_path):
    base = Sampling(1, 1.0, 1.0, 8, 1)

    def asks(sampling=base, questions=QUESTIONS[:3], **engine):
        model, scripted = scripted_model(tmp_path, echo, **engine)
        model.generate(questions, sampling, "x")
        return scripted.asked

    assert asks() == 3
    assert asks() == 0
    for other in (
        Sampling(1, 0.9, 1.0, 8, 1),
        Sampling(1, 1.0, 0.9, 8, 1),
        Sampling(1, 1.0, 1.0, 9, 1),
        Sampling(1, 1.0, 1.0, 8, 2),
    ):
        assert asks(other) == 3
    assert asks(digest="e" * 32) == 3
    assert asks(precision="bfloat16") == 3
    assert asks(threads=2) == 3
    assert asks(questions=[user("add 0 0"), user("add 1 1"), user("add 2 3")]) == 3


def test_scores_are_stored_too(tmp_path):
    model, engine = scripted_model(tmp_path, echo)
    scores = model.score(QUESTIONS, ["1 2"] * 50, "x")
    assert scores == [[-0.5] * 3] * 50
    model.score(QUESTIONS, ["1 2"] * 50, "x")
    assert engine.asked == 50


def test_a_model_is_pickled_as_how_to_open_its_model(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    made, _ = scripted_model(tmp_path, echo)
    packed = pickle.dumps(made)
    assert len(packed) < 2000
    there = pickle.loads(packed)
    assert there is pickle.loads(packed)  # one for each process and model
    assert (there.identity(), there.folder, there._engine) == (made.identity(), tmp_path / "model", None)
    monkeypatch.setattr(local, "installed", lambda package: "0.0.1")
    with pytest.raises(
        StageFailed, match=r"would reply as .*0\.0\.1.* is asked for; give all machines the same versions"
    ):
        pickle.loads(packed)


class Swapped(Scripted):
    """An engine that can serve every model whose name begins with a certain letter."""

    def __init__(self, letter, broken=False, rests=False):
        super().__init__(echo)
        self.letter, self.broken, self.rests, self.served = letter, broken, rests, []

    def take(self, folder):
        self.served.append(folder.name)
        if self.broken:
            raise StageFailed("the weights cannot be read")
        return folder.name.startswith(self.letter)

    def rest(self):
        self.served += ["rest"] * self.rests
        return self.rests


def opened(tmp_path, names):
    opener = Opener(tmp_path, {**ENGINE}, tmp_path / "scratch")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    return [opener(Pointer(name, digest_of(tmp_path / name))) for name in names]


def test_an_engine_that_can_takes_the_next_model_and_is_closed_where_it_cannot(tmp_path, monkeypatch):
    first, second, other = opened(tmp_path, ["a1", "a2", "b1"])
    loaded = []
    monkeypatch.setattr(
        engines, "load", lambda name, folder, *rest: loaded.append(Swapped(folder.name[0])) or loaded[-1]
    )
    engine = first.engine()
    assert second.engine() is engine
    assert first.engine() is engine
    assert engine.served == ["a2", "a1"]
    assert not engine.closed
    assert other.engine() is loaded[1]
    assert engine.closed
    assert len(loaded) == 2
    assert first._engine is second._engine is None


@pytest.mark.parametrize("asked_next", ["a1", "a2", "b1", None])
def test_an_engine_that_can_rests_while_its_memory_is_needed(tmp_path, monkeypatch, asked_next):
    models = dict(zip(("a1", "a2", "b1"), opened(tmp_path, ["a1", "a2", "b1"]), strict=True))
    loaded = []
    monkeypatch.setattr(
        engines, "load", lambda name, folder, *rest: loaded.append(Swapped(folder.name[0], rests=True)) or loaded[-1]
    )
    engine = models["a1"].engine()
    opener = models["a1"].host
    opener.release()
    opener.release()
    assert (engine.served, engine.closed) == (["rest"], False)
    if asked_next is None:
        opener.close()
        assert engine.closed
        return
    taken = models[asked_next].engine()
    assert engine.served == ["rest", asked_next]
    assert (taken is engine) == (asked_next != "b1") == (not engine.closed)
    assert len(loaded) == 1 + (asked_next == "b1")


def test_an_engine_that_cannot_rest_is_closed(tmp_path, monkeypatch):
    first, second = opened(tmp_path, ["a1", "b1"])
    taking, plain = Swapped("a"), Scripted(echo)
    monkeypatch.setattr(engines, "load", lambda name, folder, *rest: taking if folder.name == "a1" else plain)
    for one, engine in ((second, plain), (first, taking)):
        assert one.engine() is engine
        one.host.release()
        assert engine.closed


def test_an_engine_that_fails_to_take_a_model_is_closed(tmp_path, monkeypatch):
    first, second = opened(tmp_path, ["a1", "a2"])
    broken = Swapped("a", broken=True)
    monkeypatch.setattr(engines, "load", lambda *given: broken)
    first.engine()
    with pytest.raises(StageFailed, match="cannot be read"):
        second.engine()
    assert broken.closed
    assert first._engine is second._engine is None


def full(loads, error):
    """`engines.load` where memory holds one model; what it loaded, and how often it was asked."""
    held = []

    def load(name, folder, *rest):
        loads.append(folder.name)
        if any(not engine.closed for engine in held):
            raise error
        held.append(Scripted(echo))
        return held[-1]

    return load


def test_a_model_without_room_beside_another_takes_its_place(tmp_path, monkeypatch, caplog):
    first, second = opened(tmp_path, ["a", "b"])
    loads = []
    monkeypatch.setattr(engines, "load", full(loads, OutOfMemory("b does not fit into memory")))
    engine = first.engine()
    assert second.engine() is second._engine is not None
    assert (engine.closed, first._engine, loads) == (True, None, ["a", "b", "b"])
    assert "no memory for" in caplog.text


def test_a_model_that_does_not_fit_alone_is_said_once(tmp_path, monkeypatch):
    first, second = opened(tmp_path, ["a", "b"])
    monkeypatch.setattr(engines, "load", full([], OutOfMemory("")))
    first.engine()

    def never(name, folder, *rest):
        raise OutOfMemory(f"{folder.name} does not fit into memory")

    monkeypatch.setattr(engines, "load", never)
    with pytest.raises(OutOfMemory, match="b does not fit"):
        second.engine()
    assert first._engine is None
    monkeypatch.setattr(engines, "load", full([], StageFailed("its weights cannot be read")))
    kept = first.engine()
    with pytest.raises(StageFailed, match="cannot be read"):
        second.engine()
    assert not kept.closed


def test_versions_are_those_of_the_package_that_is_installed():
    assert installed("transformers") == version("transformers")
    assert installed("no-such-package|polars") == version("polars")
    assert installed("no-such-package") == ""


ASKING = """
import sys, time
from pathlib import Path
from tasks.core.engines.contract import Sampling
from tests.support.models import scripted_model
from tests.support.tiny import user
log = open(sys.argv[1] + "/asked", "a")
made, engine = scripted_model(Path(sys.argv[1]), lambda prompt, draw: f"{prompt} {draw}", **eval(sys.argv[2]))
generate = engine.generate
def counted(prompts, sampling, first_draw=0):
    print(len(prompts) * sampling.n, file=log, flush=True)
    time.sleep(0.01)
    return generate(prompts, sampling, first_draw)
engine.generate = counted
replies = made.generate([user(f"question {i}") for i in range(500)], Sampling(12, 1.0, 1.0, 8, 0), "test")
print(sum(len(several) for several in replies))
"""


def test_kill_9_in_the_middle_of_6000_requests_costs_one_shard(tmp_path):
    """With the sizes that a user's own model is asked with (flows/recipes/families/text.yaml)."""
    recipe = ROOT / "flows/recipes/families/text.yaml"
    sizes = {
        k: v for k, v in yaml.safe_load(recipe.read_text())["params"]["engine"].items() if k.endswith("_per_shard")
    }
    command = [sys.executable, "-c", ASKING, str(tmp_path), str(sizes)]

    def asked() -> list[int]:
        return [int(line) for line in (tmp_path / "asked").read_text().split()] if (tmp_path / "asked").exists() else []

    for moment in (1000, 2500, 4000):
        killed = subprocess.Popen(command, cwd=ROOT)
        while sum(asked()) < moment:
            assert killed.poll() is None
            time.sleep(0.002)
        killed.kill()
        killed.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "6000"
    redone = sum(asked()) - 6000
    assert 0 <= redone <= 3 * max(asked())
    assert max(asked()) < 0.024 * 6000
