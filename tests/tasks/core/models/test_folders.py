"""Model folders, tokenizers, and text that must not become control tokens."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tasks.core.errors import BadInput, MissingArtifact, StageFailed, UnknownName
from tasks.core.models import folders, tokenizers
from tasks.core.models.pointer import Pointer
from tasks.core.models.weights import build, check_loads, load
from tests.support import tiny

torch.set_num_threads(1)

WORDS = ["solve", ":", "->", "=", "+", *(str(n) for n in range(61))]
WORD = tokenizers.make_tokenizer(WORDS, [], 300)
TEXTS = ["How many apples has Ann?", "Ann has 12 apples. #### 12", "naïve café"] * 5
BPE = tokenizers.make_tokenizer(None, TEXTS, 400)
ASKED = tiny.user("solve 3 4 -> 7 :")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model"
    build(tiny.ARCHITECTURE, WORD, 0, path)
    return path


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_word_level_text_is_content_and_a_space_and_replies_end():
    assert tokenizers.render(WORD, ASKED) == "solve 3 4 -> 7 : "
    whole = [*ASKED, *tiny.reply("3 + 4 = 7")]
    (text,) = tokenizers.render_many(WORD, [whole], reply=False)
    assert text == "solve 3 4 -> 7 : 3 + 4 = 7<eos>"
    assert ids(WORD, text)[-1] == WORD.eos_token_id
    assert len(ids(WORD, text)) == 12
    assert WORD.decode(ids(WORD, text), skip_special_tokens=True) == "solve 3 4 -> 7 : 3 + 4 = 7"


def test_a_word_outside_the_vocabulary_is_unknown_and_a_bad_vocabulary_is_refused():
    assert ids(WORD, "nonsense") == [WORD.unk_token_id]
    for bad in ("two words", "", "<eos>"):
        with pytest.raises(BadInput, match="vocabulary"):
            tokenizers.word_tokenizer(["a", bad])


def test_role_marked_text_of_the_trained_tokenizer():
    assert tokenizers.render(BPE, tiny.user("Hi")) == "<|user|>Hi<|end|><|assistant|>"
    with pytest.raises(StageFailed, match="unknown role"):
        tokenizers.render(BPE, [{"role": "tool", "content": "Hi"}])


def test_training_a_tokenizer_twice_gives_the_same_one():
    again = tokenizers.make_tokenizer(None, iter(TEXTS), 400)
    assert again.get_vocab() == BPE.get_vocab()
    assert len(BPE) <= 400


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_bpe_keeps_every_text(text):
    assert BPE.decode(ids(BPE, tokenizers.neutralise(text, tokenizers.special_tokens(BPE)))) == tokenizers.neutralise(
        text, tokenizers.special_tokens(BPE)
    )


PIECES = st.sampled_from(
    ["<eos>", "<pad>", "<unk>", "<|end|>", "<|assistant|>", "<|user|>", "<|", "|>", "<", "end", "eos>", " ", "7", "x\n"]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=8).map("".join))
def test_content_never_becomes_a_control_token(text):
    for tokenizer, turn in ((WORD, [WORD.pad_token_id, WORD.eos_token_id]), (BPE, BPE.all_special_ids)):
        tokens = ids(tokenizer, tokenizers.render(tokenizer, tiny.user(text)))
        allowed = [] if tokenizer is WORD else ids(BPE, "<|user|><|end|><|assistant|>")
        assert [token for token in tokens if token in turn] == allowed


def test_a_folder_is_complete_reproducible_and_loads(folder, tmp_path):
    folders.validate_folder(folder)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert "training_args.bin" not in names
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (WORD.eos_token_id, WORD.pad_token_id)
    build(tiny.ARCHITECTURE, WORD, 0, tmp_path / "same")
    build(tiny.ARCHITECTURE, WORD, 1, tmp_path / "other")
    assert folders.digest(tmp_path / "same") == folders.digest(folder) != folders.digest(tmp_path / "other")
    loaded = tokenizers.load_tokenizer(folder)
    assert tokenizers.render(loaded, ASKED) == tokenizers.render(WORD, ASKED)
    assert ids(loaded, "solve 3 <eos>") == ids(WORD, "solve 3 <eos>")


def test_a_model_without_positions_can_be_built(tmp_path):
    from transformers import AutoModelForCausalLM

    nope = {key: value for key, value in tiny.ARCHITECTURE.items() if key != "head_dim"}
    build({**nope, "model_type": "smollm3", "no_rope_layers": [0]}, WORD, 0, tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    given_ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        here = model(given_ids, position_ids=torch.tensor([[0, 1, 2]])).logits
        there = model(given_ids, position_ids=torch.tensor([[7, 9, 30]])).logits
    assert torch.equal(here, there)


def test_values_that_transformers_refuses(tmp_path):
    with pytest.raises(BadInput, match="no language model can be built"):
        build({**tiny.ARCHITECTURE, "hidden_act": "nothing"}, WORD, 0, tmp_path / "m")


def test_pointers_are_followed_and_missing_models_named(folder, tmp_path):
    pointer = Pointer("data/i00/candidate", "d" * 32)
    with pytest.raises(MissingArtifact, match="data/i00/candidate"):
        folders.resolve(tmp_path, pointer)
    folders.write_pointer(tmp_path / "data/i00/candidate", Pointer(str(folder), "e" * 32))
    assert folders.resolve(tmp_path, pointer) == folder
    assert folders.digest(tmp_path / "data/i00/candidate") == "e" * 32
    with pytest.raises(MissingArtifact, match="hf download no-such/model-at-all"):
        folders.resolve(tmp_path, Pointer("no-such/model-at-all", ""))


@pytest.mark.parametrize("text", ['{"foo": 1}', '{"path": 3, "digest": "d"}', '{"path": "x"}', "{}"])
def test_a_pointer_that_is_none(tmp_path, text):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "pointer.json").write_text(text)
    with pytest.raises(BadInput, match="is no pointer to a model"):
        folders.resolve(tmp_path, Pointer("m", ""))
    with pytest.raises(BadInput, match="is no pointer to a model"):
        folders.digest(tmp_path / "m")


def test_a_pointer_that_leads_back_to_itself(tmp_path):
    folders.write_pointer(tmp_path / "a", Pointer("b", "d"))
    folders.write_pointer(tmp_path / "b", Pointer("a", "d"))
    with pytest.raises(BadInput, match="leads back to itself"):
        folders.resolve(tmp_path, Pointer("a", ""))


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", r"no \*\.safetensors"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_what_is_no_model_is_refused(folder, tmp_path, remove, message):
    for path in folder.iterdir():
        if path.name != remove:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BadInput, match=message):
        folders.validate_folder(tmp_path)


def test_a_folder_that_is_not_there_or_damaged(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        folders.validate_folder(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="is no JSON"):
        folders.validate_folder(tmp_path)


@pytest.fixture
def part(folder, tmp_path):
    """A tokenizer on a base that a repository holds."""
    (tmp_path / "data/i00").mkdir(parents=True)
    (tmp_path / "data/i00/candidate").symlink_to(folder)
    made = tmp_path / "data/i01/candidate"
    folders.write_pointer(made, Pointer("data/i00/candidate", folders.digest(folder)), folders.BASE)
    tokenizers.word_tokenizer(WORDS).save_pretrained(made)
    return made


def test_a_part_of_a_model_finds_the_rest_and_notices_its_change(part, folder, tmp_path):
    base = tmp_path / "data/i00/candidate"
    assert folders.parts(part) == (base, None, part)
    assert folders.parts(folder) == (folder, None, folder)
    folders.validate_folder(part)
    assert folders.read_config(part)["model_type"] == "qwen3"
    pointer = Pointer("data/i01/candidate", folders.digest(part))
    assert folders.base_pointer(tmp_path, pointer) == Pointer("data/i00/candidate", folders.digest(folder))
    folders.verify(part, pointer)
    with pytest.raises(BadInput, match="data/i01/candidate has changed"):
        folders.verify(part, Pointer("data/i01/candidate", "d" * 32))
    base.unlink()
    with pytest.raises(MissingArtifact, match="data/i00/candidate is not there"):
        folders.verify(part, pointer)
    build(tiny.ARCHITECTURE, WORD, 5, base)
    with pytest.raises(BadInput, match="belongs to the model data/i00/candidate of digest"):
        folders.verify(part, pointer)


def test_adapters_that_others_made(folder, tmp_path):
    """They have no base.json: the digest follows the base that their configuration names."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    about = {"peft_type": "LORA", "base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(BadInput, match=r"has no adapter_model\.safetensors"):
        folders.validate_folder(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    with pytest.raises(BadInput, match=r"adapter_model\.safetensors is no whole safetensors file \(header too small\)"):
        folders.validate_folder(adapter)
    (adapter / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    folders.validate_folder(adapter)
    assert folders.parts(adapter) == (folder, adapter, folder)
    base = folders.base_pointer(tmp_path, Pointer("adapter", folders.digest(adapter)))
    assert base == Pointer(str(folder), folders.digest(folder))
    (tmp_path / "other").mkdir()
    for path in folder.iterdir():
        (tmp_path / "other" / path.name).write_bytes(path.read_bytes() + b" " * path.name.startswith("config"))
    before = folders.digest(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(about | {"base_model_name_or_path": "other"}))
    assert folders.digest(adapter) != before
    for bad, message in (
        ({"peft_type": "IA3"}, "only LORA"),
        ({"base_model_name_or_path": None}, "does not say which"),
    ):
        (adapter / "adapter_config.json").write_text(json.dumps(about | bad))
        with pytest.raises(BadInput, match=message):
            folders.validate_folder(adapter)


def copied(folder, place, config=None, **tensors):
    """A copy of a model folder with other values of its configuration and other tensors; None: without it."""
    shutil.copytree(folder, place)
    about = json.loads((folder / "config.json").read_text()) | (config or {})
    (place / "config.json").write_text(json.dumps(about))
    weights = load_file(folder / "model.safetensors") | tensors
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, place / "model.safetensors", metadata={"format": "pt"})
    return place


@pytest.mark.parametrize("open_it", [check_loads, lambda folder: load(folder, torch.float32)])
def test_a_model_whose_weights_are_not_those_of_its_configuration(folder, tmp_path, open_it):
    """transformers fills what is missing with random numbers, other ones every time."""
    open_it(folder)
    norm = "model.layers.0.input_layernorm.weight"
    for name, changes, message in (
        ("layer", {norm: None}, rf"has no weights for {norm}, which a language model of its config.json needs"),
        ("head", {"config": {"tie_word_embeddings": False}}, r"has no weights for lm_head\.weight"),
        (
            "deeper",
            {"config": {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}},
            r"has no weights for model\.layers\.1\.\S+ \(and 10 more\)",
        ),
        ("wider", {norm: torch.ones(3)}, rf"says that {norm} has the shape \[16\], and the weights have \[3\]"),
    ):
        with pytest.raises(BadInput, match=message):
            open_it(copied(folder, tmp_path / name, **changes))


@pytest.mark.parametrize("open_it", [check_loads, lambda folder: load(folder, torch.float32)])
def test_an_adapter_of_another_model(folder, tmp_path, open_it):
    adapter = tmp_path / "adapter"
    model = AutoModelForCausalLM.from_pretrained(folder)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    open_it(adapter)
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name.replace("layers", "language_model.layers"): tensor for name, tensor in weights.items()}, file)
    with pytest.raises(
        BadInput, match=r"does not fit its base .*: it has nothing for \S+q_proj.lora_A.weight \(and 1 more\)"
    ):
        open_it(adapter)
    save_file({name: tensor.repeat(1, 2) for name, tensor in weights.items()}, file)
    with pytest.raises(BadInput, match=r"cannot be loaded as a language model: .*size mismatch"):
        load(adapter, torch.float32)


