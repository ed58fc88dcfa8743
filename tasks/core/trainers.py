"""TRL's SFT and DPO trainers, with a weight per row, a smoothing per pair, and a planned batch per step.

SFT minimises, over the completion tokens t of the rows i of a step,
    sum_i w_i * sum_t CE_it / sum_i w_i * tokens_i.
DPO (Rafailov et al. 2023) minimises, over the B pairs of a step, the mean of
    w * [(1 - s) * -log sigmoid(beta * d) + s * -log sigmoid(-beta * d)] + nll * w * NLL(chosen) / tokens(chosen)
with d = log pi(chosen)/ref(chosen) - log pi(rejected)/ref(rejected). s > 0 is conservative DPO (CREAM uses
it per pair), w and nll > 0 is ScPO. "ipo" (Azar et al. 2023) puts (d - 1/(2 beta))^2 in the place of the
logistic term, d being of log-probabilities averaged over tokens, as TRL does. Replayed SFT rows may
ride along in each step: + replay_coefficient * the SFT loss over them.

Both override `compute_loss`, so there is one forward pass, and the vocabulary is projected only where a
completion token is to be predicted. A step's rows go through the model in groups of like length and the
gradients add up: a row only sees tokens to its left, so padding on its right needs no attention mask.

`fit` trains in one process, keeps checkpoints in a scratch folder and continues from the newest complete
one. On CPU equal arguments give equal bytes, whether or not the training was interrupted.
"""

import copy
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tasks.core import models
from tasks.core.batches import Batches, Rows, gather, groups
from tasks.core.errors import BadInput, StageFailed
from tasks.core.losses import Head, Tensors, dpo_losses, log_probabilities, tensors

COMPLETE = "complete"  # marker of a checkpoint that was written to its end


# --- batches ---------------------------------------------------------------------------------------


class _Steps(torch.utils.data.Dataset[list[Tensors]]):
    """One item per optimizer step: the groups of all sources."""

    def __init__(self, sources: Sequence[Batches], steps: int):
        self.sources, self.steps = sources, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> list[Tensors]:
        return [tensors(group) for source in self.sources for group in source.step(index)]


def reference_logps(folder: Path, rows: Rows, precision: str, progress: Callable[[int, int], None]) -> np.ndarray:
    """Summed log-probability of every row's completion under a model, (rows,) in nats."""
    model = load(folder).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    head = Head(model)
    sums = np.zeros(len(rows))
    batches = groups(rows.lengths)
    for done, numbers in enumerate(batches):
        group = {key: value.to(device) for key, value in tensors(gather(rows, numbers)).items()}
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logps = log_probabilities(model, head, group)
        sums[numbers] = logps.new_zeros(len(numbers)).index_add(0, group["owners"], logps).cpu().numpy()
        progress(done + 1, len(batches))
    return sums


# --- trainers --------------------------------------------------------------------------------------


