"""The sample stage: the previous policy's answers to the iteration's prompts, each with where it comes from."""

import pytest

from tasks import families, sample
from tasks.core import tables
from tests.support.family import Adding
from tests.support.models import policy, scripted_model
from tests.support.work import context, prompts

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4}
SECTION = {
    "many": {"block": "iid_k", "template": "answer", "n": 3, **SAMPLING},
    "one": {"block": "single", **SAMPLING, "temperature": 0.0},
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setattr(families, "read", lambda context: Adding())
    tables.write(prompts("add 2 3", "add 1 1"), tmp_path / "data/i01/prompts.parquet", tables.PROMPTS)
    policy(tmp_path, "i00")
    return tmp_path


def test_every_block_answers_every_prompt(repository):
    opened = []
    model, engine = scripted_model(repository, lambda prompt, draw: str(draw) if draw < 2 else "no idea")

    def open_model(pointer):
        opened.append(pointer)
        return model

    given = context(repository, "sample", "i01", sample.parse(SECTION), open_model)
    sample.run(given)
    assert engine.asked == 8
    assert {pointer.path for pointer in opened} == {"data/i00/candidate"}  # the policy that i00 promoted
    made = tables.read(repository / "data/i01/samples.parquet", tables.CANDIDATES)
    assert dict(made.group_by("source").len().iter_rows()) == {"many": 6, "one": 2}
    assert set(made["model"]) == {"d" * 32}
    assert made["turn"].to_list() == [0] * 8
    assert made["parent_id"].null_count() == 8
    assert given.figures == {"samples": 8, "tokens": made["tokens"].sum(), "answered": 0.75}
    assert set(given.reads) == {"data/i00/pointer.json", "data/i01/prompts.parquet"}


def test_two_blocks_draw_other_numbers(repository):
    """Each block has a seed of its own, made of the stage's and its name."""
    model, _ = scripted_model(repository, lambda prompt, draw: "1")
    seeds = []
    generate = model.generate
    model.generate = lambda asked, sampling, *rest: seeds.append(sampling.seed) or generate(asked, sampling, *rest)
    section = {name: {"block": "iid_k", "template": "answer", "n": 1, **SAMPLING} for name in ("a", "b")}
    sample.run(context(repository, "sample", "i01", sample.parse(section), lambda pointer: model))
    assert len(set(seeds)) == 2
