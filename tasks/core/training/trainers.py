"""TRL's SFT and DPO trainers, and KTO, with a weight per row, a smoothing per pair, and a planned batch per step.

SFT minimises, over the completion tokens t of the rows i of a step,
    sum_i w_i * sum_t CE_it / sum_i w_i * tokens_i.
DPO (Rafailov et al. 2023) minimises, over the B pairs of a step, the mean of
    w * [(1 - s) * -log sigmoid(beta * d) + s * -log sigmoid(-beta * d)] + nll * w * NLL(chosen) / tokens(chosen)
with d = log pi(chosen)/ref(chosen) - log pi(rejected)/ref(rejected). s > 0 is conservative DPO (CREAM uses
it per pair), w and nll > 0 is ScPO. "ipo" (Azar et al. 2023) puts (d - 1/(2 beta))^2 in the place of the
logistic term, d being of log-probabilities averaged over tokens, as TRL does. "regress" puts (beta * d - margin)^2 there,
least squares on the difference of the pair's scores (Sharpening, Huang et al. 2024, its RLHF form). optimism > 0 adds
optimism * beta * the mean of both log-ratios: how much likelier than under the reference model the pair became, both
answers standing for what the reference model would write (SELM, Zhang et al. 2024).
KTO (Ethayarajh et al. 2024, eq. 7) minimises, over the B rows of a step, the mean of
    w * (1 - sigmoid(beta * (r - z)))  for a good answer,  w * (1 - sigmoid(beta * (z - r)))  for a bad one
with r = log pi(y)/ref(y), w the row's weight times `desirable` or `undesirable`, and the reference point z = max(0, mean of
r over the step's prompts, each with the answer to another one), through which no gradient goes, as TRL does.
Replayed SFT rows may ride along in each step: + replay_coefficient * the SFT loss over them.

All override `compute_loss`, so there is one forward pass, and the vocabulary is projected only where a
completion token is to be predicted. A step's rows go through the model in groups of like length and the
gradients add up: a row only sees tokens to its left, so padding on its right needs no attention mask.

`fit` keeps checkpoints in a scratch folder and continues from the newest complete one. On CPU equal arguments give
equal bytes, whether or not the training was interrupted. Started by `accelerate launch` (`tasks.core.training.apart`), it is
one of several processes: each takes its share of a step's rows, the gradients add up to those of the whole step, and
the first process writes the model.

`lora`: see `tasks.core.training.adapters`. `adapter: keep` writes the adapter alone, `merge` a whole model, merged in float32.
"""

import contextlib
import copy
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import DistributedType
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tasks.core.errors import StageFailed
from tasks.core.models import folders, tokenizers, weights
from tasks.core.models.pointer import Pointer
from tasks.core.training import adapters, checkpoints
from tasks.core.training.batches import Batches, SftBatches, pack
from tasks.core.training.encoding import Rows
from tasks.core.training.losses import Head, Tensors, dpo_losses, kto_losses, log_probabilities, tensors
from tasks.core.training.options import DpoOptions, KtoOptions
from tasks.core.training.rates import schedule
from tasks.core.training.request import Fit, Fitted, Steps

# One of several processes on CPUs has the device "cpu:0", on which torch.load puts checkpoints and which it does not know.
torch.serialization.register_package(
    100, lambda stored: None, lambda stored, place: stored if place.startswith("cpu:") else None
)

# --- batches ---------------------------------------------------------------------------------------


