"""The stages base and train: what they write, what they point at, what they refuse."""

import json
from dataclasses import replace

import polars as pl
import pytest
import torch

from tasks import base, train
from tasks.core import engines, tables
from tasks.core.context import Context
from tasks.core.errors import BadInput, EmptyDataset, MissingArtifact, OutOfMemory, StageFailed, UnknownName
from tasks.core.models import folders, tokenizers
from tasks.core.models.pointer import Pointer
from tasks.core.training import trainers
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


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.families.load", lambda root: Words([":", *map(str, range(10))]))
    (tmp_path / "data/tasks").mkdir(parents=True)
    (tmp_path / "data/tasks/family.json").write_text('{"options": {}}')
    tables.write(rows(["copy"]), tmp_path / "data/tasks/corpus.parquet", tables.SFT)
    return Context(
        stage="base",
        iteration="i00",
        row=dict.fromkeys(("previous", "initial", "reference", "judge"), "i00"),
        options=base.parse(BASE),
        seed=3,
        labels=False,
        engine={},
        root=tmp_path,
        staging=tmp_path,  # what is written is there for the next stage
        scratch=tmp_path / "scratch",
        open_model=lambda pointer: pytest.fail("training asks no model"),
    )


@pytest.fixture
def trained(context):
    """After base, with a dataset of i01."""
    base.run(context)
    folder = context.root / "data/i01/dataset"
    tables.write(rows(["own", "copy"]), folder / "sft.parquet", tables.SFT)
    tables.write(pairs(), folder / "pairs.parquet", tables.PAIRS)
    return replace(context, stage="train", iteration="i01", options=train.parse(TRAIN), figures={}, curves=[])


def candidate(context):
    return context.root / f"data/{context.iteration}/candidate"


def test_base_writes_a_model_its_policy_and_empty_tables(context):
    base.run(context)
    folders.validate_folder(candidate(context))
    policy = json.loads((context.root / "data/i00/policy.json").read_text())
    assert policy.pop("digest") == folders.digest(candidate(context))
    assert policy.pop("reason")
    assert policy == {
        "path": "data/i00/candidate",
        "promoted": True,
        "gate_metric": None,
        "candidate_score": None,
        "previous_score": None,
    }
    assert tables.read(context.root / "data/i00/prompts.parquet", tables.PROMPTS).is_empty()
    for name, schema in (("sft", tables.SFT), ("pairs", tables.PAIRS), ("dropped", tables.DROPPED)):
        assert tables.read(context.root / f"data/i00/dataset/{name}.parquet", schema).is_empty()
    assert context.figures["sft_tokens"] > 0
    assert len(context.curves) == 4
    assert not list((context.scratch / "training").iterdir())


def test_base_repeats_to_the_byte_and_follows_its_seed(context, tmp_path):
    digests = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        base.run(replace(context, staging=tmp_path / name, seed=seed, figures={}, curves=[]))
        digests.append(folders.digest(tmp_path / name / "data/i00/candidate"))
    assert digests[0] == digests[1] != digests[2]


def test_base_trains_a_tokenizer_where_the_family_has_no_words(context, monkeypatch):
    monkeypatch.setattr("tasks.families.load", lambda root: Words(None))
    base.run(context)
    tokenizer = tokenizers.load_tokenizer(candidate(context))
    assert tokenizers.render(tokenizer, tiny.user("3 :")) == "<|user|>3 :<|end|><|assistant|>"


def test_a_pretrained_model_is_pointed_at_and_not_copied(context, trained, tmp_path):
    source = (context.root / "data/i00/candidate").rename(tmp_path / "mine")
    base.run(replace(context, options=base.parse({**BASE, "pretrained": "mine"})))
    assert [path.name for path in candidate(context).iterdir()] == ["pointer.json"]
    pointer = context.pointer("i00")
    assert (pointer.path, pointer.digest) == ("mine", folders.digest(source))
    assert folders.digest(candidate(context)) == pointer.digest
    assert folders.resolve(context.root, replace(pointer, path="data/i00/candidate")) == source
    train.run(trained)
    folders.validate_folder(candidate(trained))


