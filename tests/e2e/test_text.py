"""One iteration on word problems from a user's file, with a model built and trained here."""

import json

import polars as pl
import pytest
import yaml

from tasks.core import tables
from tests.support.inprocess import perform, use
from tests.support.paths import SHARED
from tests.support.work import ROWS, pairs

GSM8K = SHARED / "gsm8k/train.jsonl"
STAGES = ("synthesize", "sample", "critique", "refine", "filter", "train", "evaluate", "promote")
BASE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


JUDGES = {
    "pairs": {"block": "judge_pairwise_logprobs", "pairs": 2},
    "points": {"block": "judge_pointwise_logprobs"},
    "list": {"block": "judge_checklist_logprobs", "criteria": ["It is right.", "It is short."]},
    "taken": {"block": "judge_pairwise_structured", "pairs": 2, "draws": 1, "temperature": 0.0, "top_p": 1.0},
    "points taken": {"block": "judge_pointwise_structured", "draws": 2, "temperature": 1.0, "top_p": 1.0},
    "sure": {"block": "likelihood", "statistic": "self_certainty", "span": "all", "reduce": "mean", "minus": None},
    "said": {"block": "judge_pairwise", "pairs": 1, "draws": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 8},
}
PREFER = {
    "preferred": {"block": "pairs_preferred", "critic": "pairs", "min_margin": 0.0, "per_prompt": 2},
    "best": pairs(critic="points"),
}


def iterate(root, source, fields, vocabulary, tokens, recipe="lmsi"):
    """Base and one iteration of `lmsi` with `keep_all` in place of the vote, which a model this small never wins; or of
    `self_rewarding` with judges that read log-probabilities, which every model gives."""
    use(root, recipe, family="text")
    params = yaml.safe_load((root / "params.yaml").read_text())
    prepare, base = params["prepare"], params["base"]
    prepare["source"] = str(source)
    prepare["options"] |= {**fields, "heldout": 6, "probe": 4, "labelled": 60, "limit": 120}
    base |= {"pretrained": None, "tokenizer": {"vocabulary_size": vocabulary}}
    base["architecture"] |= {**BASE, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 1024}
    base["sft"] |= {"steps": 30, "warmup_steps": 3, "mixture": {"solve": 16}, "threads": 1}
    params["engine"] |= {"threads": 1}
    params["synthesize"]["pool"]["n"] = 12
    params["sample"]["iid"] |= {"n": 3, "max_new_tokens": tokens}
    if recipe == "lmsi":
        params["filter"] = {"keep_all": {}, "deduplicate": {}, "rows": ROWS}
        params["train"]["sft"] |= {"steps": 4, "warmup_steps": 1, "mixture": {"own": 8}, "threads": 1}
    else:
        params["critique"], params["filter"] = JUDGES, PREFER
        params["train"]["dpo"] |= {"steps": 2, "warmup_steps": 1, "mixture": {"own": 4}, "threads": 1}
    params["evaluate"] |= {"samples": 2, "max_new_tokens": tokens, "critics": {}, "best_of": None, "refine": None}
    params["iterations"] = {"i01": params["iterations"]["i01"]}
    params["evaluations"] = {key: {} for key in ("i00", *params["iterations"])}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for stage, key in (("prepare", None), ("base", None), ("evaluate", "i00")):
        perform(root, stage, key)
    for stage in STAGES:
        perform(root, stage, "i01")
    samples = tables.read(root / "data/i01/samples.parquet", tables.CANDIDATES)
    assert samples.height == 36
    rows = tables.read(root / "data/i01/dataset/sft.parquet", tables.SFT)
    assert set(rows["candidate_id"]) <= set(samples["candidate_id"])
    metrics = json.loads((root / "data/i01/evaluation/metrics.json").read_text())
    assert 0 <= metrics["accuracy"] <= 1
    assert json.loads((root / "data/i01/policy.json").read_text())["gate_metric"] == "accuracy"
    return samples


@pytest.mark.parametrize("recipe", ["lmsi", "self_rewarding"])
def test_a_users_file_of_word_problems(tmp_path, recipe):
    rows = [
        {
            "id": i,
            "problem": f"Ann has {i} nuts and finds {i % 7} more. How many nuts?",
            "solution": f"#### {i + i % 7}",
        }
        for i in range(200)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"prompt_field": "problem", "answer_field": "solution"}
    samples = iterate(tmp_path, "mine.jsonl", fields, 400, 24, recipe)
    if recipe == "lmsi":
        return
    critiques = tables.read(tmp_path / "data/i01/critiques.parquet", tables.CRITIQUES)
    by_critic = {name: rows for [name], rows in critiques.group_by("critic")}
    assert set(by_critic) == set(JUDGES)
    shown = samples.filter(pl.col("response").str.strip_chars() != "").select("candidate_id")
    for name in ("pairs", "points", "list"):
        judged = by_critic[name].join(shown, on="candidate_id", how="semi")
        assert judged.height >= 12
        assert judged["parsed"].all()
        assert judged["score"].is_between(0, 1).all()
        assert judged["tokens"].sum() == 0
    assert not by_critic["said"]["parsed"].any()  # this model writes no verdicts
    taken = by_critic["taken"]  # but takes one where nothing else is allowed
    assert (taken["parsed"] | (taken["why"] == "the orders disagree")).all()
    points = by_critic["points taken"].join(shown, on="candidate_id", how="semi")
    assert points["parsed"].all()
    assert set(points["score"]) <= {number / 5 for number in range(6)}
    assert by_critic["sure"].height == samples.height
    assert (by_critic["sure"]["score"] > 0).all()
    pairs = tables.read(tmp_path / "data/i01/dataset/pairs.parquet", tables.PAIRS)
    assert pairs.height
    assert set(pairs["chosen_id"]) | set(pairs["rejected_id"]) <= set(samples["candidate_id"])


@pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K is not part of this repository, and not beside it here")
def test_gsm8k(tmp_path):
    samples = iterate(tmp_path, GSM8K, {"prompt_field": "question", "answer_field": "answer"}, 2000, 64)
    assert all("assistant" not in text for text in samples["response"])