class _Planned:
    """What both trainers share: planned groups instead of a sampled data set, and the learning-rate curve."""

    args: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any
    compute_loss: Any
    _prepare_inputs: Any

    def __init__(self, *, sources: Sequence[Batches], rate: Callable[[int], float], **given: Any):
        self._sources, self._rate = sources, rate
        super().__init__(**given)
        self._head = Head(self.model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        steps = self.args.max_steps
        data = _Steps(self._sources, steps)
        return DataLoader(data, batch_sampler=[[i] for i in range(steps)], collate_fn=lambda items: items[0])

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        optimizer = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        model.train()
        total = torch.zeros((), device=self.args.device)
        for group in self._prepare_inputs(inputs):
            loss = self.compute_loss(model, group)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def sft_loss(self, model: Any, group: Tensors) -> torch.Tensor:
        return -(group["token_weights"] * log_probabilities(model, self._head, group)).sum()

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def create_model_card(self, *arguments: Any, **named: Any) -> None:
        """A model here is described by its lineage, not by a card."""

    def _send_telemetry(self) -> None:
        """Training tells nobody."""


class WeightedSFTTrainer(_Planned, SFTTrainer):
    """SFT with a weight per row."""

    def compute_loss(
        self, model: Any, inputs: Tensors, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return self.sft_loss(model, inputs)


class WeightedDPOTrainer(_Planned, DPOTrainer):
    """DPO with a weight and a smoothing per pair, and SFT rows replayed in the same step."""

    def __init__(self, *, kind: str, nll: float, **given: Any):
        self._kind, self._nll = kind, nll
        super().__init__(**given)

    def compute_loss(
        self, model: Any, inputs: Tensors, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if "token_weights" in inputs:
            return self.sft_loss(model, inputs)
        logps = log_probabilities(model, self._head, inputs)
        both = torch.zeros_like(inputs["reference"])
        sums = both.index_add(0, inputs["owners"], logps)
        lengths = both.index_add(0, inputs["owners"], torch.ones_like(logps))
        losses = dpo_losses(sums, inputs["reference"], lengths, inputs["smoothing"], self._kind, self.beta, self._nll)
        return (inputs["pair_weights"] * losses).sum()

    def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *arguments: Any) -> Any:
        return dataset


class _Report(TrainerCallback):
    """Progress for the caller, a marker in every finished checkpoint, and an end to a loss that is no number."""

    def __init__(self, progress: Callable[[int, int], None]):
        self.progress = progress
        self.first: int | None = None
        self.began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if self.first is None:
            self.first, self.began = state.global_step, time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self.progress(state.global_step, state.max_steps)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **named: Any
    ) -> None:
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise StageFailed(f"the training loss is no number at step {state.global_step}; lower the learning rate")

    def on_save(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def schedule(kind: str, steps: int, warmup: int, final_share: float) -> Callable[[int], float]:
    """Learning rate at step i as a share of the highest: linear warm-up, then `kind` down to `final_share`.
    "wsd" stays at the top and falls linearly over the last 30 % of the steps."""

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        along = min(1.0, (step - warmup) / max(1, steps - warmup))
        if kind == "constant":
            fallen = 0.0
        elif kind == "linear":
            fallen = along
        elif kind == "cosine":
            fallen = (1 - math.cos(math.pi * along)) / 2
        else:
            fallen = min(1.0, max(0.0, (step - 0.7 * steps) / (0.3 * steps)))
        return 1 - (1 - final_share) * fallen

    return share


# --- fit -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """`history`: one mapping per logged step; `seconds` for `steps` steps, those before an interruption left out."""

    history: list[dict[str, float]]
    steps: int
    seconds: float


def load(folder: Path) -> Any:
    """The model in float32. Raises `BadInput` if transformers cannot load it; remote code is never run."""
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BadInput(f"{folder} cannot be loaded as a language model: {error}") from error


def fit(
    kind: str,
    initial: Path,
    output: Path,
    checkpoints: Path,
    sources: Sequence[Batches],
    options: Any,
    seed: int,
    progress: Callable[[int, int], None],
) -> Fitted:
    """Trains `initial` ("sft" or "dpo") and writes the model to `output`, in the number format of `initial`.
    `options`: see `tasks.blocks.training`. `checkpoints` is removed when the model is written."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    latest = _latest(checkpoints)
    logging.set_verbosity_error()
    model, tokenizer = load(initial), models.load_tokenizer(initial)
    config, generation = copy.deepcopy((model.config, model.generation_config))  # trainers change both
    report = _Report(progress)
    trainer = trainer_for(kind, model, tokenizer, checkpoints, sources, options, seed)
    trainer.add_callback(report)
    trainer.train(resume_from_checkpoint=str(latest) if latest else None)
    seconds = time.perf_counter() - report.began
    trained = trainer.model.merge_and_unload() if options.lora else trainer.model
    trained.config, trained.generation_config = config, generation
    _write(trained, initial, tokenizer, output)
    shutil.rmtree(checkpoints)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Fitted(history, options.steps - (report.first or 0), seconds)


def trainer_for(
    kind: str, model: Any, tokenizer: Any, checkpoints: Path, sources: Sequence[Batches], options: Any, seed: int
) -> Any:
    """The trainer of a kind, with everything about it decided. Raises `StageFailed` where model and options
    do not fit each other."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    common = {
        "output_dir": str(checkpoints),
        "max_steps": options.steps,
        "per_device_train_batch_size": 1,
        "learning_rate": options.learning_rate,
        "adam_beta1": options.betas[0],
        "adam_beta2": options.betas[1],
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.clip,
        "optim": "adamw_torch_fused",
        "bf16": options.precision == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "seed": seed,
        "data_seed": seed,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": max(1, min(10, options.steps // 20)),
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": options.checkpoint_steps,
        "save_total_limit": 2,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
    given = {
        "model": model,
        "train_dataset": Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),  # never read: see _Planned
        "processing_class": tokenizer,
        "peft_config": _lora(options.lora),
        "sources": sources,
        "rate": schedule(options.schedule, options.steps, options.warmup_steps, options.final_share),
    }
    trainer: Any
    try:
        if kind == "sft":
            settings = SFTConfig(**common, dataset_kwargs={"skip_prepare_dataset": True})
            trainer = WeightedSFTTrainer(args=settings, **given)
        else:
            preferences = DPOConfig(**common, beta=options.beta, precompute_ref_log_probs=True)
            trainer = WeightedDPOTrainer(args=preferences, kind=options.loss, nll=options.nll, **given)
    except ValueError as error:  # peft and TRL refuse targets and settings that do not fit the model
        raise StageFailed(f"{kind} cannot train this model: {error}") from error
    trainer.remove_callback(PrinterCallback)
    return trainer


def _lora(options: Any) -> Any:
    if options is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.targets),
        task_type="CAUSAL_LM",
    )


def _write(model: Any, initial: Path, tokenizer: Any, output: Path) -> None:
    """Writes beside `output` and renames, in the number format that `initial` says it has."""
    config = models.read_config(initial)
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    aside = output.with_name(output.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    models.save(model.to("cpu", getattr(torch, name)), tokenizer, aside)
    shutil.rmtree(output, ignore_errors=True)
    aside.replace(output)


def _latest(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint; those that were cut off while they were written are removed."""
    found: dict[int, Path] = {}
    for folder in checkpoints.glob("checkpoint-*"):
        if (folder / COMPLETE).is_file():
            found[int(folder.name.rpartition("-")[2])] = folder
        else:
            shutil.rmtree(folder)
    return found[max(found)] if found else None
