"""The rows being decoded and their keys and values: two ways to keep them.

`Slots` is for models whose layers all attend to everything before (Llama, Qwen3, SmolLM3, ...). It owns one
block of memory `[slots, heads, columns, width]` per layer, every row left-aligned in its slot. A step writes
one column in place instead of copying the past; a row that leaves is overwritten by the last row, so that
leaving costs one row's copy; waiting rows can enter at any time. While all rows are equally long no
attention mask is used; otherwise one mask per step is shared by all layers.

`Padded` is for the rest (sliding windows, recurrent layers, relative position biases): the model's own cache
with left padding. Rows leave, but new ones enter only when it is empty.

Both: `enter(prompts, owners)` prefills each prompt once and returns logits for the rows, `owners[r]` being
the index of row r's prompt; `step(tokens)` feeds one token per row; `leave(finished)` drops rows and returns
the order of those that stay. Logits are `[rows, vocabulary]` at the last position only.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from tasks.core.errors import BadInput

Indices = NDArray[np.int64]
PREFILL_TOKENS = 16384  # per forward pass: bounds the memory of the activations
PREFILL_LENGTHS = 4  # different prompt lengths per forward pass: bounds padding and the logits computed
COLUMNS = 64  # room for new tokens at first, if that many may come; it grows by half when it is used up


class Rows(Protocol):
    """What the decoding loop needs of either."""

    refills: bool

    def enter(self, prompts: Sequence[Sequence[int]], owners: Indices) -> Tensor: ...

    def step(self, tokens: Tensor) -> Tensor: ...

    def leave(self, finished: NDArray[np.bool_]) -> Indices: ...


def make(model: PreTrainedModel, size: int, new_tokens: int, old: Rows | None = None) -> Rows:
    """Room for `size` rows of up to `new_tokens` new tokens, in the way that suits the model.

    `old`, the rows of an earlier call that ended well, lends its memory if it is large enough.
    """
    if isinstance(old, Slots) and old.size >= size:
        old.clear(new_tokens)
        return old
    return Slots(model, size, new_tokens) if slotted(model) else Padded(model)


def slotted(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all tokens before, by dot products alone."""
    layers = DynamicCache(config=model.config).layers
    known = model._supports_attention_backend and model.config._attn_implementation == "sdpa"
    return bool(layers) and known and all(type(layer) is DynamicLayer for layer in layers)


def runs(lengths: Sequence[int], budget: int, kinds: int) -> Iterator[slice]:
    """Cuts a sequence sorted by descending length where a padded block would exceed `budget` tokens or hold
    more than `kinds` different lengths."""
    start, seen = 0, 0
    for index, length in enumerate(lengths):
        new = index == start or length != lengths[index - 1]
        if index > start and ((index + 1 - start) * lengths[start] > budget or seen + new > kinds):
            yield slice(start, index)
            start, seen, new = index, 0, True
        seen += new
    if start < len(lengths):
        yield slice(start, len(lengths))


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """`[rows, longest]`, padded on the right with 0."""
    block = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for index, row in enumerate(rows):
        block[index, : len(row)] = row
    return torch.from_numpy(block).to(device)


class _Cursor:
    """Where the next token of each row goes; shared by the layers."""

    def __init__(self) -> None:
        self.lengths: Indices = np.zeros(0, dtype=np.int64)
        self.longest = 0
        self.row: Tensor | None = None  # with `column`, set only while rows differ in length
        self.column: Tensor | None = None


