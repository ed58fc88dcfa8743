"""The losses of training on the level of one group of rows, and what they are computed from.

A group's tensors come from `tasks.core.training.batches`: rows of like length, padded on the right. `Head` lets a model project
onto its vocabulary only at the positions that are to be predicted, where most of a small model's time goes.
Formulas: see `tasks.core.training.trainers`.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tasks.core.models import weights
from tasks.core.training.batches import Group, gather, groups
from tasks.core.training.options import DpoOptions
from tasks.core.training.request import Reference, Steps

Tensors = dict[str, torch.Tensor]


def tensors(group: Group) -> Tensors:
    return {key: torch.from_numpy(value) for key, value in group.items()}


def dpo_losses(
    logps: torch.Tensor,
    reference: torch.Tensor,
    lengths: torch.Tensor,
    smoothing: torch.Tensor,
    margins: torch.Tensor,
    options: DpoOptions,
) -> torch.Tensor:
    """Loss of every pair, (B,), before its weight. `logps`, `reference`: (2B,) summed log-probabilities, chosen
    first; `lengths`: (2B,) completion tokens; `smoothing`, `margins`: (B,)."""
    pairs, beta = len(smoothing), options.beta
    ratios = logps - reference
    delta = beta * (ratios[:pairs] - ratios[pairs:])
    if options.loss == "ipo":
        averaged = ratios / lengths
        delta = averaged[:pairs] - averaged[pairs:]
        right, wrong = (delta - 1 / (2 * beta)) ** 2, (-delta - 1 / (2 * beta)) ** 2
    elif options.loss == "regress":
        right, wrong = (delta - margins) ** 2, (-delta - margins) ** 2
    else:
        right, wrong = -F.logsigmoid(delta), -F.logsigmoid(-delta)
    losses = (1 - smoothing) * right + smoothing * wrong
    if options.optimism:
        losses = losses + options.optimism * beta * (ratios[:pairs] + ratios[pairs:]) / 2
    return losses - options.nll * logps[:pairs] / lengths[:pairs] if options.nll else losses


def kto_losses(ratios: torch.Tensor, labels: torch.Tensor, point: torch.Tensor, beta: float) -> torch.Tensor:
    """Loss of every rated row, (B,), before its weight. `ratios`: log pi(y|x) - log ref(y|x), (B,); `labels`: whether
    the row is a good one; `point`: the reference point, an estimate of KL(pi, ref) that is not negative."""
    return 1 - torch.sigmoid(beta * torch.where(labels, ratios - point, point - ratios))


def log_probabilities(model: Any, head: "Head", group: Tensors) -> torch.Tensor:
    """Log-probability in nats of every completion token of a group, (m,)."""
    head.positions = group["positions"]
    try:
        inputs = {name: group[name] for name in ("input_ids", "position_ids") if name in group}
        logits = model(**inputs, use_cache=False).logits[0]
    finally:
        head.positions = None
    return -F.cross_entropy(logits.float(), group["targets"], reduction="none")


def reference_logps(request: Reference, progress: Steps) -> np.ndarray:
    """Summed log-probability of every row's completion under a model, (rows,) in nats."""
    rows = request.rows
    model = weights.load(request.model, torch.float32).eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    head = Head(model)
    sums = np.zeros(len(rows))
    batches = groups(rows.lengths, request.limit)
    for done, numbers in enumerate(batches):
        group = {key: value.to(device) for key, value in tensors(gather(rows, numbers)).items()}
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=request.precision == "bfloat16"):
            logps = log_probabilities(model, head, group)
        sums[numbers] = logps.new_zeros(len(numbers)).index_add(0, group["owners"], logps).cpu().numpy()
        progress(done + 1, len(batches))
    return sums


class Head:
    """Lets the output head of a model see only the `positions` that are to be predicted."""

    def __init__(self, model: Any):
        self.positions: torch.Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._select)

    def _select(self, module: torch.nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        return None if self.positions is None else (given[0].flatten(0, 1)[self.positions][None],)