def plain():
    tokenizer = tokenizers.make_tokenizer(None, TEXTS, 400)
    tokenizer.chat_template = tokenizers.chat_template("plain")
    return tokenizer


def test_the_plain_chat_template():
    asked = [{"role": "system", "content": "Be brief."}, *tiny.user("Hi")]
    assert tokenizers.render(plain(), asked) == "System:\nBe brief.\n\nUser:\nHi\n\nAssistant:\n"
    (whole,) = tokenizers.render_many(plain(), [[*asked, *tiny.reply("Yes.")]], reply=False)
    assert whole == tokenizers.render(plain(), asked) + "Yes.<|end|>\n\n"
    with pytest.raises(StageFailed, match="unknown role"):
        tokenizers.render(plain(), [{"role": "tool", "content": "Hi"}])
    with pytest.raises(UnknownName, match="did you mean 'plain'"):
        tokenizers.chat_template("plane")


HEADS = st.sampled_from(["System:", "User:", "Assistant:", "\n", " ", "x", "\nUser:\n", "<|end|>"])


@settings(max_examples=100, deadline=None)
@given(st.lists(HEADS, max_size=8).map("".join))
def test_no_message_opens_a_turn_of_the_plain_template(text):
    lines = tokenizers.render(plain(), tiny.user(text)).split("\n")
    assert [line for line in lines if line.startswith(("System:", "User:", "Assistant:"))] == ["User:", "Assistant:"]


