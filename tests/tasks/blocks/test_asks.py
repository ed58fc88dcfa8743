"""How many requests blocks say that they put, by hand; what they really put is compared in tests/e2e."""

import pytest

from tasks import evaluate
from tasks.blocks import critique, refine, sample, synthesize, train
from tasks.core.asking.demand import Counts, Demand
from tasks.core.block import asks_nothing, bind
from tasks.core.training.options import DpoOptions, SftOptions

COUNTS = Counts(prompts=10, candidates=40, questions=4)
DRAWN = {"draws": 3, "temperature": 0.7, "top_p": 1.0, "max_new_tokens": 8}
CHOSEN = {"draws": 3, "temperature": 0.7, "top_p": 1.0}
REVISE = {"critic": "own", "per_prompt": 3, "rounds": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 9}
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 16}


@pytest.mark.parametrize(
    ("module", "block", "options", "expected"),
    [
        (sample, "iid_k", {"template": "answer", "n": 4, **SAMPLING}, Demand("answer", 40, 16, 4)),
        (sample, "single", SAMPLING, Demand("answer", 10, 16)),
        (critique, "factored_critique", {"max_new_tokens": 4}, Demand("question", 160, 4)),
        (critique, "nl_critique", DRAWN, Demand("critique", 120, 8, 3)),
        (critique, "nl_critique", {**DRAWN, "temperature": 0.0}, Demand("critique", 40, 8, 1)),
        (critique, "judge_pointwise", DRAWN, Demand("critique", 120, 8, 3)),
        (
            synthesize,
            "self_instruct",
            {"n": 5, "shots": 0, "attempts": 4, "near_copy": None, **SAMPLING},
            Demand("invent", 20, 16, 4),
        ),
        (critique, "judge_pairwise", {**DRAWN, "pairs": 5}, Demand("critique", 10 * 2 * 5 * 3, 8, 3)),
        (critique, "judge_pairwise", {**DRAWN, "pairs": None}, Demand("critique", 10 * 2 * 6 * 3, 8, 3)),
        (critique, "judge_checklist", {**DRAWN, "criteria": ["It is short."]}, Demand("critique", 40 * 3, 8, 3)),
        (critique, "judge_pointwise_structured", CHOSEN, Demand("critique", 120, 16, 3)),
        (critique, "judge_pairwise_structured", {**CHOSEN, "pairs": 5}, Demand("critique", 10 * 2 * 5 * 3, 16, 3)),
        (
            critique,
            "judge_checklist_structured",
            {**CHOSEN, "criteria": ["It is short."]},
            Demand("critique", 120, 16, 3),
        ),
        (
            critique,
            "likelihood",
            {"statistic": "entropy", "span": "all", "reduce": "mean", "minus": None},
            Demand("critique", 40, 0),
        ),
        (critique, "judge_pointwise_logprobs", {}, Demand("critique", 40 * 6, 0)),
        (critique, "judge_pairwise_logprobs", {"pairs": 1}, Demand("critique", 10 * 2 * 2, 0)),
        (refine, "critique_revise", REVISE, Demand("refine", 60, 9)),
        (refine, "critique_revise", {**REVISE, "per_prompt": 9}, Demand("refine", 80, 9)),
    ],
)
def test_a_blocks_requests(module, block, options, expected) -> None:
    (bound,) = bind(module.BLOCKS, {block: options}, "here")
    assert bound.asks(COUNTS) == [expected]


def test_every_block_that_asks_a_model_says_how_often() -> None:
    silent = {"vote", "vote_entropy", "rank_agreement", "both", "verifier", "fixed_unlabeled", "difficulty_curriculum"}
    for module in (sample, critique, refine, synthesize):
        assert {name for name, block in module.BLOCKS.items() if block.asks is asks_nothing} <= silent, module.__name__


def test_refinements_are_criticised_again() -> None:
    (revise,) = bind(refine.BLOCKS, {"critique_revise": REVISE}, "refine")
    judges = bind(critique.BLOCKS, {"own": {"block": "factored_critique", "max_new_tokens": 4}, "vote": {}}, "critique")
    made = refine.asks(revise, judges, COUNTS)
    assert made == [Demand("refine", 60, 9), Demand("question", 60 * 4, 4)]


def test_evaluation_asks_for_answers_their_critiques_and_one_refinement() -> None:
    options = evaluate.parse(
        {
            "samples": 8,
            **SAMPLING,
            "critics": {"own": {"block": "factored_critique", "max_new_tokens": 4}},
            "best_of": "own",
            "makers": {},
            "answers": {},
            "benchmarks": None,
            "benchmark_files": "tasks/templates/benchmarks",
            "probe_by_prompt": False,
            "refine": {"block": "critique_revise", **REVISE, "per_prompt": 1, "rounds": 1},
        }
    )
    assert [(d.kind, d.requests) for d in evaluate.asks(options, 100, 2)] == [
        ("answer", 100), ("answer", 800), ("question", 1800), ("refine", 100), ("question", 200),
    ]  # fmt: skip


def test_rows_of_a_training() -> None:
    common = {
        "steps": 10, "learning_rate": 0.1, "warmup_steps": 0, "schedule": "constant", "final_share": 0.0,
        "betas": [0.9, 0.9], "weight_decay": 0.0, "clip": 1.0, "precision": "float32", "threads": 1,
        "checkpoint_steps": 5, "lora": None, "pass_tokens": 4096, "gradient_checkpointing": False, "accelerate": None,
    }  # fmt: skip
    assert train.rows(SftOptions(**common, packing=False, mixture={"own": 5, "solve": 3})) == 80
    preferences = {
        "loss": "sigmoid",
        "beta": 0.1,
        "nll": 0.0,
        "optimism": 0.0,
        "replay_coefficient": 1.0,
        "mixture": {"own": 4},
    }
    assert train.rows(DpoOptions(**common, **preferences, replay={"solve": 3})) == 110
