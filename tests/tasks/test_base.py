"""The stage base: the model it makes or points at, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch

from tasks import base, train
from tasks.core import engines, tables
from tasks.core.errors import BadInput, EmptyDataset, MissingArtifact, UnknownName
from tasks.core.models import folders, tokenizers
from tasks.core.models.pointer import Pointer
from tests.support import tiny
from tests.support.stages import BASE, DPO, TRAIN, Words, candidate

torch.set_num_threads(1)


def test_writes_a_model_its_policy_and_empty_tables(context):
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


def test_repeats_to_the_byte_and_follows_its_seed(context, tmp_path):
    digests = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        base.run(replace(context, staging=tmp_path / name, seed=seed, figures={}, curves=[]))
        digests.append(folders.digest(tmp_path / name / "data/i00/candidate"))
    assert digests[0] == digests[1] != digests[2]


def test_trains_a_tokenizer_where_the_family_has_no_words(context, monkeypatch):
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
    refuses += "{% for m in messages %}{{ m.content }}{% endfor %}"
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


def test_refuses_what_it_cannot_start_from(context, tmp_path):
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
def test_section_is_checked(changes, error, message):
    with pytest.raises(error, match=message):
        base.parse({**BASE, **changes})
