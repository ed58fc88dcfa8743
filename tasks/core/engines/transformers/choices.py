"""Replies out of a list: which tokens may come next so that the whole reply is one of the given texts.

The tokens that the tokenizer makes of each text form a trie, and a reply is a walk through it; where a text is complete,
any token that ends a reply may follow. Each step draws from the model's distribution, restricted to the tokens that stay on
a walk and made to sum to 1 again. (Other ways to cut the same text into tokens are not walked; vLLM's grammars allow them.)
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.core.engines.texts import Texts
from tasks.core.errors import BadInput

Nodes = NDArray[np.int64]  # places in the trie; 0 is its root


class Choices:
    """The trie of some texts. Raises `BadInput` for texts that cannot be told apart, or a tokenizer without an end."""

    def __init__(self, texts: Texts, choices: Sequence[str]) -> None:
        if not texts.ends:
            raise BadInput("choices: the tokenizer has no end-of-text token, so that no reply could end with its text")
        self.ends = texts.ends
        self.next: list[dict[int, int]] = [{}]
        self.whole: dict[int, str] = {}  # texts by the node of their last token
        for choice, ids in zip(choices, texts.tokenize(choices), strict=True):
            node = 0
            for token in ids:
                if token not in self.next[node]:
                    self.next[node][token] = len(self.next)
                    self.next.append({})
                node = self.next[node][token]
            if node == 0 or node in self.whole:
                other = f"the same as {self.whole[node]!r}" if node else "nothing"
                raise BadInput(
                    f"choices: {choice!r} is {other} to the model's tokenizer, so it is no choice of its own"
                )
            self.whole[node] = choice
        self.allowed = [[*after, *(self.ends if node in self.whole else [])] for node, after in enumerate(self.next)]

    def among(self, logits: Tensor, nodes: Nodes) -> Tensor:
        """`logits` `[rows, vocabulary]` with minus infinity for all tokens that lead away from the texts; `nodes` `[rows]`:
        where each reply stands."""
        masked = torch.full_like(logits, -torch.inf)
        for node in np.unique(nodes):
            rows = torch.from_numpy(np.flatnonzero(nodes == node)).to(logits.device)[:, None]
            tokens = torch.tensor(self.allowed[node], device=logits.device)
            masked[rows, tokens] = logits[rows, tokens]
        return masked

    def follow(self, nodes: Nodes, tokens: NDArray[np.int64]) -> Nodes:
        """Where the replies stand after one more token each; one that has ended stays."""
        pairs = zip(nodes.tolist(), tokens.tolist(), strict=True)
        return np.array([self.next[node].get(token, node) for node, token in pairs], dtype=np.int64)

    def text(self, new: Sequence[int]) -> str | None:
        """The text of a reply that has ended, None of one that was cut off before."""
        node = 0
        for token in new:
            if token in self.ends and node in self.whole:
                return self.whole[node]
            node = self.next[node][token]
        return None