class _SlotLayer(CacheLayerMixin):
    """One layer's block of memory."""

    def __init__(self, cursor: _Cursor, size: int, spare: int) -> None:
        super().__init__()
        self.cursor, self.size, self.spare = cursor, size, spare
        self.blocks: list[Tensor] = []  # keys and values, each `[slots, heads, columns, width]`

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.blocks = [self._block(states, key_states.shape[2] + self.spare) for states in (key_states, value_states)]
        self.is_initialized = True

    def _block(self, like: Tensor, columns: int) -> Tensor:
        _, heads, _, width = like.shape
        return like.new_zeros((self.size, heads, columns, width))

    def reserve(self, columns: int) -> None:
        """Room for at least `columns` tokens a row."""
        have = self.blocks[0].shape[2]
        if columns > have:
            for index, block in enumerate(self.blocks):
                self.blocks[index] = self._block(block, max(columns, have * 3 // 2))
                self.blocks[index][:, :, :have] = block

    def fill(self, start: int, owners: Tensor, key_states: Tensor, value_states: Tensor) -> None:
        """Writes prompts' keys and values `[prompts, heads, length, width]` into the slots from `start`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = key_states.shape[2]
        self.reserve(length + self.spare)
        for block, states in zip(self.blocks, (key_states, value_states), strict=True):
            block[start : start + len(owners), :, :length] = states[owners]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows, end = key_states.shape[0], self.cursor.longest + 1
        self.reserve(end)
        for block, states in zip(self.blocks, (key_states, value_states), strict=True):
            if self.cursor.column is None:
                block[:rows, :, end - 1] = states[:, :, 0]
            else:
                block[self.cursor.row, :, self.cursor.column] = states[:, :, 0]
        keys, values = self.blocks
        return keys[:rows, :, :end], values[:rows, :, :end]

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copies the rows `source` over the rows `target`."""
        for block in self.blocks:
            block[target, :, : self.cursor.longest] = block[source, :, : self.cursor.longest]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cursor.longest + query_length, 0

    def get_seq_length(self) -> int:
        return self.cursor.longest

    def get_max_length(self) -> int:
        return -1


class Slots:
    """Rows of unequal length side by side in preallocated memory, for full attention."""

    refills = True

    def __init__(self, model: PreTrainedModel, size: int, new_tokens: int) -> None:
        self.model, self.device, self.size = model, model.device, size
        self.cursor = _Cursor()
        count = len(DynamicCache(config=model.config).layers)
        self.layers = [_SlotLayer(self.cursor, size, min(new_tokens, COLUMNS)) for _ in range(count)]
        self.cache = Cache(layers=list(self.layers))

    def clear(self, new_tokens: int) -> None:
        """Forgets all rows; the next may have `new_tokens` new tokens."""
        self._set_lengths(self.cursor.lengths[:0])
        for layer in self.layers:
            layer.spare = min(new_tokens, COLUMNS)

    def enter(self, prompts: Sequence[Sequence[int]], owners: Indices) -> Tensor:
        logits = []
        for run in runs([len(prompt) for prompt in prompts], PREFILL_TOKENS, PREFILL_LENGTHS):
            lengths = np.array([len(prompt) for prompt in prompts[run]], dtype=np.int64)
            ends, which = np.unique(lengths - 1, return_inverse=True)
            cache: Any = DynamicCache(config=self.model.config)
            output = self.model(  # padding on the right stays unseen: attention is causal, what it leaves is masked
                input_ids=pad(prompts[run], self.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=torch.from_numpy(ends).to(self.device),
            )
            local = owners[(owners >= run.start) & (owners < run.stop)] - run.start
            index = torch.from_numpy(local).to(self.device)
            start = len(self.cursor.lengths)
            for layer, filled in zip(self.layers, cache.layers, strict=True):
                layer.fill(start, index, filled.keys, filled.values)
            logits.append(output.logits[index, torch.from_numpy(which[local]).to(self.device)])
            self._set_lengths(np.concatenate([self.cursor.lengths, lengths[local]]))
        return torch.cat(logits)

    def step(self, tokens: Tensor) -> Tensor:
        lengths = self.cursor.lengths
        extra: dict[str, Tensor] = {}
        if self.cursor.column is not None:
            seen = torch.arange(self.cursor.longest + 1, device=self.device) <= self.cursor.column[:, None]
            mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
            mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
            extra = {"attention_mask": mask[:, None, None], "position_ids": self.cursor.column[:, None]}
        output = self.model(
            input_ids=tokens[:, None], past_key_values=self.cache, use_cache=True, logits_to_keep=1, **extra
        )
        self._set_lengths(lengths + 1)
        return output.logits[:, -1]

    def leave(self, finished: NDArray[np.bool_]) -> Indices:
        order = np.arange(len(finished))
        kept = int((~finished).sum())
        target = np.flatnonzero(finished[:kept])
        source = kept + np.flatnonzero(~finished[kept:])
        if len(target):
            moves = torch.from_numpy(source).to(self.device), torch.from_numpy(target).to(self.device)
            for layer in self.layers:
                layer.move(*moves)
            order[target] = source
        order = order[:kept]
        self._set_lengths(self.cursor.lengths[order])
        return order

    def _set_lengths(self, lengths: Indices) -> None:
        cursor = self.cursor
        cursor.lengths = lengths
        cursor.longest = int(lengths.max(initial=0))
        if len(lengths) and int(lengths.min()) < cursor.longest:
            cursor.column = torch.from_numpy(lengths).to(self.device)
            cursor.row = torch.arange(len(lengths), device=self.device)
        else:
            cursor.row = cursor.column = None


class Padded:
    """Rows padded on the left in the model's own cache, for models with other kinds of layers."""

    refills = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.device = model, model.device
        self.positional = "position_ids" in inspect.signature(model.forward).parameters
        self.cache: Any = None
        self.mask = torch.zeros(0)

    def enter(self, prompts: Sequence[Sequence[int]], owners: Indices) -> Tensor:
        tokens = pad([prompt[::-1] for prompt in prompts], self.device).flip(-1)
        self.mask = pad([[1] * len(prompt) for prompt in prompts], self.device).flip(-1)
        self.cache = DynamicCache(config=self.model.config)
        index = torch.from_numpy(owners).to(self.device)
        logits = self._forward(tokens)[index]
        self._select(index)
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(tokens), 1))], -1)
        return self._forward(tokens[:, None])

    def leave(self, finished: NDArray[np.bool_]) -> Indices:
        order = np.flatnonzero(~finished)
        self._select(torch.from_numpy(order).to(self.device))
        return order

    def _forward(self, tokens: Tensor) -> Tensor:
        extra = {}
        if self.positional:
            extra["position_ids"] = (self.mask.cumsum(-1) - 1).clamp_(min=0)[:, -tokens.shape[1] :]
        output = self.model(
            input_ids=tokens, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **extra
        )
        return output.logits[:, -1]

    def _select(self, index: Tensor) -> None:
        self.mask = self.mask[index]
        if not all(hasattr(layer, "batch_select_indices") for layer in self.cache.layers):
            raise BadInput(
                f"a model of type {self.model.config.model_type} keeps a state that the engine transformers cannot divide "
                "between rows; use engine.name: vllm, or a model with attention alone"
            )
        if len(index):
            self.cache.batch_select_indices(index)
