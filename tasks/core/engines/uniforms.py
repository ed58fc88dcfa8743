"""Randomness that depends on a request alone, and the tokens it picks.

A row's random numbers are a function of (sampling seed, prompt text, number of the draw, position):
a hash seeds the row, SplitMix64 (Steele, Lea, Flood 2014) counts through its positions. Which other rows
share the batch, and where the row sits in it, plays no part, so a prompt's draws 2 and 3 are the same
whether they are asked for alone or after draws 0 and 1.

Tokens are picked by inverting the cumulative distribution: one uniform number per row and position.
"""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
BITS = np.uint64(23)  # of randomness per token: with u <= 1 - 2**-23, u * total stays below total in float32
Keys = NDArray[np.uint64]


def mix(values: Keys) -> Keys:
    """SplitMix64's finaliser: 64 bits to 64 bits, one to one, well scattered."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def row_keys(seed: int, prompts: list[str], draws: range) -> Keys:
    """Keys `[len(prompts), len(draws)]`, one for each draw of each prompt."""
    digests = [hashlib.blake2b(f"{seed}\0{p}".encode("utf-8", "surrogatepass"), digest_size=8) for p in prompts]
    bases = np.array([int.from_bytes(digest.digest(), "little") for digest in digests], dtype=np.uint64)
    return mix(bases[:, None] + GOLDEN * np.array(draws, dtype=np.uint64)[None, :])


def uniforms(keys: Keys, positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Numbers in [0, 1) for the given position of each row; shapes `[rows]`."""
    bits = mix(keys + GOLDEN * (positions.astype(np.uint64) + np.uint64(1)))
    return (bits >> (np.uint64(64) - BITS)).astype(np.float32) * np.float32(2.0 ** -int(BITS))


def pick(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Tokens `[rows]` from float32 `logits` `[rows, vocabulary]` and `uniform` `[rows]` in [0, 1).

    `temperature` 0 takes the likeliest (the first of equals). `top_p` < 1 keeps the smallest set of
    likeliest tokens whose probabilities reach it (Holtzman et al. 2020) and draws among those.
    """
    if temperature == 0:
        return logits.argmax(-1)
    weights = torch.softmax(logits / temperature, -1)
    if top_p >= 1:
        return _invert(weights, uniform)
    weights, tokens = weights.sort(stable=True, dim=-1, descending=True)
    kept = torch.where(weights.cumsum(-1) - weights < top_p, weights, 0)
    return tokens.gather(-1, _invert(kept, uniform)[:, None])[:, 0]


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """First index at which the running sum of `weights` exceeds `uniform` times their total."""
    reached = weights.cumsum(-1)
    target = uniform[:, None] * reached[:, -1:]
    index = torch.searchsorted(reached, target, right=True)[:, 0]
    return index.clamp_(max=weights.shape[-1] - 1)  # only logits that are not numbers get this far
