"""What is added to vLLM's workers: statistics of the whole vocabulary, told in the place of log-probabilities.

vLLM hands the probabilities of all tokens over one Python number at a time, which takes minutes for one response with a
vocabulary of 150,000. Here a worker computes the statistic where the logits are, and hands one number a token over.
It works on two inner functions of vLLM 0.31, one for each of its model runners, both of which compute the log-probabilities
of prompts and of sampled tokens alike.
"""

from typing import Any

import torch

from tasks.core.engines import statistics
from tasks.core.engines.contract import Statistic


class Telling:
    """A `worker_extension_cls`: its methods can be called with `collective_rpc`."""

    model_runner: Any

    def tell_statistic(self, statistic: Statistic) -> None:
        """From now on log-probabilities are the statistic, at every token; `logprob` for themselves again."""
        runner = self.model_runner
        if hasattr(runner, "prompt_logprobs_worker"):  # the second model runner, on GPUs
            from vllm.v1.worker.gpu.sample import logprob

            _replace(logprob, "compute_token_logprobs", in_columns(statistic))
        else:
            _replace(runner.sampler, "compute_logprobs", in_rows(statistic))


def in_columns(statistic: Statistic) -> Any:
    """`(logits [rows, vocabulary], tokens [rows, columns]) -> [rows, columns]`; None for `logprob`."""
    return None if statistic == "logprob" else lambda logits, tokens: _told(logits, statistic).expand(*tokens.shape)


def in_rows(statistic: Statistic) -> Any:
    """`(logits [rows, vocabulary]) -> [rows, vocabulary]`, the same number in all of a row; None for `logprob`."""
    return None if statistic == "logprob" else lambda logits: _told(logits, statistic).expand(*logits.shape)


def _told(logits: torch.Tensor, statistic: Statistic) -> torch.Tensor:
    return statistics.at(logits.float(), None, statistic)[:, None]


def _replace(owner: Any, name: str, function: Any) -> None:
    """Puts the function into the owner under the name, or its own one back for None."""
    kept = f"_own_{name}"
    if not hasattr(owner, kept):
        setattr(owner, kept, getattr(owner, name))
    setattr(owner, name, function or getattr(owner, kept))