def test_checks_do_not_import_torch(folder):
    code = (
        "import sys; from pathlib import Path; from tasks.core.models import architectures, folders; import tasks.base, tasks.train;"
        f"folders.validate_folder(Path({str(folder)!r})); architectures.check({tiny.ARCHITECTURE!r}, 'x');"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_architectures_are_checked():
    from tasks.core.models import architectures

    with pytest.raises(UnknownName, match="did you mean qwen3"):
        architectures.check({"model_type": "qwen33"}, "base.architecture")
    with pytest.raises(UnknownName, match="did you mean 'hidden_size'"):
        architectures.check({"model_type": "qwen3", "hiden_size": 3}, "base.architecture")
    with pytest.raises(BadInput, match="comes from the tokenizer"):
        architectures.check({"model_type": "qwen3", "vocab_size": 3}, "base.architecture")
    with pytest.raises(BadInput, match="no causal language model of model_type 'vit'"):
        architectures.check({"model_type": "vit"}, "base.architecture")
    with pytest.raises(BadInput, match="model_type is missing"):
        architectures.check({}, "base.architecture")
    for name in ("llama", "smollm3", "qwen2", "gpt2"):
        architectures.check({"model_type": name}, "base.architecture")


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("hidden_size", 64, True),
        ("hidden_size", "64", False),
        ("hidden_size", 64.0, False),
        ("hidden_size", 0, False),
        ("num_key_value_heads", None, True),
        ("num_key_value_heads", -1, False),
        ("max_window_layers", 0, True),
        ("chunk_size_feed_forward", 0, True),
        ("rope_parameters", {"rope_theta": 10000.0}, True),
        ("attention_dropout", 0, True),
        ("layer_types", ["full_attention"], True),
        ("layer_types", "full_attention", False),
        ("tie_word_embeddings", 1, False),
    ],
)
def test_values_of_an_architecture_are_checked(key, value, fits):
    from tasks.core.models import architectures

    given = {"model_type": "qwen3", key: value}
    if fits:
        architectures.check(given, "base.architecture")
    else:
        with pytest.raises(BadInput, match=f"base.architecture.{key}: given"):
            architectures.check(given, "base.architecture")
