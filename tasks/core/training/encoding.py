"""Token rows: conversations as a model is trained on them.

`encode` turns (prompt, completion) conversations into token rows. The prompt is tokenised as it is at
generation time, the completion apart from it and up to its end token, so that the model is trained on
exactly the tokens that it will be asked to produce. Only completion tokens are targets. Messages of a completion may have
weights: one of weight 0 is read and not learned. Neighbours of one role are one message.
Where the prompt opens a thought that the template leaves out of finished conversations, the completion is the reply
as it was generated; a reply without a thought gets an empty one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.core.errors import StageFailed
from tasks.core.models.chat import opened_thought
from tasks.core.models.tokenizers import neutralise, render_many, special_tokens

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Token rows laid end to end. Row i is `tokens[starts[i] : starts[i] + lengths[i]]`; its first
    `prompts[i]` tokens are the prompt. `weights`: of every token; None: each token of a completion weighs 1."""

    tokens: Ints
    starts: Ints
    lengths: Ints
    prompts: Ints
    weights: Floats | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def arrays(self) -> list[npt.NDArray[Any]]:
        return [self.tokens, self.lengths, self.prompts, *([] if self.weights is None else [self.weights])]

    def masses(self) -> Floats:
        """The weights of each row's completion tokens added up, (rows,)."""
        if self.weights is None:
            return (self.lengths - self.prompts).astype(np.float64)
        ends = np.cumsum(self.weights)
        before = np.where(self.starts > 0, ends[self.starts - 1], 0.0)
        return ends[self.starts + self.lengths - 1] - before


def encode(
    tokenizer: Any,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    ids: Sequence[str],
    limit: int,
    weights: Sequence[Sequence[float] | None] = (),
) -> Rows:
    """Conversations as token rows. `prompts`, `completions`: lists of messages; `ids` name rows in messages; `weights`:
    of each completion's messages, None or nothing: each 1. Raises `StageFailed` for a row of more than `limit` tokens, and
    for a template whose conversation does not begin with its own prompt."""
    asked = render_many(tokenizer, prompts)
    joined = [[*p, *_joined(c)] for p, c in zip(prompts, completions, strict=True)]
    whole = render_many(tokenizer, joined, reply=False)
    told = []
    for row, text, start, completion in zip(ids, whole, asked, completions, strict=True):
        if text.startswith(start):
            told.append(text[len(start) :])
        elif (ends := opened_thought(start)) and len(completion) == 1:
            said = neutralise(completion[0]["content"], special_tokens(tokenizer))
            told.append(said if ends in said else f"\n{ends}\n\n{said}")
        else:
            raise StageFailed(
                f"row {row}: the chat template does not begin a finished conversation with the text that asks for "
                f"the reply ({start[-40:]!r}), so prompt and completion cannot be told apart; use another template"
            )
    prompt_ids, reply_ids = _tokenise(tokenizer, asked), _tokenise(tokenizer, told)
    end = tokenizer.eos_token_id
    sequences = []
    for row, prompt, reply in zip(ids, prompt_ids, reply_ids, strict=True):
        finish = len(reply) - reply[::-1].index(end) if end in reply else None
        sequence = [*prompt, *(reply[:finish] if finish is not None else [*reply, end])]
        if len(sequence) > limit or not prompt:
            why = "an empty prompt" if not prompt else f"{len(sequence)} tokens; the model holds {limit}"
            raise StageFailed(f"row {row} has {why}; filter such rows, or raise max_position_embeddings")
        sequences.append(sequence)
    learned = None
    if any(given is not None for given in weights):
        rows = zip(prompt_ids, told, completions, weights, sequences, strict=True)
        learned = np.concatenate(
            [
                np.append(np.zeros(len(prompt)), _learned(tokenizer, text, messages, given, len(row) - len(prompt)))
                for prompt, text, messages, given, row in rows
            ]
        )
    lengths = np.array([len(s) for s in sequences], dtype=np.int64)
    return Rows(
        tokens=np.array([token for s in sequences for token in s], dtype=np.int64),
        starts=np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64) if len(lengths) else lengths,
        lengths=lengths,
        prompts=np.array([len(p) for p in prompt_ids], dtype=np.int64),
        weights=learned,
    )


def _joined(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Messages with neighbours of one role made one."""
    found: list[dict[str, str]] = []
    for message in messages:
        if found and found[-1]["role"] == message["role"]:
            found[-1] = {**found[-1], "content": found[-1]["content"] + message["content"]}
        else:
            found.append({"role": message["role"], "content": message["content"]})
    return found


def _learned(tokenizer: Any, text: str, messages: Sequence[Any], told: Sequence[float] | None, count: int) -> Floats:
    """The weights of the `count` tokens of a completion's `text`: those of the messages that they stand in. The end token
    belongs to the assistant's message before it; what a template writes between messages weighs nothing."""
    if told is None:
        return np.ones(count)
    specials, at, spans = special_tokens(tokenizer), 0, []
    for message, weight in zip(messages, told, strict=True):
        content = neutralise(message["content"], specials).strip()
        begin = text.index(content, at)
        at = begin + len(content)
        spans.append((begin, at, weight if message["role"] == "assistant" else 0.0))
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    found, end = np.zeros(count), tokenizer.eos_token_id
    tokens = [*zip(places["input_ids"], places["offset_mapping"], strict=True), (end, (len(text), len(text)))]
    for place, (token, (first, last)) in enumerate(tokens[:count]):
        inside = next((weight for begin, stop, weight in spans if begin < max(last, first + 1) and first < stop), None)
        if inside is None and token == end:
            inside = next((weight for _, stop, weight in reversed(spans) if stop <= first), 0.0)
        found[place] = inside or 0.0
    return found


def _tokenise(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"]) if texts else []
