"""Lives of prompts, candidates, rows and models in a small repository of two iterations, the second unfinished."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.history import lives, page
from tasks.core import tables
from tasks.core.errors import BadInput, MissingArtifact, TableMismatch
from tasks.core.models import folders
from tests.support.paths import ROOT
from tests.support.tiny import user
from tests.support.work import prompts

HOSTILE = "6\x1b[2J\u202e [bold red]not markup[/]"


def write(root: Path, path: str, rows: list[dict[str, Any]], schema: pl.Schema) -> None:
    given = [dict.fromkeys(schema) | row for row in rows]
    tables.write(tables.frame(given, schema), root / "data" / f"{path}.parquet", schema)


def record(root: Path, path: str, value: Any) -> None:
    file = root / "data" / f"{path}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def candidate(name: str, prompt: str, response: str, model: str, parent: str | None = None) -> dict[str, Any]:
    return {
        "candidate_id": name, "prompt_id": prompt, "parent_id": parent, "source": "revise" if parent else "iid",
        "turn": int(parent is not None), "draw": 0, "messages": user("?"), "response": response, "answer": "5",
        "prompt_tokens": 3, "tokens": 2, "logprob": -0.5, "finish_reason": "stop", "model": model,
    }  # fmt: skip


def opinion(name: str, verdict: bool | None, model: str, draw: int = 0) -> dict[str, Any]:
    parsed = verdict is not None
    return {
        "candidate_id": name, "critic": "c", "draw": draw, "text": f"critique of {name}", "verdict": verdict,
        "score": float(verdict) if verdict is not None else None, "parsed": parsed,
        "why": None if parsed else "gibberish", "tokens": 1, "model": model,
    }  # fmt: skip


def sft(row: str, part: str, made_of: str | None, iteration: str | None, prompt: str | None) -> dict[str, Any]:
    texts = {"prompt": user("a question"), "completion": [{"role": "assistant", "content": "5"}]}
    ids = {"row_id": row, "candidate_id": made_of, "prompt_id": prompt, "iteration": iteration}
    return {**ids, **texts, "part": part, "weight": 1.0}


FIRST, REFINED, REFUSED, SILENT = "aaaaaa0000000001", "aaaaaa0000000002", "bbbbbb0000000003", "cccccc0000000004"
ROW, PAIR, SEED_ROW = "dddddd0000000005", "eeeeee0000000006", "fffffe0000000007"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str, dict[str, str]]:
    """The root, the prompt's id, and the models' digests: i00 the base, i01 trained and refused."""
    monkeypatch.chdir(tmp_path)
    for key in ("i00", "i01"):
        folder = tmp_path / "data" / key / "candidate"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(key)
    record(tmp_path, "i01/candidate/lineage", {})
    base = {"path": "data/i00/candidate", "digest": folders.digest(tmp_path / "data/i00/candidate")}
    lineage = {"initial": base, "reference": base, "dataset": "0" * 32, "iteration": "i01"}
    record(tmp_path, "i01/candidate/lineage", lineage | {"rows": {"sft": {"own": 1}, "dpo": {"pairs": 1}}})
    digests = {key: folders.digest(tmp_path / f"data/{key}/candidate") for key in ("i00", "i01")}
    record(tmp_path, "i00/policy", {**base, "promoted": True, "reason": "base model"})
    record(tmp_path, "i01/policy", {**base, "promoted": False, "reason": "kept the previous policy: worse"})
    record(tmp_path, "i01/critics", {"judge": base, "critics": {"c": {"block": "nl_critique"}}})
    record(tmp_path, "i01/evaluation/metrics", {"accuracy": 0.25, "accuracy_low": 0.2, "accuracy_high": None})
    record(tmp_path, "i00/evaluation/metrics", {})
    table = prompts("add 2 3")
    prompt, judge = str(table["prompt_id"][0]), base["digest"]
    held_out = prompts("add 9 9").with_columns(answer=pl.lit("secret 18"))
    corpus = [sft(SEED_ROW, "solve", None, None, None)]
    for name, rows in (("prompts", table), ("probe", table.clear()), ("heldout", held_out)):
        write(tmp_path, f"tasks/{name}", rows.to_dicts(), tables.PROMPTS)
    write(tmp_path, "tasks/corpus", corpus, tables.SFT)
    write(tmp_path, "i01/prompts", table.with_columns(source=pl.lit("pool")).to_dicts(), tables.PROMPTS)
    sampled = [candidate(FIRST, prompt, HOSTILE, judge), candidate(REFUSED, prompt, "7\nor 8", judge)]
    write(tmp_path, "i01/samples", [*sampled, candidate(SILENT, prompt, "9", judge)], tables.CANDIDATES)
    given = [opinion(FIRST, False, judge), opinion(REFUSED, False, judge), opinion(SILENT, None, judge)]
    write(tmp_path, "i01/critiques", given, tables.CRITIQUES)
    write(tmp_path, "i01/refinements", [candidate(REFINED, prompt, "5", judge, FIRST)], tables.CANDIDATES)
    write(tmp_path, "i01/refinement_critiques", [opinion(REFINED, True, judge)], tables.CRITIQUES)
    pair = {
        "row_id": PAIR, "part": "own", "prompt": user("a question"), "chosen": user("5"), "rejected": user("7"),
        "margin": 1.0, "weight": 1.0, "smoothing": 0.0, "prompt_id": prompt, "chosen_id": REFINED,
        "rejected_id": REFUSED, "iteration": "i01",
    }  # fmt: skip
    write(tmp_path, "i01/dataset/sft", [sft(ROW, "own", REFINED, "i01", prompt), *corpus], tables.SFT)
    write(tmp_path, "i01/dataset/pairs", [pair], tables.PAIRS)
    gone = [(FIRST, "accepted", "refused"), (SILENT, "accepted", "no judgement: gibberish")]
    dropped = [{"row_id": row, "prompt_id": prompt, "block": block, "reason": why} for row, block, why in gone]
    write(tmp_path, "i01/dataset/dropped", dropped, tables.DROPPED)
    write(tmp_path, "i02/prompts", [], tables.PROMPTS)
    return tmp_path, prompt, digests


def text(root: Path, given: str, everything: bool = False) -> str:
    return "\n".join(line for line, _ in page.page(lives.life(root, given), everything).lines)


def test_a_prompt_leads_to_the_models_trained_on_it(repository):
    root, prompt, digests = repository
    found = lives.life(root, prompt[:8])
    assert (found["kind"], found["id"]) == ("prompt", prompt)
    assert found["prompt"]["sources"] == [{"where": "pool", "block": "test"}, {"where": "i01", "block": "pool"}]
    trees = {tree["candidate_id"]: tree for tree in found["candidates"]["i01"]}
    assert set(trees) == {FIRST, REFUSED, SILENT}
    assert trees[FIRST]["fate"] == {"kept": False, "rows": [], "why": ["accepted: refused"]}
    assert trees[REFUSED]["fate"] == {"kept": True, "rows": [PAIR], "why": []}
    assert trees[SILENT]["critiques"][0]["why"] == "gibberish"
    refined = trees[FIRST]["refinements"][0]
    assert refined["fate"] == {"kept": True, "rows": [ROW, PAIR], "why": []}
    assert {row["row_id"]: row["datasets"] for row in found["rows"]} == {
        ROW: [{"iteration": "i01", "part": "own", "drawn": True}],
        PAIR: [{"iteration": "i01", "part": "own", "drawn": True}],
    }
    model = found["models"][0]
    assert (model["digest"], model["promoted"]) == (digests["i01"], False)
    assert {model[role]["digest"] for role in ("initial", "reference", "judge")} == {digests["i00"]}


def test_a_prompt_of_the_users_data_knows_its_row(repository):
    root, prompt, _ = repository
    origin = {"prompt_id": prompt, "part": "pool", "file": "train.jsonl", "row": 17, "id": "q-17"}
    assert "train.jsonl" not in text(root, prompt)
    write(root, "tasks/origins", [origin], tables.ORIGINS)
    assert "from train.jsonl, row 17, id q-17" in text(root, prompt)


def test_a_refinement_shows_what_it_was_made_from_and_why_its_sibling_was_dropped(repository):
    root, _, _ = repository
    found = lives.life(root, REFINED)
    assert [c["candidate_id"] for c in found["ancestors"]["i01"]] == [FIRST]
    assert [row["row_id"] for row in found["rows"]] == [ROW, PAIR]
    shown = text(root, REFINED)
    for expected in (
        "add 2 3",
        f"refinement {REFINED}",
        f"sample {FIRST}",
        "accepts, score 1.000",
        f"row {ROW}",
        "c (nl_critique)",
    ):
        assert expected in shown
    silent = text(root, SILENT)
    assert "not parsed: gibberish" in silent
    assert "accepted: no judgement: gibberish" in silent
    assert "dataset rows: 0" in silent


def test_rows_and_pairs_show_texts_sides_and_models(repository):
    root, _, digests = repository
    shown = text(root, "eeeeee")
    assert f"chosen {REFINED}, rejected {REFUSED}" in shown
    assert f"data/i01/candidate {digests['i01']}" in shown
    assert "kept the previous policy: worse" in shown
    seed = lives.life(root, SEED_ROW)["rows"][0]
    assert seed["datasets"] == [
        {"iteration": "i00", "part": "solve", "drawn": None},
        {"iteration": "i01", "part": "solve", "drawn": False},
    ]
    assert "of the seed corpus" in text(root, SEED_ROW)


def test_a_model_shows_its_data_gate_accuracy_and_use(repository):
    root, _, digests = repository
    shown = text(root, digests["i01"][:10])
    assert "held-out accuracy 25.0 % (95 % interval 20.0 to -)" in shown
    assert "1 rows of sft, part own, made in i01" in shown
    assert "block dpo drew from: pairs 1" in shown
    base = lives.life(root, digests["i00"])
    roles = {(entry["iteration"], entry["role"]) for entry in base["used"]}
    assert roles == {("i00", "policy"), ("i01", "policy"), *(("i01", r) for r in ("initial", "reference", "judge"))}
    assert base["wrote"] == {"i01": {"samples": 3, "critiques": 3, "refinements": 1, "refinement_critiques": 1}}
    assert base["models"][0]["data"] == [{"table": "corpus", "part": "solve", "iteration": None, "rows": 1}]


def test_what_is_missing_is_said_and_the_rest_is_shown(repository):
    root, prompt, _ = repository
    shown = text(root, prompt)
    assert "data/i02/samples.parquet" in shown
    assert "dvc checkout" in shown
    for name in ("samples.parquet", "candidate/lineage.json", "dataset/dropped.parquet", "policy.json"):
        (root / "data/i01" / name).unlink()
    found = lives.life(root, REFUSED)
    assert found["prompt"]["prompt_id"] == prompt
    lost = found["candidates"]["i01"][0]
    assert (lost["response"], lost["critiques"][0]["verdict"]) == (None, False)
    assert found["rows"][0]["datasets"][0]["drawn"] is None
    assert "its text is not there" in text(root, REFUSED)
    (root / "data/i01/dataset/pairs.parquet").unlink()
    assert lives.life(root, REFUSED)["candidates"]["i01"][0]["fate"]["kept"] is None
    assert "not yet at its gate" in text(root, ROW)


def test_held_out_answers_stay_where_they_are(repository):
    root, _, _ = repository
    held_out = str(prompts("add 9 9")["prompt_id"][0])
    shown = text(root, held_out)
    assert "held-out set" in shown
    assert "secret" not in json.dumps(lives.life(root, held_out))


@pytest.mark.parametrize(
    ("given", "message"),
    [("aaaaaa", "2 ids"), ("aaaaa", "at least 6"), ("sample", "at least 6"), ("123456", "no prompt, candidate")],
)
def test_ids_that_cannot_be_followed_are_refused(repository, given, message):
    with pytest.raises(BadInput, match=message):
        lives.life(repository[0], given)


def test_damaged_or_absent_artifacts_are_named(repository, tmp_path_factory):
    root, prompt, _ = repository
    (root / "data/i01/samples.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(TableMismatch, match=r"data/i01/samples\.parquet"):
        lives.life(root, prompt)
    with pytest.raises(MissingArtifact, match="dvc repro"):
        lives.life(tmp_path_factory.mktemp("empty"), prompt)


def test_long_lists_and_texts_are_cut_unless_asked_for(repository):
    root, prompt, digests = repository
    many = [candidate(f"{n:016x}", prompt, f"answer {n} " + "x" * 500, digests["i00"]) for n in range(30)]
    write(root, "i01/samples", many, tables.CANDIDATES)
    shown = text(root, prompt)
    assert shown.count("\n  sample ") == page.SHOWN
    assert "... and 13 more samples (--all)" in shown  # 30, and three whose texts are lost
    assert re.search(r"x \.\.\. \(5\d\d characters, --all\)", shown)
    full = text(root, prompt, everything=True)
    assert full.count("\n  sample ") == 33
    assert "--all" not in full


def test_the_command_prints_plain_text_or_json_and_exits_2_for_bad_ids(repository):
    root, prompt, _ = repository

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.trace", *arguments]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "", "PYTHONIOENCODING": "utf-8"}
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)

    before = sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*"))
    plain = run(prompt)
    assert plain.returncode == 0, plain.stderr
    assert r"6\x1b[2J\u202e [bold red]not markup[/]" in plain.stdout
    assert "\x1b" not in plain.stdout
    assert "    | or 8" in plain.stdout
    whole = run(prompt, "--json")
    assert json.loads(whole.stdout)["candidates"]["i01"][0]["response"] == HOSTILE
    refused = run("aaaaaa")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"candidate {FIRST}" in refused.stderr
    assert sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*")) == before


def test_a_comparison_is_seen_from_both_sides(repository):
    root, prompt, digests = repository
    rows = tables.read(root / "data/i01/critiques.parquet", tables.CRITIQUES).to_dicts()
    against = {
        **opinion(FIRST, True, digests["i00"]),
        "critic": "pairs",
        "other_id": REFUSED,
        "text": "as A:\nWinner: A",
    }
    tied = {
        **opinion(FIRST, True, digests["i00"]),
        "critic": "pairs",
        "other_id": SILENT,
        "verdict": None,
        "score": 0.5,
    }
    write(root, "i01/critiques", [*rows, against, tied], tables.CRITIQUES)
    trees = {tree["candidate_id"]: tree for tree in lives.life(root, prompt)["candidates"]["i01"]}
    seen = {name: [(c["other_id"], c["verdict"], c["score"]) for c in tree["critiques"] if c["critic"] == "pairs"]
            for name, tree in trees.items()}  # fmt: skip
    assert seen == {
        FIRST: [(REFUSED, True, 1.0), (SILENT, None, 0.5)], REFUSED: [(FIRST, False, 0.0)], SILENT: [(FIRST, None, 0.5)]
    }  # fmt: skip
    shown = text(root, REFUSED, everything=True)
    assert f"critic pairs, draw 0 against {FIRST}" in shown
    assert ": worse, score 0.000" in shown
    assert ": no preference, score 0.500" in text(root, SILENT)
