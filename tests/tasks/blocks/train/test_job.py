"""The two training blocks on a tiny model: what they change, what they repeat exactly, what they refuse."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tasks.blocks.train import job as train_job
from tasks.core import engines
from tasks.core.engines.contract import Sampling
from tasks.core.errors import BadInput, EmptyDataset, OutOfMemory, StageFailed
from tasks.core.models import folders
from tasks.core.models import weights as models_weights
from tasks.core.training import apart, losses, trainers
from tasks.core.training.options import SftOptions
from tests.support import tiny
from tests.support.paths import ROOT
from tests.support.trainings import (
    ACCELERATE,
    ARCHITECTURE,
    DPO,
    KEPT,
    LORA,
    SFT,
    TOKENIZER,
    assert_learns_what_one_process_does,
    build,
    files,
    losses_of,
    pair_rows,
    run,
    sft_rows,
    weights,
)

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def initial(tmp_path_factory):
    return build(tmp_path_factory.mktemp("initial") / "model")


@pytest.fixture
def train(initial, tmp_path):
    return partial(run, tmp_path, initial=initial)


@pytest.mark.parametrize("options", [SFT, DPO, {**DPO, "loss": "ipo", "replay": {}}])
def test_every_parameter_changes_and_the_same_seed_gives_the_same_bytes(train, initial, options):
    one, two, other = train(options, "one"), train(options, "two"), train(options, "other", seed=1)
    before, after = weights(initial), weights(one.output)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert files(one.output) == files(two.output) != files(other.output)
    assert set(files(one.output)) == set(files(initial))
    assert files(one.output)["config.json"] == files(initial)["config.json"]
    assert files(one.output)["generation_config.json"] == files(initial)["generation_config.json"]


@pytest.mark.parametrize("options", [SFT, {**SFT, "lora": LORA}, DPO])
def test_a_killed_training_continues_to_the_same_bytes(train, tmp_path, options):
    whole = train(options, "whole")
    with pytest.raises(KeyboardInterrupt):
        train(options, "cut", kill_at=8)
    (kept,) = (tmp_path / "scratch" / "training").iterdir()
    assert (kept / "checkpoint-5" / "complete").is_file()
    assert not (tmp_path / "cut").exists()
    (kept / "checkpoint-9").mkdir()  # cut off while it was written
    cut = train(options, "cut")
    assert files(cut.output) == files(whole.output)
    assert not list((tmp_path / "scratch" / "training").iterdir())
    assert losses_of(cut) == losses_of(whole)


TOO_MUCH = "CUDA out of memory. Tried to allocate 2.00 GiB."
LESS = "lower train.one.pass_tokens (given 16384), set train.one.gradient_checkpointing or use train.one.lora"
KEPT_EXACT = (
    "it goes on from its last checkpoint (step 5) if it is run again as it is, and begins anew with other options"
)


def failing(module, call, end):
    """`log_probabilities` of a module that does `end` at its `call`-th call; patched within `with`."""
    real, calls = module.log_probabilities, []

    def limited(*given):
        calls.append(given)
        if len(calls) == call:
            end()
        return real(*given)

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "log_probabilities", limited)
    return contextlib.closing(SimpleNamespace(close=patch.undo))


def too_much():
    raise torch.OutOfMemoryError(TOO_MUCH)


@pytest.mark.parametrize(("options", "call"), [(SFT, 8), (DPO, 15)])  # of DPO two passes a step
def test_training_that_runs_out_of_memory_goes_on_to_the_same_bytes(train, options, call):
    whole = train(options, "whole")
    with failing(trainers, call, too_much), pytest.raises(OutOfMemory) as caught:
        train(options, "cut", section="train.one")
    assert str(caught.value) == f"training ran out of memory ({TOO_MUCH}); {LESS}; {KEPT_EXACT}"
    cut = train(options, "cut", section="train.one")
    assert files(cut.output) == files(whole.output)
    assert losses_of(cut) == losses_of(whole)
    assert cut.trained.spent["training_tokens"] < 0.8 * whole.trained.spent["training_tokens"]  # steps 6 to 12 only


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (
            "resource.setrlimit(resource.RLIMIT_AS, (space() + 2**26, resource.RLIM_INFINITY)); torch.zeros(2**30)",
            r"training ran out of memory \(.*can't allocate memory",
        ),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            r"the training process was killed \(signal 9\), most often because memory ran out; lower",
        ),
    ],
    ids=["too little memory", "killed"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by RLIMIT_AS")
def test_a_process_of_its_own_that_runs_out_of_memory_goes_on_to_the_same_bytes(train, monkeypatch, end, message):
    whole = train(SFT, "whole")
    monkeypatch.setattr(apart, "command", lambda folder, _: [sys.executable, "-c", FALLING, str(folder), end])
    with pytest.raises(OutOfMemory, match=f"^{message}") as caught:
        train(SFT, "cut", apart="always", section="train.one")
    assert str(caught.value).endswith(f"; {LESS}; {KEPT_EXACT}")
    cut = train(SFT, "cut")
    assert cut.trained.spent["training_tokens"] < 0.8 * whole.trained.spent["training_tokens"]
    assert files(cut.output) == files(whole.output)
    assert not list((cut.job.scratch / "training").iterdir())


FALLING = """
import os, resource, signal, sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
import torch
from tasks.core.training import apart as process
from tests.tasks.blocks.train import test_job