def test_a_pretrained_model_without_a_chat_template_gets_one_beside_it(context, trained, tmp_path):
    source = (context.root / "data/i00/candidate").rename(tmp_path / "mine")
    (source / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match=r"mine: its tokenizer has no chat template; set base\.chat_template"):
        base.run(replace(context, options=base.parse({**BASE, "pretrained": "mine"})))
    base.run(replace(context, options=base.parse({**BASE, "pretrained": "mine", "chat_template": "plain"})))
    names = {path.name for path in candidate(context).iterdir()}
    assert {"base.json", "chat_template.jinja", "tokenizer.json"} <= names
    assert not any(name.endswith(".safetensors") for name in names)
    pointer = context.pointer("i00")
    assert (pointer.path, pointer.digest) == ("data/i00/candidate", folders.digest(candidate(context)))
    folders.verify(folders.resolve(context.root, pointer), pointer)
    engine = engines.load("transformers", candidate(context), "float32", 1, 4)
    assert engine.tokenizer.chat_template == tokenizers.chat_template("plain")
    train.run(trained)
    assert tokenizers.load_tokenizer(candidate(trained)).chat_template == tokenizers.chat_template("plain")


def test_a_template_gets_its_values_beside_a_pretrained_model_and_in_every_model_after_it(context, trained, tmp_path):
    source = (context.root / "data/i00/candidate").rename(tmp_path / "mine")
    template = "{% if short is defined %}{{ '1 2 ' }}{% endif %}" + tokenizers.WORD_TEMPLATE
    (source / "chat_template.jinja").write_text(template)
    given = {**BASE, "pretrained": "mine", "chat_template_options": {"short": True}}
    base.run(replace(context, options=base.parse(given)))
    assert "base.json" in {path.name for path in candidate(context).iterdir()}
    assert not list(candidate(context).glob("*.safetensors"))
    pointer = context.pointer("i00")
    assert pointer.digest == folders.digest(candidate(context)) != folders.digest(source)
    train.run(trained)
    for folder, start in ((source, ""), (candidate(context), "1 2 "), (candidate(trained), "1 2 ")):
        assert tokenizers.render(tokenizers.load_tokenizer(folder), tiny.user("3 :")) == f"{start}3 : "
    with pytest.raises(UnknownName, match="unknown variable 'shrt'; did you mean 'short'"):
        base.run(replace(context, options=base.parse({**given, "chat_template_options": {"shrt": True}})))


def test_a_template_of_ones_own_gets_its_values_where_the_model_is_made_here(context, monkeypatch, tmp_path):
    monkeypatch.setattr(tokenizers, "CHAT_TEMPLATES", tmp_path)
    (tmp_path / "own.jinja").write_text("{{ first }}" + tokenizers.WORD_TEMPLATE)
    own = {"chat_template": "own", "chat_template_options": {"first": "9 "}}
    base.run(replace(context, options=base.parse({**BASE, **own})))
    assert tokenizers.render(tokenizers.load_tokenizer(candidate(context)), tiny.user("3 :")) == "9 3 : "
    with pytest.raises(UnknownName, match="unknown variable 'frst'; did you mean 'first'"):
        base.parse({**BASE, **own, "chat_template_options": {"frst": "9 "}})


def test_the_template_of_an_adapter_stays(context, trained, tmp_path):
    base.run(context)
    train.run(replace(trained, options=train.parse({"sft": {**TRAIN["sft"], "lora": tiny.LORA}})))
    for changes, message in (
        ({"chat_template": "plain"}, r"base\.chat_template: .* is an adapter, whose template is trained in; give null"),
        ({"chat_template_options": {"a": 1}}, r"base\.chat_template_options: .* is an adapter, .*; give \{\}"),
    ):
        given = {**BASE, "pretrained": "data/i01/candidate", **changes}
        with pytest.raises(BadInput, match=message):
            base.run(replace(context, options=base.parse(given), staging=tmp_path / "new"))


def test_a_fetched_model_that_takes_no_system_message(context, trained, tmp_path):
    source = (context.root / "data/i00/candidate").rename(tmp_path / "mine")
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (source / "chat_template.jinja").write_text(refuses)
    given = replace(context, options=base.parse({**BASE, "pretrained": "mine"}))
    base.run(given)
    record = context.root / "data/tasks/family.json"
    record.write_text(json.dumps({"name": "text", "options": {"system": "Be brief.", "system_field": None}}))
    with pytest.raises(
        BadInput, match=r"mine: its chat template refuses a system message \(no system\); this model takes"
    ):
        base.run(given)


