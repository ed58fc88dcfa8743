"""Between text and tokens: what every engine that holds a model does in the same way.

Prompts arrive with the chat template applied, so no special tokens are added. Prompt and response are tokenized apart, as
they are when a response is generated. A reply's text leaves out the token that ended it and all special tokens.
"""

from collections.abc import Sequence
from typing import Any

from tasks.core.errors import BadInput
from tasks.core.models import tokenizers

UNBOUNDED = 1 << 62  # positions of a model that states none


class Texts:
    """A tokenizer, the tokens that end a reply (the tokenizer's own first), and how many positions the model has."""

    def __init__(
        self, tokenizer: Any, configured: int | list[int] | None, positions: int | None, known: int | None = None
    ) -> None:
        """`configured`: the ends that the generation settings name; `known`: tokens that the model knows."""
        self.tokenizer, self.positions, self.known = tokenizer, positions or UNBOUNDED, known or UNBOUNDED
        self.ends = tokenizers.ends(tokenizer, configured)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, none added. Raises `BadInput` for one that the model does not know."""
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        if (largest := max((max(ids) for ids in found if ids), default=0)) >= self.known:
            raise BadInput(
                f"the tokenizer writes token {largest} ({self.tokenizer.convert_ids_to_tokens(largest)!r}), and the model knows "
                f"{self.known} tokens: they do not belong together; give the model its own tokenizer, or more embeddings"
            )
        return found

    def prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokens of each prompt. Raises `BadInput` for one that is empty or leaves no room for a reply."""
        tokens = self.tokenize(prompts)
        for prompt, ids in zip(prompts, tokens, strict=True):
            if not ids:
                raise BadInput(f"prompt {prompt[:80]!r} has no tokens: there is nothing to continue")
            if len(ids) >= self.positions:
                raise BadInput(
                    f"prompt {prompt[:80]!r}... has {len(ids)} tokens and the model {self.positions} positions: "
                    "no room for a reply; shorten the prompts or use a model that takes longer ones"
                )
        return tokens

    def pairs(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Tokens of each prompt; and those with the response's and the end of text behind them. Raises `BadInput`
        for what does not fit the model, or a tokenizer without an end."""
        if not self.ends:
            raise BadInput("score: the tokenizer has no end-of-text token, so no response has an end to score")
        asked = self.prompts(prompts)
        told = [[*ids, self.ends[0]] for ids in self.tokenize(responses)]
        joined = [prompt + response for prompt, response in zip(asked, told, strict=True)]
        longest = max(map(len, joined), default=1) - 1
        if longest > self.positions:
            raise BadInput(f"score: {longest} tokens of prompt and response, but {self.positions} positions")
        return asked, joined

    def replies(self, new: Sequence[Sequence[int]]) -> list[str]:
        """Text of each reply. Equal token sequences, frequent among samples, are decoded once."""
        known: dict[tuple[int, ...], str] = {}
        texts = []
        for ids in new:
            key = tuple(ids[:-1] if self.ended(ids) else ids)
            if key not in known:
                known[key] = str(
                    self.tokenizer.decode(list(key), skip_special_tokens=True, clean_up_tokenization_spaces=False)
                )
            texts.append(known[key])
        return texts

    def ended(self, new: Sequence[int]) -> bool:
        """Whether a token that ends a reply is its last."""
        return bool(new) and new[-1] in self.ends