def space():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

with test_job.failing(test_job.trainers, 8, lambda: exec(sys.argv[2])):
    sys.exit(process.main(Path(sys.argv[1])))
"""


def test_with_a_smaller_pass_it_goes_on_where_bytes_are_not_promised(train, monkeypatch):
    whole = train(SFT, "whole")
    monkeypatch.setattr(train_job, "_exact", lambda options: False)  # as on a GPU
    with failing(trainers, 8, too_much), pytest.raises(OutOfMemory, match=r"\(step 5\), with lora anew$"):
        train(SFT, "cut")
    cut = train({**SFT, "pass_tokens": 12, "gradient_checkpointing": True}, "cut")
    assert losses_of(cut) == pytest.approx(losses_of(whole), rel=1e-3)
    assert cut.trained.spent["training_tokens"] < 0.8 * whole.trained.spent["training_tokens"]


def test_memory_runs_out_before_the_first_checkpoint(train):
    given = {**SFT, "lora": LORA, "gradient_checkpointing": True}
    with failing(trainers, 2, too_much), pytest.raises(OutOfMemory) as caught:
        train(given)
    assert str(caught.value).endswith(
        "; lower sft.pass_tokens (given 16384); it begins anew, no checkpoint was written yet (sft.checkpoint_steps: 5)"
    )
    with failing(losses, 1, too_much), pytest.raises(OutOfMemory) as caught:
        train(DPO, section="train.two")
    less = "lower train.two.pass_tokens (given 16384), or use a smaller model"
    assert str(caught.value) == f"the reference model ran out of memory ({TOO_MUCH}); {less}"


def test_changed_options_do_not_continue_an_old_checkpoint(train, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(SFT, kill_at=8)
    fresh = train({**SFT, "learning_rate": 0.02}, "fresh")
    assert len(fresh.trained.curve) == 12
    assert len(list((tmp_path / "scratch" / "training").iterdir())) == 1


def test_loss_falls_and_figures_count(train):
    trained = train({**SFT, "steps": 60, "checkpoint_steps": 1000}).trained
    assert trained.curve[-1]["loss"] < 0.8 * trained.curve[0]["loss"]
    assert trained.figures["sft_rows"] == 60 * 6
    assert trained.rows == {"own": 10, "skill": 10}
    assert trained.figures["sft_tokens"] > trained.figures["sft_rows"]


def test_the_learning_signal_is_the_weight(train):
    doubled = train(SFT, "doubled", sft=sft_rows(weight=2.0))
    single = train(SFT, "single", sft=sft_rows(weight=1.0))
    assert files(doubled.output) == files(single.output)


def test_the_order_of_the_table_does_not_matter(train):
    assert files(train(SFT, "a").output) == files(train(SFT, "b", sft=sft_rows().reverse()).output)


def test_lora_trains_its_targets_alone_and_is_merged(train, initial):
    after = weights(train({**SFT, "lora": LORA}).output)
    changed = {name for name, before in weights(initial).items() if not torch.equal(before, after[name])}
    assert changed == {f"model.layers.0.self_attn.{name}.weight" for name in LORA["targets"]}
    train({**DPO, "lora": LORA}, "dpo")


def test_bfloat16_and_back(train, initial):
    low = weights(train({**SFT, "precision": "bfloat16"}, "low").output)
    assert {tensor.dtype for tensor in low.values()} == {torch.float32}
    high = train(SFT, "high")
    assert any(not torch.equal(low[name], tensor) for name, tensor in weights(high.output).items())


@pytest.mark.parametrize(
    "changes", [{"pass_tokens": 12}, {"packing": True, "pass_tokens": 40}, {"gradient_checkpointing": True}]
)
def test_how_a_step_is_cut_into_passes_does_not_change_what_is_learnt(train, changes):
    whole, cut = train(SFT, "whole"), train({**SFT, **changes}, "cut")
    assert losses_of(cut) == pytest.approx(losses_of(whole), rel=1e-3)
    for name, tensor in weights(whole.output).items():
        assert torch.allclose(weights(cut.output)[name], tensor, atol=2e-3), name


def test_dpo_in_small_passes(train):
    whole, cut = train(DPO, "whole"), train({**DPO, "pass_tokens": 12, "gradient_checkpointing": True}, "cut")
    assert losses_of(cut) == pytest.approx(losses_of(whole), rel=1e-3)


def test_an_adapter_alone_is_what_merging_it_gives(train, initial):
    """And a second training goes on from it, on the same base."""
    kept = train({**SFT, "lora": KEPT}, "kept").output
    assert set(files(kept)) - set(files(initial)) == {"adapter_config.json", "adapter_model.safetensors", "base.json"}
    assert "model.safetensors" not in files(kept)
    merged = train({**SFT, "lora": {**KEPT, "adapter": "merge"}}, "merged").output
    one, other = (engines.load("transformers", folder, "float32", 1, 8) for folder in (kept, merged))
    prompts, greedy = ["copy 1 2 : ", "copy 7 : "], Sampling(1, 0.0, 1.0, 8, 0)
    assert one.score(prompts, ["1 2", "7"]) == other.score(prompts, ["1 2", "7"])
    assert one.generate(prompts, greedy) == other.generate(prompts, greedy)
    folders.validate_folder(kept)
    again = train({**SFT, "lora": KEPT}, "again", initial=kept).output
    base = {"path": str(initial), "digest": folders.digest(initial)}
    assert json.loads(files(kept)["base.json"]) == json.loads(files(again)["base.json"]) == base
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (kept, again))
    assert all(not torch.equal(before[name], after[name]) for name in before)
    calm = {**SFT, "lora": {**KEPT, "dropout": 0.0}}
    assert losses_of(train(calm, "on", initial=kept))[0] < 0.99 * losses_of(train(calm, "anew"))[0]
    with pytest.raises(StageFailed, match="begin anew from a whole model"):
        train({**SFT, "lora": {**KEPT, "rank": 3}}, initial=kept)
    about = json.loads((kept / "adapter_config.json").read_text())
    (kept / "adapter_config.json").write_text(json.dumps({**about, "use_rslora": True}))
    with pytest.raises(
        BadInput, match="has use_rslora True, which training would not keep; merge it into its base first"
    ):
        train({**SFT, "lora": KEPT}, initial=kept)
    (kept / "adapter_config.json").write_text(json.dumps(about))
    whole = train(DPO, "whole", initial=kept, reference=kept).output  # all weights, from the merged model
    assert set(files(whole)) == set(files(initial))


def test_an_adapter_on_a_base_in_bfloat16(train):
    low = train({**SFT, "precision": "bfloat16", "lora": KEPT}, "low")
    assert losses_of(low) == pytest.approx(losses_of(train({**SFT, "lora": KEPT}, "high")), rel=0.05)
    assert {tensor.dtype for tensor in load_file(low.output / "adapter_model.safetensors").values()} == {torch.float32}


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="tests/extras/test_trainings.py has what it is for")
def test_four_bits_need_bitsandbytes(train, tmp_path):
    with pytest.raises(BadInput, match="load_in_4bit: bitsandbytes is not installed; `pip install"):
        train({**SFT, "lora": {**KEPT, "load_in_4bit": True}})
    assert not (tmp_path / "out").exists()


def test_a_process_of_its_own_gives_the_same_bytes(train):
    """Reference model and training, and the engines are asked for their memory first."""
    released = []
    there = train(DPO, "there", apart="always", release=lambda: released.append(True))
    here = train(DPO, "here")
    assert files(there.output) == files(here.output)
    assert there.trained.curve == here.trained.curve
    assert released
    assert not list((there.job.scratch / "training").iterdir())


def test_two_processes_of_accelerate_learn_what_one_does(train, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "two.yaml").write_text(ACCELERATE)
    assert_learns_what_one_process_does(train, SFT, tmp_path / "two.yaml")
    assert f"accelerate launch --config_file {tmp_path / 'two.yaml'} -m tasks.core.training.apart" in caplog.text


FSDP = (
    ACCELERATE.replace("MULTI_GPU", "FSDP")
    + """
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: FULL_STATE_DICT
"""
)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="processes on CPUs exchange through gloo")
def test_an_adapter_on_a_model_that_two_processes_share_among_them(train, tmp_path):
    """FSDP2, whose state has to be gathered before the adapter is written."""
    (tmp_path / "fsdp.yaml").write_text(FSDP)
    calm = {**SFT, "lora": {**KEPT, "dropout": 0.0}}  # dropout is drawn for the rows that a process has
    assert_learns_what_one_process_does(train, calm, tmp_path / "fsdp.yaml")


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="processes on CPUs exchange through gloo")
def test_two_machines(train, tmp_path, monkeypatch, caplog):
    """The second is given the command that the first one logs, from the repository's root, with its rank."""
    caplog.set_level("INFO")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = f"main_process_port: {free.getsockname()[1]}\nmain_process_ip: 127.0.0.1"
    settings = ACCELERATE.replace("num_machines: 1", "num_machines: 2").replace("main_process_port: 0", port)
    (tmp_path / "machines.yaml").write_text(settings)
    root = ROOT
    started = []

    def start(folder, accelerate):
        asked = command(folder, accelerate)
        before = asked.index("-m", asked.index("-m") + 1)
        given = [*asked[:before], "--machine_rank", "1", *asked[before:]]
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        started.append((asked, subprocess.Popen(given, cwd=root, env=alone, stdout=subprocess.DEVNULL)))
        return asked

    command = apart.command
    monkeypatch.setattr(apart, "command", start)
    two = train({**SFT, "accelerate": str(tmp_path / "machines.yaml")}, "two")
    ((asked, other),) = started
    assert other.wait(timeout=60) == 0
    assert f"training: accelerate launch {' '.join(asked[3:])}\n" in caplog.text
    one = train(SFT, "one")
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-3)
    assert set(files(two.output)) == set(files(one.output))


