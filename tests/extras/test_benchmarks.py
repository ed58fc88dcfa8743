"""Benchmarks through lm-eval on the task files of this repository, and against lm-eval's own model on a small one."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.blocks.evaluate import benchmarks, options
from tasks.core.asking.local import LocalModel
from tasks.core.asking.opener import Opener
from tasks.core.engines.contract import Sampling, Statistic, no_reply
from tasks.core.errors import BadInput, StageFailed
from tasks.core.models import folders, tokenizers, weights
from tasks.core.models.pointer import Pointer
from tests.support.models import ENGINE, Scripted
from tests.support.paths import ROOT

pytest.importorskip("lm_eval", reason="lm-eval is an extra: pip install -c constraints.txt -e '.[lm-eval]'")

FACTS = [json.loads(line) for line in (ROOT / "tasks/templates/benchmarks/facts.jsonl").read_text().splitlines()]
PLAIN = {"tasks": ["facts", "facts_choice"], "fewshot": None, "limit": None, "chat_template": True, "max_new_tokens": 8}
ARCHITECTURE = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip


class Examinee(Scripted):
    """Adds right, subtracts to 0, and finds the right choice where it adds."""

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], statistic: Statistic = "logprob"
    ) -> list[list[float]]:
        self.asked += len(prompts)
        return [
            [-1.0 if told.strip() == self.reply(asked, 0) else -2.0, -7.0]
            for asked, told in zip(prompts, responses, strict=True)
        ]


def reply(prompt: str, draw: int) -> str:
    question = prompt.strip().splitlines()[-1]
    fact = next(row for row in FACTS if row["question"] in question)
    return str(fact["answer"]) if "+" in fact["question"] else "0"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the repository's task files."""
    shutil.copytree(ROOT / "tasks/templates/benchmarks", tmp_path / "tasks/templates/benchmarks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def ask(root: Path, engine: Any, model: Path | None = None, digest: str = "d" * 32) -> LocalModel:
    opener = Opener(root, ENGINE, root / "scratch")
    made = LocalModel(Pointer("model", digest), model or root, ENGINE, root / "scratch", opener)
    made._engine = engine
    if model is None:
        made.render = lambda asked: [a if isinstance(a, str) else "\n".join(m["content"] for m in a) for a in asked]  # type: ignore[method-assign]
    return made


def measure(root: Path, model: LocalModel, **changes: Any) -> dict[str, float | None]:
    chosen = {"own": options.Benchmark(**{**PLAIN, **changes})}
    return benchmarks.measure(benchmarks.load(chosen, root, "tasks/templates/benchmarks"), model, 1)


def test_figures_by_hand_and_replies_that_are_stored(folder: Path) -> None:
    engine = Examinee(reply)
    model = ask(folder, engine)
    figures = measure(folder, model)
    adds = sum(row["answer"] == reply(row["question"], 0) for row in FACTS) / len(FACTS)
    chosen = [max(row["choices"], key=lambda choice: choice == reply(row["question"], 0)) for row in FACTS]
    right = sum(row["answer"] == choice for row, choice in zip(FACTS, chosen, strict=True)) / len(FACTS)
    assert 0.3 < adds < 0.7
    assert figures["benchmark_facts_exact_match"] == pytest.approx(adds)
    assert figures["benchmark_facts_exact_match_stderr"] == pytest.approx(
        (adds * (1 - adds) / (len(FACTS) - 1)) ** 0.5, abs=1e-6
    )
    assert figures["benchmark_facts_samples"] == len(FACTS)
    assert figures["benchmark_facts_choice_acc"] == pytest.approx(right)  # of equal scores the first
    assert engine.asked == 5 * len(FACTS)  # a reply and four choices for each
    again = Examinee(reply)
    assert measure(folder, ask(folder, again)) == figures
    assert again.asked == 0
    few = measure(folder, model, tasks=["facts"], limit=3)
    assert few["benchmark_facts_samples"] == 3


def test_an_edited_file_is_measured_anew(folder: Path) -> None:
    before = measure(folder, ask(folder, Examinee(reply)), tasks=["facts"])
    lines = [json.dumps({**row, "answer": "0"}) + "\n" for row in FACTS]
    (folder / "tasks/templates/benchmarks/facts.jsonl").write_text("".join(lines))
    after = measure(folder, ask(folder, Examinee(reply)), tasks=["facts"])
    assert after["benchmark_facts_exact_match"] != before["benchmark_facts_exact_match"]


def test_examples_come_as_turns_or_as_text(folder: Path) -> None:
    seen: list[str] = []

    def note(prompt: str, draw: int) -> str:
        seen.append(prompt)
        return "1"

    task = folder / "tasks/templates/benchmarks/facts.yaml"
    task.write_text(task.read_text() + "fewshot_split: test\n")
    measure(folder, ask(folder, Scripted(note)), tasks=["facts"], fewshot=2, limit=1)
    assert len(seen[0].splitlines()) == 5  # two examples, each a question and an answer, and the question
    seen.clear()
    weights.build(ARCHITECTURE, tokenizers.bpe_tokenizer(["fact 1 + 2 = 3"] * 9, 300), 1, folder / "model")
    measure(
        folder, ask(folder, Scripted(note), folder / "model"), tasks=["facts"], fewshot=2, limit=1, chat_template=False
    )
    assert seen[0].count("\n\n") == 2
    assert seen[0].startswith("fact ")
    assert seen[0].endswith("=")


def test_stop_strings_and_repeated_samples(folder: Path) -> None:
    task = folder / "tasks/templates/benchmarks/facts.yaml"
    text = task.read_text().replace('until: ["\\n"]', 'until: ["!", "."], do_sample: true, temperature: 0.7')
    task.write_text(text + "repeats: 3\n")
    draws: list[int] = []

    def note(prompt: str, draw: int) -> str:
        draws.append(draw)
        return reply(prompt, draw) + ".!junk"

    figures = measure(folder, ask(folder, Scripted(note)), tasks=["facts"], limit=2)
    assert sorted(draws) == [0, 0, 1, 1, 2, 2]
    expected = [row["answer"] == reply(row["question"], 0) for row in FACTS[:2]]
    assert figures["benchmark_facts_exact_match"] == sum(expected) / 2


def test_scores_are_not_asked_of_a_server_that_tells_none(folder: Path) -> None:
    for task, refused in (("facts", False), ("facts_choice", True)):
        chosen = {"own": options.Benchmark(**{**PLAIN, "tasks": [task]})}
        if not refused:
            assert benchmarks.load(chosen, folder, "tasks/templates/benchmarks", scores=False)
            continue
        with pytest.raises(
            BadInput, match=r"benchmarks\.own: task facts_choice is scored by log-probabilities of given text"
        ):
            benchmarks.load(chosen, folder, "tasks/templates/benchmarks", scores=False)


def test_a_request_without_a_reply_is_no_wrong_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ask(folder, Scripted(reply))
    monkeypatch.setattr(model, "generate", lambda asked, sampling, what: [[no_reply("timeout")] for _ in asked])
    with pytest.raises(StageFailed, match=r"40 requests got no reply \(timeout\); run it again"):
        measure(folder, model, tasks=["facts"])


@pytest.mark.parametrize(
    ("edit", "changes", "message"),
    [
        (None, {"tasks": ["fcats"]}, "unknown task 'fcats'"),
        (lambda text: text + "\n  : [", {}, r"facts\.yaml is no task of lm-eval"),
        (
            lambda text: text.replace("tasks/templates/benchmarks/facts.jsonl", "outside.jsonl"),
            {},
            "reads outside.jsonl, which is outside",
        ),
        (
            lambda text: text.replace("tasks/templates/benchmarks/facts.jsonl", "gone.jsonl"),
            {},
            "its tasks cannot be loaded",
        ),
        (
            lambda text: text.replace("generate_until", "loglikelihood_rolling"),
            {},
            "measures perplexity over rolling windows",
        ),
        (
            lambda text: text.replace("max_gen_toks: 4", "max_gen_toks: 4, top_k: 5"),
            {},
            "asks for top_k when it generates",
        ),
        (lambda text: text + 'gen_prefix: "It is"\n', {}, "begins the model's reply"),
        (lambda text: text + "unsafe_code: true\n", {}, "runs code that the model writes"),
    ],
)
def test_refusals(folder: Path, edit: Callable[[str], str] | None, changes: dict[str, Any], message: str) -> None:
    task = folder / "tasks/templates/benchmarks/facts.yaml"
    shutil.copy(folder / "tasks/templates/benchmarks/facts.jsonl", folder / "outside.jsonl")
    if edit:
        task.write_text(edit(task.read_text()))
    engine = Scripted(reply)
    with pytest.raises(BadInput, match=message):
        measure(folder, ask(folder, engine), **{"tasks": ["facts"], **changes})
    assert engine.asked == 0


@pytest.mark.parametrize("chat", [False, True])
def test_lm_evals_own_model_gives_the_same_figures(folder: Path, chat: bool) -> None:
    """Greedy replies, log-probabilities and whether a continuation is greedy, on a Llama with byte-level BPE."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    texts = [f"{row['question']} {row['answer']}" for row in FACTS]
    weights.build({**ARCHITECTURE, "initializer_range": 0.3}, tokenizers.bpe_tokenizer(texts, 400), 3, folder / "model")
    choice = (folder / "tasks/templates/benchmarks/facts_choice.yaml").read_text()
    likely = choice.replace("facts_choice", "facts_likely").replace("multiple_choice", "loglikelihood")
    likely = likely.replace("{{right}}", " {{answer}}").replace('doc_to_choice: "{{choices}}"\n', "")
    likely = likely.replace(
        "  - {metric: acc,",
        "  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}\n  - {metric: acc,",
    )
    (folder / "tasks/templates/benchmarks/likely.yaml").write_text(likely)
    names = ["facts", "facts_choice", "facts_likely"]
    theirs = simple_evaluate(
        model=HFLM(pretrained=str(folder / "model"), dtype="float32", device="cpu", batch_size=8),
        tasks=names, task_manager=TaskManager(include_path="tasks/templates/benchmarks", include_defaults=False), limit=12,
        bootstrap_iters=0, log_samples=True, apply_chat_template=chat, fewshot_as_multiturn=chat,
    )  # fmt: skip
    engine = Opener(folder, ENGINE, folder / "scratch")
    model = engine(Pointer("model", folders.digest(folder / "model")))
    ours = measure(folder, model, tasks=names, limit=12, chat_template=chat)
    assert theirs is not None
    for task in names:
        for key, value in theirs["results"][task].items():
            metric, _, _ = key.partition(",")
            if metric in ("acc", "perplexity", "exact_match"):
                assert ours[f"benchmark_{task}_{metric}"] == pytest.approx(value, rel=1e-3), (task, metric)
    replies = {sample["arguments"][0][0]: sample["resps"][0][0] for sample in theirs["samples"]["facts"]}
    found = model.generate(list(replies), Sampling(1, 0.0, 1.0, 4, 0), "x")
    assert [several[0].text.partition("\n")[0] for several in found] == list(replies.values())
    assert len(set(replies.values())) > 1