class _Steps(torch.utils.data.Dataset[list[Tensors]]):
    """One item per optimizer step: the groups of all sources, for process `rank` of `world`."""

    def __init__(self, sources: Sequence[Batches], steps: int, rank: int, world: int):
        self.sources, self.steps, self.rank, self.world = sources, steps, rank, world

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> list[Tensors]:
        return [tensors(group) for source in self.sources for group in source.step(index, self.rank, self.world)]


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
        data = _Steps(self._sources, steps, self.args.process_index, self.args.world_size)
        return DataLoader(data, batch_sampler=[[i] for i in range(steps)], collate_fn=lambda items: items[0])

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        optimizer = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """All passes of a step. Several processes average their gradients, so each takes its part of the loss as many
        times as there are processes; they exchange them in the last pass."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        passes = self._prepare_inputs(inputs)
        kind = self.accelerator.distributed_type
        given = {"scale_wrt_gas": False} if kind == DistributedType.DEEPSPEED else {}
        for number, group in enumerate(passes, 1):
            last = number == len(passes)
            waits = not last and kind in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
            self.accelerator.gradient_state._set_sync_gradients(last)  # DeepSpeed makes its step where this is set
            with self.accelerator.no_sync(model) if waits else contextlib.nullcontext():
                loss = self.compute_loss(model, group) * self.args.world_size
                self.accelerator.backward(loss, **given)
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
    """DPO with a weight, a smoothing and a margin per pair, and SFT rows replayed in the same step."""

    def __init__(self, *, options: DpoOptions, **given: Any):
        self._options = options
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
        told = inputs["reference"], lengths, inputs["smoothing"], inputs["margins"]
        losses = dpo_losses(sums, *told, self._options)
        return (inputs["pair_weights"] * losses).sum()

    def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *arguments: Any) -> Any:
        return dataset


class WeightedKTOTrainer(_Planned, SFTTrainer):
    """KTO with a weight per row, and SFT rows replayed in the same step. A step's first passes estimate its reference
    point."""

    def __init__(self, *, options: KtoOptions, **given: Any):
        self._options = options
        self._point = torch.zeros(())
        super().__init__(**given)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        passes = self._prepare_inputs(inputs)
        points = [group for group in passes if "point_weights" in group]
        with torch.no_grad():
            found = sum((group["point_weights"] * self._ratios(model, group)).sum() for group in points)
            self._point = self.accelerator.reduce(torch.as_tensor(found), "sum").clamp(min=0)
        return super().training_step(model, passes[len(points) :], num_items_in_batch)

    def compute_loss(
        self, model: Any, inputs: Tensors, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if "token_weights" in inputs:
            return self.sft_loss(model, inputs)
        losses = kto_losses(self._ratios(model, inputs), inputs["labels"], self._point, self._options.beta)
        return (inputs["row_weights"] * losses).sum()

    def _ratios(self, model: Any, group: Tensors) -> torch.Tensor:
        """log pi(y|x) - log ref(y|x) of every row of a group."""
        sums = torch.zeros_like(group["reference"]).index_add(
            0, group["owners"], log_probabilities(model, self._head, group)
        )
        return sums - group["reference"]


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
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / checkpoints.COMPLETE).touch()


# --- fit -------------------------------------------------------------------------------------------


def fit(request: Fit, progress: Steps) -> Fitted:
    """Trains as the request says and writes the model to its `output`, in the number format of the initial one. The
    checkpoints' folder is removed when the model is written. Raises `StageFailed` where model and options do not fit
    each other."""
    options, output, place = request.options, request.output, request.checkpoints
    place.mkdir(parents=True, exist_ok=True)
    latest = checkpoints.latest(place)
    logging.set_verbosity_error()
    arguments = arguments_for(request)  # before the model: DeepSpeed and FSDP load it their way
    model, tokenizer = adapters.initial(request.initial, options), tokenizers.load_tokenizer(request.initial)
    config, generation = copy.deepcopy((model.config, model.generation_config))  # trainers change both
    report = _Report(progress)
    trainer = trainer_for(request, model, tokenizer, arguments)
    if options.lora and (found := folders.parts(request.initial)).adapter:
        adapters.take_up(trainer.model, found.adapter, options.lora)
    trainer.add_callback(report)
    trainer.train(resume_from_checkpoint=str(latest) if latest else None)
    seconds = time.perf_counter() - report.began
    accelerator = trainer.accelerator
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    state = accelerator.get_state_dict(trainer.model_wrapped) if sharded else None  # all processes give their parts
    if accelerator.is_main_process:
        aside = output.with_name(output.name + ".part")
        shutil.rmtree(aside, ignore_errors=True)
        if options.lora:
            base = folders.parts(request.initial).weights
            named = request.base or Pointer(str(base.resolve()), folders.digest(base))
            adapters.write(trainer.model, state, named, base, tokenizer, aside)
            if options.lora.adapter == "merge":
                trained = weights.load(aside, torch.float32)
                shutil.rmtree(aside)
                trained.config, trained.generation_config = config, generation
                _write(trained, None, request.initial, tokenizer, aside)
        else:
            trainer.model.config, trainer.model.generation_config = config, generation
            _write(trainer.model, state, request.initial, tokenizer, aside)
        shutil.rmtree(output, ignore_errors=True)
        aside.replace(output)
        shutil.rmtree(place)
    accelerator.wait_for_everyone()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Fitted(history, options.steps - (report.first or 0), seconds)


def arguments_for(request: Fit) -> SFTConfig | DPOConfig:
    """The settings of TRL's trainer, none of them left to its defaults where results or behaviour depend on it."""
    options = request.options
    common: dict[str, Any] = {
        "output_dir": str(request.checkpoints),
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
        "seed": request.seed,
        "data_seed": request.seed,
        "gradient_checkpointing": options.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if options.gradient_checkpointing else None,
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
    arguments: SFTConfig | DPOConfig
    try:
        if isinstance(options, DpoOptions):
            arguments = DPOConfig(**common, beta=options.beta, precompute_ref_log_probs=True)
        else:
            arguments = SFTConfig(**common, dataset_kwargs={"skip_prepare_dataset": True})
    except ValueError as error:  # bfloat16 where the machine has none
        raise StageFailed(f"{request.kind} cannot be trained with these options here: {error}") from error
    arguments._n_gpu = min(1, arguments.n_gpu)  # no DataParallel: several GPUs are several processes
    return arguments


def trainer_for(request: Fit, model: Any, tokenizer: Any, arguments: SFTConfig | DPOConfig) -> Any:
    """The trainer of the request's kind, with everything about it decided. Raises `StageFailed` where model and options
    do not fit each other."""
    options = request.options
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    given = {
        "model": model,
        "args": arguments,
        "train_dataset": Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),  # never read: see _Planned
        "processing_class": tokenizer,
        "peft_config": adapters.configuration(options.lora),
        "sources": request.sources,
        "rate": schedule(options.schedule, options.steps, options.warmup_steps, options.final_share),
    }
    if any(isinstance(source, SftBatches) and source.packed for source in request.sources):
        check_packing(model)
    trainer: Any
    try:
        if isinstance(options, DpoOptions):
            trainer = WeightedDPOTrainer(options=options, **given)
        elif isinstance(options, KtoOptions):
            trainer = WeightedKTOTrainer(options=options, **given)
        else:
            trainer = WeightedSFTTrainer(**given)
    except ValueError as error:  # peft and TRL refuse targets and settings that do not fit the model
        raise StageFailed(f"{request.kind} cannot train this model: {error}") from error
    if options.lora:  # in float32, whatever holds the base: TRL makes it bfloat16 on one in 4 bits
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    trainer.remove_callback(PrinterCallback)
    return trainer


