"""What base and train are given in tests: sections, rows, and a context over a folder with a seed corpus."""

import polars as pl
import torch

from tests.support import tiny

torch.set_num_threads(1)

BASE = {
    "pretrained": None,
    "chat_template": None,
    "chat_template_options": {},
    "tokenizer": {"vocabulary_size": 300},
    "architecture": {**tiny.ARCHITECTURE, "max_position_embeddings": 32},
    "sft": {**tiny.SFT, "mixture": {"copy": 3}},
}
TRAIN = {"sft": {**tiny.SFT, "mixture": {"own": 2, "copy": 1}}}
DPO = {**tiny.DPO, "loss": "ipo"}


class Words:
    """As much of a family as base asks for."""

    def __init__(self, words):
        self.words = words

    def vocabulary(self):
        return self.words


def rows(parts):
    made = [tiny.sft_rows([(f"{i} :", str(i)) for i in range(5)], part=part) for part in parts]
    return pl.concat(made).with_columns(row_id=pl.col("part") + pl.col("row_id"))


def pairs():
    return tiny.pair_rows([("3 :", "3", "4 4")] * 2, margin=1.0)


def candidate(context):
    return context.root / f"data/{context.iteration}/candidate"