def test_an_adapter_names_the_model_below_a_pointer(context, trained, tmp_path):
    """Two blocks train one adapter; the next iteration goes on with it; the base is the pretrained model throughout."""
    source = (context.root / "data/i00/candidate").rename(tmp_path / "mine")
    base.run(replace(context, options=base.parse({**BASE, "pretrained": "mine"})))
    section = {"sft": {**TRAIN["sft"], "lora": tiny.LORA}, "dpo": {**DPO, "lora": tiny.LORA}}
    train.run(replace(trained, options=train.parse(section)))
    pointer = Pointer("data/i01/candidate", folders.digest(candidate(trained)))
    (trained.root / "data/i01/pointer.json").write_text(json.dumps(vars(pointer)))
    (trained.root / "data/i02").mkdir()
    (trained.root / "data/i02/dataset").symlink_to(trained.root / "data/i01/dataset")
    row = dict.fromkeys(("previous", "initial", "reference", "judge"), "i01")
    second = replace(trained, iteration="i02", row=row, options=train.parse(section), figures={}, curves=[])
    train.run(second)
    for folder in (candidate(trained), candidate(second)):
        assert json.loads((folder / "base.json").read_text()) == {"path": "mine", "digest": folders.digest(source)}
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "mine"
        assert folders.parts(folder).weights == source
        folders.validate_folder(folder)
    weights = [(c / "adapter_model.safetensors").read_bytes() for c in (candidate(trained), candidate(second))]
    assert weights[0] != weights[1]
    (source / "generation_config.json").write_text("{}")
    with pytest.raises(BadInput, match="belongs to the model mine of digest"):
        train.run(second)


def test_an_adapter_needs_a_model_that_is_kept():
    kept, merged = {"lora": tiny.LORA}, {"lora": {**tiny.LORA, "adapter": "merge"}}
    for first in ({}, merged):
        with pytest.raises(BadInput, match=r"train\.dpo\.lora\.adapter: given 'keep', but sft before it"):
            train.parse({"sft": {**tiny.SFT, **first}, "dpo": {**DPO, **kept}})
    train.parse({"sft": {**tiny.SFT, **kept}, "dpo": {**DPO, **kept}})
    train.parse({"sft": {**tiny.SFT, **kept}, "dpo": DPO})
    with pytest.raises(BadInput, match=r"base\.sft\.lora\.adapter: given 'keep'"):
        base.parse({**BASE, "sft": {**BASE["sft"], **kept}})


def test_base_refuses_what_it_cannot_start_from(context, tmp_path):
    tables.write(tables.empty(tables.SFT), tmp_path / "data/tasks/corpus.parquet", tables.SFT)
    with pytest.raises(EmptyDataset, match=r"base\.pretrained"):
        base.run(context)
    with pytest.raises(MissingArtifact, match="nowhere"):
        base.run(replace(context, options=base.parse({**BASE, "pretrained": "nowhere"})))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="is no model folder"):
        base.run(replace(context, options=base.parse({**BASE, "pretrained": "empty"})))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pretraind": None}, BadInput, "did you mean 'pretrained'"),
        ({"tokenizer": {"vocabulary_size": 10}}, BadInput, "vocabulary_size: given 10"),
        ({"architecture": {"model_type": "qwen33"}}, UnknownName, "did you mean qwen3"),
        ({"sft": {**BASE["sft"], "learning_rat": 1}}, BadInput, "did you mean 'learning_rate'"),
    ],
)
def test_base_section_is_checked(changes, error, message):
    with pytest.raises(error, match=message):
        base.parse({**BASE, **changes})


def test_train_writes_a_candidate_with_its_lineage(trained):
    train.run(trained)
    folders.validate_folder(candidate(trained))
    lineage = json.loads((candidate(trained) / "lineage.json").read_text())
    start = {"path": "data/i00/candidate", "digest": folders.digest(trained.root / "data/i00/candidate")}
    assert lineage["initial"] == lineage["reference"] == start
    assert lineage["iteration"] == "i01"
    assert lineage["rows"] == {"sft": {"own": 5, "copy": 5}}
    assert len(lineage["dataset"]) == 32
    assert trained.tags["initial"] == start["digest"]
    before = (trained.root / "data/i00/candidate/model.safetensors").read_bytes()
    assert (candidate(trained) / "model.safetensors").read_bytes() != before