def check_packing(model: Any) -> None:
    """Raises `StageFailed` if one row of a pack sees another: transformers keeps rows apart by their positions, but
    not in every kind of layer (recurrent ones carry on) and not for every attention. Two short rows are packed, and
    the outputs of the second must not move when the first is another."""
    if is_deepspeed_zero3_enabled():
        raise StageFailed("packing: with DeepSpeed ZeRO-3 nobody can check that rows are kept apart; set it to false")
    lengths = np.array([5, 6])
    seen = []
    for first in (1, 2):
        tokens = np.array([first] * 5 + [1, 2] * 3)
        group = tensors(pack(Rows(tokens, np.array([0, 5]), lengths, np.array([1, 1])), np.array([0, 1])))
        inputs = {name: group[name].to(model.device) for name in ("input_ids", "position_ids")}
        with torch.no_grad():
            seen.append(model(**inputs, use_cache=False).logits[0, 5:].float())
    if not torch.allclose(seen[0], seen[1], rtol=0, atol=1e-5 * float(seen[0].abs().max())):
        kind = getattr(model.config, "model_type", "this model")
        raise StageFailed(f"packing: in a {kind} model packed rows see one another; set it to false")


def _write(model: Any, state: Any, initial: Path, tokenizer: Any, folder: Path) -> None:
    """A whole model, in the number format that `initial` says it has. `state`: its weights, where it was sharded."""
    config = folders.read_config(initial)
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."))
    if state is None:
        weights.save(model.to("cpu", dtype), tokenizer, folder)
        return
    tied = getattr(model, "all_tied_weights_keys", {})  # DeepSpeed gives them twice
    state = {name: tensor.to("cpu", dtype) for name, tensor in state.items() if name not in tied}
    model.config.dtype = dtype
    weights.save(model, tokenizer, folder, state)
