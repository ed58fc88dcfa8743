"""evaluate: what it writes, what it asks for, and that held-out results stay where they are."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import yaml

from tasks import evaluate
from tasks.blocks.evaluate import benchmarks
from tasks.core import tables
from tasks.core.context import Context
from tasks.core.engines.contract import Completion, Sampling, no_reply
from tasks.core.errors import BadInput, UnknownName
from tasks.core.family import Messages, Parts, Question, Verdict
from tests.support.models import ENGINE
from tests.support.paths import ROOT
from tests.support.tiny import user

SECTION: dict[str, Any] = {
    "samples": 4,
    "temperature": 1.0,
    "top_p": 1.0,
    "max_new_tokens": 4,
    "critics": {"own": {"block": "factored_critique", "max_new_tokens": 2}},
    "best_of": "own",
    "refine": {"block": "critique_revise", "critic": "own", "per_prompt": 1, "rounds": 1, "temperature": 0.0, "top_p": 1.0,
               "max_new_tokens": 4},
    "makers": {},
    "answers": {},
    "benchmarks": None,
    "benchmark_files": "tasks/templates/benchmarks",
    "probe_by_prompt": False,
}  # fmt: skip
BENCHMARK = {"tasks": ["sums"], "fewshot": None, "limit": 2, "chat_template": True, "max_new_tokens": 4}


Script = Callable[[str, float, int], str]  # (content, temperature, draw) -> text


class Sums:
    """Prompts like "2 3"; the right response is the sum. The critic asks "sum 2 3" and compares."""

    name = "sums"

    def __init__(self, has_truth: bool = True) -> None:
        self.has_truth = has_truth

    def extract(self, messages: Messages, response: str) -> str | None:
        return response if response.isdigit() else None

    def questions(self, messages: Messages, response: str) -> list[Question] | None:
        if not response.isdigit():
            return None
        return [Question(user("sum " + messages[0]["content"]), response)]

    def assemble(self, messages: Messages, response: str, asked: Sequence[Question], answers: Sequence[str]) -> Verdict:
        right = answers[0] == response
        return Verdict(True, right, float(right), "ok" if right else "no")

    def refine_messages(self, messages: Messages, response: str, critique: str) -> Messages:
        return user("refine " + messages[0]["content"])

    def shows(self, use: str) -> frozenset[str]:
        return frozenset({"answers"})

    def ask(self, use: str, parts: Parts) -> Messages:
        return user(f"{use} {parts.question[0]['content']} : {' '.join(parts.answers)}")

    def verify(self, messages: Messages, answer: str | None, response: str) -> bool:
        return response == answer


class Scripted:
    """A model with a script: (content, temperature, draw) -> text. Counts what it is asked."""

    digest = "d"

    def __init__(self, script: Script) -> None:
        self.script, self.asked = script, []

    def generate(
        self, messages: Sequence[Messages], sampling: Sampling, what: str, about: Sequence[int] | None = None
    ) -> list[list[Completion]]:
        contents = [m[-1]["content"] for m in messages]
        self.asked += contents
        texts = [[self.script(c, sampling.temperature, draw) for draw in range(sampling.n)] for c in contents]
        return [
            [no_reply("timeout") if text == "(fails)" else Completion(text, 3, 2, -1.0, "stop") for text in several]
            for several in texts
        ]


def script(content: str, temperature: float, draw: int) -> str:
    """Greedy answers: right for "1 1" and "5 5", 9 for "2 2", junk for "3 3". The critic believes 5 + 5 = 11."""
    known = {"1 1": "2", "2 2": "9", "3 3": "junk", "5 5": "10"}
    if content.startswith("sum "):
        return {"1 1": "2", "2 2": "4", "3 3": "6", "5 5": "11"}[content[4:]]
    if content.startswith("refine "):
        return {"2 2": "4", "5 5": "11"}[content[7:]]
    if temperature == 0 or draw < 2:
        return known[content]
    return ["4", "junk"][draw - 2]


def prompts(*given: str) -> pl.DataFrame:
    rows = []
    for content in given:
        messages = user(content)
        total = str(sum(int(word) for word in content.split()))
        rows.append({"prompt_id": tables.prompt_id("sums", messages), "messages": messages, "family": "sums",
                     "difficulty": len(total), "source": "pool", "parent_ids": [], "answer": total})  # fmt: skip
    return tables.frame(rows, tables.PROMPTS)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """Runs evaluate@i01 on two held-out and two probe prompts; returns what it wrote."""

    def run(family: Sums | None = None, name: str = "run", reply: Script = script, **changes: Any) -> SimpleNamespace:
        root, staging, model = tmp_path / name, tmp_path / f"{name}.out", Scripted(reply)
        (root / "data/i01/candidate").mkdir(parents=True)
        (root / "data/i01/candidate/config.json").write_text('{"model_type": "qwen3"}')
        (root / "data/tasks").mkdir(parents=True)
        (root / "data/tasks/family.json").write_text("{}")
        tables.write(prompts("1 1", "2 2", "3 3", "5 5"), root / "data/tasks/heldout.parquet", tables.PROMPTS)
        tables.write(prompts("1 1", "2 2"), root / "data/tasks/probe.parquet", tables.PROMPTS)
        monkeypatch.setattr(evaluate.families, "load", lambda _: family or Sums())
        monkeypatch.setattr("tasks.core.models.folders.digest", lambda folder, known: "d")
        options = evaluate.parse({**SECTION, **changes})
        context = Context(
            "evaluate", "i01", {"previous": "i00"}, options, 7, False, ENGINE, root, staging, root, lambda _: model
        )
        evaluate.run(context)
        folder = staging / "data/i01/evaluation"
        return SimpleNamespace(
            context=context,
            model=model,
            predictions=tables.read(folder / "predictions.parquet", tables.PREDICTIONS),
            metrics=json.loads((folder / "metrics.json").read_text()),
            probe=json.loads((folder / "probe.json").read_text()),
            report=json.loads((staging / "data/evaluations/i01.json").read_text()),
            bytes={path.name: path.read_bytes() for path in staging.rglob("*") if path.is_file()},
        )

    return run


def test_figures_by_hand(stage: Callable[..., SimpleNamespace]) -> None:
    """Samples of each prompt: its greedy answer twice, "4", "junk"."""
    result = stage()
    figures = result.metrics
    assert figures["accuracy"] == 0.5
    assert figures["accuracy_difficulty_1"] == pytest.approx(1 / 3, abs=1e-6)
    assert figures["accuracy_difficulty_2"] == 1.0
    assert figures["pass_at_1"] == pytest.approx((2 / 4 + 1 / 4 + 0 + 2 / 4) / 4)
    assert figures["pass_at_4"] == 0.75
    assert figures["pass_at_8"] is None
    assert figures["maj_at_4"] == 0.5  # "2", "9", "4", "10"
    assert figures["best_of_4"] == 0.75  # 1 1, 2 2, and 5 5, where all is refused and the first draw is right
    # Accepted samples: "2" twice, the right "4". Right ones: those and "10" twice.
    assert figures["critique_precision"] == 1.0
    assert figures["critique_recall"] == pytest.approx(3 / 5)
    assert figures["refine_wrong_to_right"] == 0.5  # 2 2 mended; junk cannot be criticised
    assert figures["refine_right_to_wrong"] == 0.5  # 5 5 broken
    assert figures["distinct_answers"] == pytest.approx((2 + 2 + 1 + 2) / 4)
    assert figures["response_tokens"] == 2.0
    assert result.report == {**figures, "iteration": "i01"}


def test_tables_and_probe(stage: Callable[..., SimpleNamespace]) -> None:
    result = stage()
    kinds = dict(result.predictions.group_by("kind").len().iter_rows())
    assert kinds == {"greedy": 4, "sample": 16, "refined": 2}
    held_out = set(prompts("1 1", "2 2", "3 3", "5 5")["prompt_id"])
    assert set(result.predictions["prompt_id"]) == held_out
    assert result.probe.keys() == {"metrics", "guards"}
    told = stage(name="by prompt", probe_by_prompt=True).probe
    right, wrong = prompts("1 1", "2 2")["prompt_id"]
    assert told == {**result.probe, "by_prompt": {right: True, wrong: False}}
    assert result.probe["metrics"].keys() >= {"accuracy", "pass_at_1", "verification_gap"}
    assert result.probe["metrics"]["accuracy"] == 0.5
    guards = result.probe["guards"]
    assert guards["over_refinement"] == -0.5  # one of two mended, none broken
    assert guards["critique_unparsed"] == pytest.approx(2 / 6, abs=1e-6)  # of 2, 4, junk and 9, 4, junk
    assert guards["verification_gap"] == pytest.approx((1 - 2 / 4 + 1 - 1 / 4) / 2)
    assert result.context.figures["tokens"] == sum(
        result.context.figures[f"{name}_tokens"] for name in ("answer", "critique", "refine")
    )


def test_equal_responses_are_criticised_once_and_bytes_are_stable(stage: Callable[..., SimpleNamespace]) -> None:
    result = stage()
    critiques = [content for content in result.model.asked if content.startswith("sum 1 1")]
    assert len(critiques) == 4  # of the responses "2" and "4", in both sets
    assert result.bytes == stage(name="again").bytes


RESPOND = {
    "block": "respond", "of": ["greedy"], "template": "retry", "together": 1, "each": False, "per_prompt": None, "rounds": 1,
    "n": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 4,
}  # fmt: skip
AGAIN = {"of": ["again", "greedy"], "pick": "first", "critic": None, "rank_power": None}


def test_makers_go_on_from_answers_and_ways_choose_among_all(stage: Callable[..., SimpleNamespace]) -> None:
    """Greedy answers are 2, 9, junk and 10. A second attempt at "2 2" is right, all others are junk; where the critic
    refuses the greedy answer alone, "1 1" stays right. Three samples of each prompt are put into one answer, "6"."""

    def told(content: str, temperature: float, draw: int) -> str:
        if content.startswith(("retry", "gated")):
            return "4" if content.startswith(("retry 2 2", "gated 2 2")) else "junk"
        return "6" if content.startswith("merge") else script(content, temperature, draw)

    gated = {**RESPOND, "block": "respond_judged", "template": "gated", "which": {"critic": "own", "verdict": False}}
    merged = {**RESPOND, "template": "merge", "of": ["sample"], "together": 3}
    result = stage(
        reply=told,
        makers={"second": RESPOND, "checked": gated, "merged": merged},
        answers={
            "again": {**AGAIN, "of": ["second", "greedy"]},
            "gated": {**AGAIN, "of": ["checked", "greedy"]},
            "merge": {**AGAIN, "of": ["merged"]},
            "judged": {"of": ["second", "greedy"], "pick": "best", "critic": "own", "rank_power": None},
        },
    )
    figures = result.metrics
    assert figures["accuracy_again"] == 0.25  # 2 2 mended, 1 1 and 5 5 broken
    assert figures["accuracy_gated"] == 0.5  # 1 1 kept, 2 2 mended, 5 5 refused and broken
    assert figures["accuracy_merge"] == 0.25  # 3 3
    assert (
        figures["accuracy_judged"] == 0.75
    )  # 4 for 2 2, and 10 for 5 5, whose critic refuses both: the first with a score
    assert figures["tokens_again"] == (4 + 4) * 2 / 4
    assert figures["tokens_merge"] == (16 + 4) * 2 / 4
    kinds = dict(result.predictions.group_by("kind").len().iter_rows())
    assert {name: kinds[name] for name in ("again", "gated", "merge", "judged")} == dict.fromkeys(
        ("again", "gated", "merge", "judged"), 4
    )
    plain = stage(name="plain").metrics
    assert {name: value for name, value in figures.items() if name in plain} == plain  # nothing else changes


def test_without_truth_without_critics_without_refinement(stage: Callable[..., SimpleNamespace]) -> None:
    result = stage(Sums(has_truth=False))
    assert result.metrics["accuracy"] is None
    assert result.metrics["pass_at_1"] is None
    assert result.metrics["refine_wrong_to_right"] is None
    assert result.metrics["acceptance"] is not None
    assert result.predictions["correct"].null_count() == result.predictions.height
    bare = stage(name="bare", critics={}, best_of=None, refine=None)
    assert bare.metrics["accuracy"] == 0.5
    assert bare.metrics["critique_precision"] is None
    assert bare.probe["guards"]["critique_unparsed"] is None


def test_what_got_no_reply_counts_as_unanswered(stage: Callable[..., SimpleNamespace]) -> None:
    """Neither the greedy request of "1 1" nor the first sample of "5 5" is answered."""

    def told(content: str, temperature: float, draw: int) -> str:
        lost = (content == "1 1" and temperature == 0) or (content == "5 5" and temperature > 0 and draw == 0)
        return "(fails)" if lost else script(content, temperature, draw)

    result = stage(reply=told)
    kinds = dict(result.predictions.group_by("kind").len().iter_rows())
    assert (kinds["greedy"], kinds["sample"]) == (4, 16)
    lost = result.predictions.filter((pl.col("response") == "") & (pl.col("tokens") == 0))
    assert lost.select("kind", "draw", "correct", "verdict", "score", "answer").rows() == [
        ("greedy", 0, False, None, None, None), ("sample", 0, False, None, None, None),
    ]  # fmt: skip
    assert result.metrics["accuracy"] == 0.25
    assert result.metrics["pass_at_1"] == pytest.approx((2 / 4 + 1 / 4 + 0 + 1 / 4) / 4)
    assert result.metrics["unanswered"] == pytest.approx((1 + 1 + 3 + 2) / 16)


def test_benchmarks_join_the_held_out_figures_and_stay_out_of_the_loop(
    stage: Callable[..., SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []

    def load(chosen: dict[str, Any], root: Path, files: str, scores: bool) -> list[Any]:
        loaded.append((chosen["own"].limit, root, files, scores))
        return [SimpleNamespace(name="own", results=lambda model, seed: {"sums": {"acc,none": 0.25}})]

    monkeypatch.setattr(benchmarks, "load", load)
    (tmp_path / "run/mine").mkdir(parents=True)
    result = stage(benchmarks={"own": BENCHMARK}, benchmark_files="mine")
    assert loaded == [(2, tmp_path / "run", "mine", True)]
    assert result.metrics["benchmark_sums_acc"] == result.report["benchmark_sums_acc"] == 0.25
    assert "mine" in result.context.reads
    assert "benchmark" not in json.dumps(result.probe)
    assert not any(name.startswith("benchmark") for name in stage(name="without").metrics)
    assert len(loaded) == 1


def test_samples_vote_with_all_their_copies_and_the_greedy_answer_does_not(
    stage: Callable[..., SimpleNamespace],
) -> None:
    result = stage(critics={"own": {"block": "vote"}}, refine=None)
    scores = result.predictions.filter(pl.col("answer") == "2").sort("kind")[["kind", "score"]]
    assert scores.rows() == [("greedy", 2 / 4), ("sample", 2 / 4), ("sample", 2 / 4)]


def test_the_greedy_answer_leaves_the_vote_of_the_samples_alone(stage: Callable[..., SimpleNamespace]) -> None:
    """Of two samples of "1 1", the first is wrong: a greedy answer like the second would decide the vote."""

    def split(content: str, temperature: float, draw: int) -> str:
        return "2" if temperature == 0 or draw == 1 else "7"

    result = stage(reply=split, samples=2, critics={"own": {"block": "vote"}}, refine=None)
    ours = pl.col("prompt_id") == prompts("1 1")["prompt_id"][0]
    rows = result.predictions.filter(ours).sort("kind", "draw").select("kind", "answer", "score", "verdict").rows()
    assert rows == [("greedy", "2", 0.5, False), ("sample", "7", 0.5, False), ("sample", "2", 0.5, False)]
    assert result.probe["metrics"]["maj_at_2"] == result.probe["metrics"]["best_of_2"] == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": 4}, "did you mean 'samples'"),
        ({"samples": 0}, "evaluate.samples"),
        ({"temperature": "warm"}, "evaluate.temperature"),
        ({"best_of": "onw"}, "evaluate.best_of: unknown critic 'onw'; did you mean 'own'"),
        ({"critics": {"own": {"block": "factored_critiqe"}}}, "did you mean 'factored_critique'"),
        ({"refine": {**SECTION["refine"], "critic": "other"}}, "evaluate.refine.critic"),
        ({"refine": {**SECTION["refine"], "block": "rewrite"}}, "unknown block 'rewrite'"),
        ({"benchmarks": {"own": {**BENCHMARK, "shots": 2}}}, "evaluate.benchmarks.own: unknown key 'shots'"),
        ({"benchmarks": {"own": {**BENCHMARK, "tasks": []}}}, "evaluate.benchmarks.own.tasks"),
    ],
)
def test_bad_sections_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as raised:
        evaluate.parse({**SECTION, **changes})
    assert message in str(raised.value)
    assert issubclass(UnknownName, BadInput)


def test_only_evaluate_depends_on_the_held_out_set_and_nothing_in_the_loop_on_its_results() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    reads = {name: stage.get("do", stage)["deps"] for name, stage in stages.items()}
    secret = {"data/tasks", "data/tasks/", "data/tasks/heldout.parquet"}
    assert [name for name, deps in reads.items() if secret & set(deps)] == ["evaluate"]
    for name, deps in reads.items():
        results = [dep for dep in deps if "/evaluation" in dep and not dep.endswith("/evaluation/probe.json")]
        assert results == (["data/evaluations"] if name == "report" else [])
