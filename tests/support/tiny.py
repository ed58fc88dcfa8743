"""A tiny model, the options of a short training, and rows to train on."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from tasks.core import tables

ARCHITECTURE: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
TRAINING: dict[str, Any] = {
    "steps": 4,
    "learning_rate": 0.01,
    "warmup_steps": 1,
    "schedule": "cosine",
    "final_share": 0.1,
    "betas": [0.9, 0.98],
    "weight_decay": 0.05,
    "clip": 1.0,
    "precision": "float32",
    "threads": 1,
    "checkpoint_steps": 100,
    "pass_tokens": 16384,
    "gradient_checkpointing": False,
    "accelerate": None,
    "lora": None,
}
SFT: dict[str, Any] = {**TRAINING, "mixture": {"own": 2}, "packing": False}
DPO: dict[str, Any] = {
    **TRAINING, "mixture": {"own": 2}, "loss": "sigmoid", "beta": 0.1, "nll": 0.0, "optimism": 0.0, "replay": {},
    "replay_coefficient": 0.0,
}  # fmt: skip
KTO: dict[str, Any] = {
    **TRAINING, "mixture": {"own": 2}, "beta": 0.1, "desirable": 1.0, "undesirable": 1.0, "replay": {},
    "replay_coefficient": 0.0,
}  # fmt: skip
LORA: dict[str, Any] = {
    "rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "v_proj"], "adapter": "keep", "load_in_4bit": False
}  # fmt: skip


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def sft_rows(texts: Sequence[tuple[str, str]], **changes: Any) -> pl.DataFrame:
    """A row for every (question, answer), of part "own"."""
    rows = [
        {
            "row_id": f"r{i:02}",
            "part": "own",
            "prompt": user(question),
            "completion": reply(answer),
            "weight": 1.0,
            "prompt_id": f"p{i}",
            "candidate_id": None,
            "iteration": "i01",
            **changes,
        }
        for i, (question, answer) in enumerate(texts)
    ]
    return tables.frame(rows, tables.SFT)


def pair_rows(texts: Sequence[tuple[str, str, str]], **changes: Any) -> pl.DataFrame:
    """A pair for every (question, chosen, rejected)."""
    rows = [
        {
            "row_id": f"d{i}",
            "part": "own",
            "prompt": user(question),
            "chosen": reply(chosen),
            "rejected": reply(rejected),
            "margin": 0.5,
            "weight": 1.0,
            "smoothing": 0.0,
            "prompt_id": f"p{i}",
            "chosen_id": "c",
            "rejected_id": "r",
            "iteration": "i01",
            **changes,
        }
        for i, (question, chosen, rejected) in enumerate(texts)
    ]
    return tables.frame(rows, tables.PAIRS)


def rated_rows(texts: Sequence[tuple[str, str, bool]], **changes: Any) -> pl.DataFrame:
    """A rated row for every (question, answer, whether it is a good one)."""
    rows = [
        {
            "row_id": f"k{i}",
            "part": "own",
            "prompt": user(question),
            "completion": reply(answer),
            "label": good,
            "value": float(good),
            "weight": 1.0,
            "prompt_id": f"p{i}",
            "candidate_id": f"c{i}",
            "iteration": "i01",
            **changes,
        }
        for i, (question, answer, good) in enumerate(texts)
    ]
    return tables.frame(rows, tables.RATED)
