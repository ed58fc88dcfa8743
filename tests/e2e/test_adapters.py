"""Two iterations that keep LoRA adapters alone: every stage, promotion, the life of a model, and other people's tools."""

import json

import pytest
import torch
import yaml

from flows.history import lives
from tasks.core import engines
from tasks.core.errors import BadInput
from tasks.core.models import folders
from tasks.core.models.pointer import Pointer
from tests.e2e.test_text import STAGES
from tests.support import tiny
from tests.support.inprocess import perform, use
from tests.support.work import ROWS


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A repository after the two iterations."""
    root = tmp_path_factory.mktemp("adapters")
    rows = [{"q": f"Ann has {i} nuts and finds {i % 7} more. How many?", "a": f"#### {i + i % 7}"} for i in range(90)]
    (root / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    use(root, "lmsi", family="text")
    params = yaml.safe_load((root / "params.yaml").read_text())
    options = {"prompt_field": "q", "answer_field": "a", "heldout": 4, "probe": 4, "labelled": 30, "limit": 80}
    params["prepare"] |= {"source": "mine.jsonl", "options": {**params["prepare"]["options"], **options}}
    params["base"] |= {"pretrained": None, "tokenizer": {"vocabulary_size": 400}}
    params["base"]["architecture"] = {**tiny.ARCHITECTURE, "hidden_size": 64, "max_position_embeddings": 512}
    params["base"]["sft"] = {**tiny.SFT, "mixture": {"solve": 4}}
    params["engine"] |= {"threads": 1}
    params["synthesize"]["pool"]["n"] = 4
    params["sample"]["iid"] |= {"n": 2, "max_new_tokens": 8}
    params["filter"] = {"keep_all": {}, "deduplicate": {}, "rows": ROWS}
    params["train"] = {"sft": {**tiny.SFT, "lora": tiny.LORA}}
    params["evaluate"] |= {"samples": 1, "max_new_tokens": 8, "critics": {}, "best_of": None, "refine": None}
    params["promote"]["tolerance"] = 1.0
    keys = ("i01", "i02")
    params["iterations"] = {key: params["iterations"][key] for key in keys}
    params["evaluations"] = {key: params["evaluations"][key] for key in ("i00", *keys)}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for stage, key in (("prepare", None), ("base", None), ("evaluate", "i00")):
        perform(root, stage, key)
    for key in keys:
        for stage in STAGES:
            perform(root, stage, key)
    return root


def candidate(root, key):
    return root / f"data/{key}/candidate"


def test_what_is_stored_is_small_and_says_what_it_belongs_to(root):
    base = candidate(root, "i00")
    for key in ("i01", "i02"):
        folder = candidate(root, key)
        folders.validate_folder(folder)
        named = json.loads((folder / "base.json").read_text())
        assert named == {"path": "data/i00/candidate", "digest": folders.digest(base)}
        assert not (folder / "model.safetensors").exists()
        sizes = [(base / "model.safetensors").stat().st_size, (folder / "adapter_model.safetensors").stat().st_size]
        assert sizes[1] < 0.1 * sizes[0]
        policy = json.loads((root / f"data/{key}/policy.json").read_text())
        assert (policy["path"], policy["digest"]) == (f"data/{key}/candidate", folders.digest(folder))
        assert (
            json.loads((folder / "lineage.json").read_text())["initial"]["path"]
            == f"data/i0{int(key[2]) - 1}/candidate"
        )


def test_the_life_of_an_adapter(root):
    digest = folders.digest(candidate(root, "i01"))
    record = lives.life(root, digest[:12])
    assert (record["kind"], record["id"]) == ("model", digest)
    assert {"iteration": "i02", "role": "initial"} in record["used"]
    assert record["wrote"]["i02"]["samples"] == 8


def test_peft_opens_it_from_the_repository(root, monkeypatch):
    from peft import AutoPeftModelForCausalLM

    monkeypatch.chdir(root)
    theirs = AutoPeftModelForCausalLM.from_pretrained("data/i02/candidate")
    ours = engines.load("transformers", candidate(root, "i02"), "float32", 1, 4)
    ids = torch.tensor([[5, 6, 7, 300, 12]])
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, ours.model(ids).logits, atol=1e-5)


def test_a_base_that_was_replaced_is_noticed(root):
    config = candidate(root, "i00") / "config.json"
    kept = config.read_bytes()
    try:
        config.write_bytes(kept + b" ")
        pointer = Pointer("data/i02/candidate", folders.digest(candidate(root, "i02")))
        with pytest.raises(BadInput, match="belongs to the model data/i00/candidate of digest"):
            folders.verify(candidate(root, "i02"), pointer)
    finally:
        config.write_bytes(kept)
