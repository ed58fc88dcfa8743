"""What `score` tells of the distribution at every place of a response (`tasks.core.engines.contract`), from its logits."""

import math

import torch
from torch import Tensor

from tasks.core.engines.contract import Statistic


def at(logits: Tensor, tokens: Tensor | None, statistic: Statistic) -> Tensor:
    """The statistic in nats `[...]` of float32 `logits` `[..., vocabulary]`; `tokens` `[...]`, those that came, are needed
    for `logprob` alone."""
    total = logits.logsumexp(-1)
    if statistic == "self_certainty":  # -(1/V) sum log(V p) = log sum exp(logits) - mean logit - log V
        return total - logits.mean(-1) - math.log(logits.shape[-1])
    if statistic == "margin":
        first, second = torch.softmax(logits, -1).topk(2, -1).values.unbind(-1)
        return first - second
    if statistic == "entropy":
        return total - (torch.softmax(logits, -1) * logits).sum(-1)
    if tokens is None:
        raise ValueError("the log-probability is that of a token, and none is given")
    return logits.gather(-1, tokens[..., None])[..., 0] - total