def test_the_reference_is_another_model_than_the_start(train, initial, tmp_path):
    models_weights.build(ARCHITECTURE, TOKENIZER, 7, tmp_path / "other")
    assert files(train(DPO, "a").output) != files(train(DPO, "b", reference=tmp_path / "other").output)


@pytest.mark.parametrize(
    ("options", "changes", "error", "message"),
    [
        (SFT, {"sft": sft_rows(0)}, EmptyDataset, "no rows to train on"),
        (DPO, {"pairs": pair_rows(0)}, EmptyDataset, "no pairs"),
        ({**SFT, "mixture": {"own": 3}}, {}, StageFailed, "does not say how many rows of 'skill'"),
        ({**SFT, "mixture": {"own": 3, "skill": 1, "fact": 2}}, {}, StageFailed, "2 rows of 'fact' a step"),
        ({**DPO, "replay": {"fact": 2}}, {}, StageFailed, "dpo.replay asks for 2 rows of 'fact'"),
        (SFT, {"sft": sft_rows(weight=-1.0)}, StageFailed, "weight is negative"),
        (SFT, {"sft": sft_rows(weight=0.0)}, StageFailed, "every weight is 0"),
        (DPO, {"pairs": pair_rows(smoothing=1.1)}, StageFailed, "smoothing"),
        (SFT, {"sft": sft_rows(prompt=tiny.user("1 " * 40))}, StageFailed, "the model holds 32"),
        ({**SFT, "lora": {**LORA, "targets": ["no_such_layer"]}}, {}, StageFailed, "no_such_layer"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(train, tmp_path, options, changes, error, message):
    with pytest.raises(error, match=message):
        train(options, **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": {"own": 0}}, "at least one row"),
        ({"mixture": {"own": -1}}, "greater than or equal to 0"),
        ({"betas": [0.9]}, "at least 2"),
        ({"schedule": "step"}, "cosine"),
        ({"lora": {**LORA, "targets": ["lm_head"]}}, "takes no adapter"),
        ({"lora": {**LORA, "targets": ["q_proj", "model.embed_tokens"]}}, "embed_tokens takes no adapter"),
        ({"clip": 0}, "greater than 0"),
    ],
)
def test_options_out_of_range(changes, message):
    with pytest.raises(ValidationError, match=message):
        SftOptions(**{**SFT, **changes})