def test_memory_that_runs_out_names_the_section(trained, monkeypatch):
    def fail(*given):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainers, "log_probabilities", fail)
    named = {"mine": {"block": "dpo", **DPO}}
    for stage, section, options in (
        (base, "base.sft", base.parse(BASE)),
        (train, "train.sft", train.parse(TRAIN)),
        (train, "train.mine", train.parse(named)),
    ):
        with pytest.raises(OutOfMemory, match=rf"lower {section}\.pass_tokens \(given 16384\)"):
            stage.run(replace(trained, options=options))


def test_sft_runs_before_dpo_and_dpo_starts_from_it(trained, tmp_path):
    def run(section, name):
        context = replace(trained, options=train.parse(section), staging=tmp_path / name, figures={}, curves=[])
        train.run(context)
        return context, (tmp_path / name / "data/i01/candidate/model.safetensors").read_bytes()

    both, end = run({"a_dpo": {"block": "dpo", **DPO}, "b_sft": {"block": "sft", **TRAIN["sft"]}}, "both")
    assert [point["step"] for point in both.curves] == list(range(1, 9))
    assert {"sft_tokens", "dpo_tokens"} <= set(both.figures)
    assert end not in (run(TRAIN, "sft")[1], run({"dpo": DPO}, "dpo")[1])
    assert not list((trained.scratch / "training").glob("*/*"))


def test_what_was_trained_before_a_block_failed_is_taken_up(trained, tmp_path, monkeypatch):
    """With other options of the block that failed; not with others of its own."""
    fitted, real = [], trainers.fit

    def fit(request, progress):
        fitted.append(request.kind)
        if request.kind == "dpo" and failing:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(request, progress)

    def run(name, dpo=DPO, **sft):
        section = {"sft": {**TRAIN["sft"], **sft}, "dpo": dpo}
        context = replace(trained, options=train.parse(section), staging=tmp_path / name, figures={}, curves=[])
        fitted.clear()
        train.run(context)
        return context

    monkeypatch.setattr(trainers, "fit", fit)
    failing = True
    for name, changes, asked in (
        ("first", {}, ["sft", "dpo"]),
        ("second", {"dpo": {**DPO, "pass_tokens": 64}}, ["dpo"]),
        ("third", {"learning_rate": 0.02}, ["sft", "dpo"]),
    ):
        with pytest.raises(OutOfMemory):
            run(name, **changes)
        assert fitted == asked
    failing = False
    on = run("on")
    assert fitted == ["dpo"]
    assert not list((trained.scratch / "training").glob("*/*"))
    anew = run("anew")
    assert fitted == ["sft", "dpo"]
    assert on.curves == anew.curves
    assert {k: v for k, v in on.figures.items() if "second" not in k and k != "training_tokens"} == {
        k: v for k, v in anew.figures.items() if "second" not in k and k != "training_tokens"
    }
    for name in ("model.safetensors", "lineage.json"):
        assert len({(tmp_path / run / "data/i01/candidate" / name).read_bytes() for run in ("on", "anew")}) == 1


def test_without_blocks_the_candidate_is_the_initial_model(trained):
    train.run(replace(trained, options=train.parse({})))
    assert {path.name for path in candidate(trained).iterdir()} == {"pointer.json", "lineage.json"}
    assert folders.digest(candidate(trained)) == folders.digest(trained.root / "data/i00/candidate")


def test_a_model_that_changed_since_its_promotion_is_refused(trained):
    (trained.root / "data/i00/candidate/config.json").write_text("{}")
    with pytest.raises(BadInput, match="has changed since it was promoted"):
        train.run(trained)


def test_data_and_mixture_must_agree(trained):
    trained.root.joinpath("data/i01/dataset/sft.parquet").unlink()
    table = rows(["own", "copy"]).filter(pl.col("part") == "copy")
    tables.write(table, trained.root / "data/i01/dataset/sft.parquet", tables.SFT)
    with pytest.raises(StageFailed, match="2 rows of 'own' a step"):
        train.run(trained)


def test_train_section_is_checked():
    with pytest.raises(UnknownName, match="did you mean 'sft'"):
        train.parse({"sftt": {}})
    with pytest.raises(BadInput, match=r"train\.sft\.mixture: is missing"):
        train.parse({"sft": tiny.TRAINING})
