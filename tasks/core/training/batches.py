"""What a training step is fed: token rows, the plan of which rows each step takes, and groups of like length.

`encode` turns (prompt, completion) conversations into token rows. The prompt is tokenised as it is at
generation time, the completion apart from it and up to its end token, so that the model is trained on
exactly the tokens that it will be asked to produce. Only completion tokens are targets. Messages of a completion may have
weights: one of weight 0 is read and not learned. Neighbours of one role are one message.
Where the prompt opens a thought that the template leaves out of finished conversations, the completion is the reply
as it was generated; a reply without a thought gets an empty one.

`plan` says which rows each step takes: from every part of the data as many as the mixture asks for. Each
part walks through its own shuffled epochs, so a part with few rows repeats and no row is drawn twice
before all were drawn once.

`groups` cuts the rows of one step by length, longest first: a forward pass over a group wastes little on
padding and is bounded in tokens; the gradients of a step's passes add up. `packs` lays rows of any length end to end
instead: no padding at all, each row with positions of its own from 0, by which attention keeps the rows apart.
`SftBatches`, `PairBatches` and `RatedBatches` make the groups of every step, all of them or one process's share. Numpy only; torch is
the trainers' business.
"""

import hashlib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.core.errors import StageFailed
from tasks.core.models.chat import opened_thought
from tasks.core.models.tokenizers import neutralise, render_many, special_tokens

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Group = dict[str, npt.NDArray[Any]]

PASS_TOKENS = 16_384  # tokens with padding that one forward pass may hold, where nothing else is said
GROUP_ROWS = 24  # fewer rows than this are not worth a forward pass of their own
WEIGHTS = ("token_weights", "pair_weights", "row_weights", "point_weights")  # of a group, by what they weigh
GROUP_SHRINK = 0.8  # a row this much shorter than its group's longest begins a new group


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


def plan(parts: Sequence[str], mixture: Mapping[str, int], steps: int, seed: int, what: str) -> Ints:
    """Row numbers of every step, (steps, rows of a step). `parts`: the part of every row. Raises `StageFailed`
    for a part that is asked for and has no rows; `what` names the option in the message."""
    columns = []
    have = np.array(parts, dtype=object)
    for part, wanted in sorted(mixture.items()):
        if wanted == 0:
            continue
        rows = np.flatnonzero(have == part)
        if not len(rows):
            raise StageFailed(
                f"{what} asks for {wanted} rows of '{part}' a step, and the data has none"
                f" (it has: {', '.join(sorted(set(parts))) or 'nothing'})"
            )
        rng = np.random.default_rng([seed, zlib.crc32(part.encode())])
        epochs = [rng.permutation(rows) for _ in range(-(-steps * wanted // len(rows)))]
        columns.append(np.concatenate(epochs)[: steps * wanted].reshape(steps, wanted))
    return np.concatenate(columns, axis=1) if columns else np.empty((steps, 0), dtype=np.int64)


def groups(lengths: Ints, limit: int = PASS_TOKENS) -> list[Ints]:
    """Positions of `lengths` cut into groups of like length, longest first, of at most `limit` tokens (or one row).
    Deterministic."""
    order = np.argsort(-lengths, kind="stable")
    found: list[Ints] = []
    begin = 0
    for i in range(1, len(order) + 1):
        longest = int(lengths[order[begin]])
        full = i < len(order) and (i - begin + 1) * longest > limit
        shorter = i < len(order) and i - begin >= GROUP_ROWS and lengths[order[i]] < GROUP_SHRINK * longest
        if i == len(order) or full or shorter:
            found.append(order[begin:i])
            begin = i
    return found


def packs(lengths: Ints, limit: int) -> list[Ints]:
    """Positions of `lengths` put into packs of at most `limit` tokens (or one row): first fit, longest first."""
    found: list[list[int]] = []
    room: list[int] = []
    for i in np.argsort(-lengths, kind="stable"):
        fits = next((number for number, free in enumerate(room) if free >= lengths[i]), None)
        if fits is None:
            found.append([])
            room.append(limit)
            fits = len(found) - 1
        found[fits].append(int(i))
        room[fits] -= int(lengths[i])
    return [np.array(members, dtype=np.int64) for members in found]


def gather(rows: Rows, numbers: Ints) -> Group:
    """Rows as one array (n, L) padded on the right, and for the m completion tokens: the flat `positions` whose
    output predicts them, the `targets`, and in `owners` the row they belong to."""
    lengths, starts = rows.lengths[numbers], rows.starts[numbers]
    column = np.arange(int(lengths.max()))
    inside = column < lengths[:, None]
    tokens = np.where(inside, rows.tokens[np.where(inside, starts[:, None] + column, 0)], 0)
    owners, places = np.nonzero(inside & (column >= rows.prompts[numbers][:, None]))
    group = {
        "input_ids": tokens,
        "positions": owners * len(column) + places - 1,
        "targets": tokens[owners, places],
        "owners": owners,
    }
    return group if rows.weights is None else group | {"shares": rows.weights[starts[owners] + places]}


def pack(rows: Rows, numbers: Ints) -> Group:
    """Rows end to end as one sequence (1, L), as `gather` gives them, and their `position_ids` (1, L)."""
    lengths, prompts = rows.lengths[numbers], rows.prompts[numbers]
    starts = np.cumsum(lengths) - lengths
    owners = np.repeat(np.arange(len(numbers)), lengths)
    places = np.arange(int(lengths.sum())) - starts[owners]
    tokens = rows.tokens[rows.starts[numbers][owners] + places]
    targets = np.flatnonzero(places >= prompts[owners])
    shares = {} if rows.weights is None else {"shares": rows.weights[rows.starts[numbers][owners] + places][targets]}
    return shares | {
        "input_ids": tokens[None],
        "position_ids": places[None],
        "positions": targets - 1,
        "targets": tokens[targets],
        "owners": owners[targets],
    }


def _share(lengths: Ints, rank: int, world: int) -> Ints:
    """The positions of `lengths` that process `rank` of `world` takes: every `world`-th, by length."""
    return np.argsort(-lengths, kind="stable")[rank::world] if world > 1 else np.arange(len(lengths))


class _Passes(ABC):
    """How the rows of a step are cut into forward passes, for one process or several."""

    def step(self, index: int, rank: int = 0, world: int = 1) -> list[Group]:
        """The groups that process `rank` of `world` runs in a step. All processes run equally many, because they wait
        for each other; one that has fewer adds passes over one row that teach nothing."""
        own = self.cuts(index, rank, world)
        made = [self.group(index, members) for members in own]
        if world > 1:
            most = max(len(self.cuts(index, other, world)) for other in range(world))
            made += [self.idle(index)] * (most - len(own))
        return made

    def idle(self, index: int) -> Group:
        """A group of one row that teaches nothing."""
        group = self.group(index, np.zeros(1, dtype=np.int64))
        return group | {name: np.zeros_like(group[name]) for name in WEIGHTS if name in group}

    @abstractmethod
    def cuts(self, index: int, rank: int, world: int) -> list[Ints]:
        """Places in the step's plan that go through the model together."""

    @abstractmethod
    def group(self, index: int, members: Ints) -> Group:
        """What the trainer is fed for these places."""


@dataclass(frozen=True)
class SftBatches(_Passes):
    """SFT rows, their weights (rows,), and the rows of every step in `plan` (steps, rows of a step).
    `scale` multiplies the loss; a pass has at most `limit` tokens; `packed`: rows end to end."""

    rows: Rows
    weights: Floats
    plan: Ints
    scale: float
    limit: int = PASS_TOKENS
    packed: bool = False

    def cuts(self, index: int, rank: int, world: int) -> list[Ints]:
        lengths = self.rows.lengths[self.plan[index]]
        own = _share(lengths, rank, world)
        cut = packs if self.packed else groups
        return [own[members] for members in cut(lengths[own], self.limit)]

    def group(self, index: int, members: Ints) -> Group:
        """`token_weights` (m,) are such that their products with the cross-entropies add up to the step's loss."""
        chosen = self.plan[index]
        total = float((self.weights[chosen] * self.rows.masses()[chosen]).sum())
        share = self.scale / total if total > 0 else 0.0
        group = (pack if self.packed else gather)(self.rows, chosen[members])
        weights = (self.weights[chosen[members]] * share)[group["owners"]]
        if "shares" in group:
            weights = weights * group.pop("shares")
        return group | {"token_weights": weights.astype(np.float32)}

    def step_tokens(self) -> Ints:
        """Tokens without padding that each step reads, (steps,)."""
        return self.rows.lengths[self.plan].sum(axis=1)

    def digest(self) -> str:
        """Of everything that decides what is learnt."""
        return _digest([*self.rows.arrays(), self.weights, self.plan, np.array(self.scale)])


@dataclass(frozen=True)
class PairBatches(_Passes):
    """P pairs: row i is a chosen sequence, row i + P the rejected one. `weights`, `smoothing`, `margins`: (P,);
    `reference`: (2P,) summed log-probabilities of the completions in nats; `plan`: (steps, pairs of a step). A pass has
    at most `limit` tokens of chosen sequences, and as many of rejected ones."""

    rows: Rows
    weights: Floats
    smoothing: Floats
    margins: Floats
    reference: Floats
    plan: Ints
    limit: int = PASS_TOKENS

    def without_reference(self) -> "PairBatches":
        """The same without numbers of the reference model, which on a GPU are not the same from run to run."""
        return replace(self, reference=np.zeros(0))

    def cuts(self, index: int, rank: int, world: int) -> list[Ints]:
        chosen = self.plan[index]
        longer = np.maximum(self.rows.lengths[chosen], self.rows.lengths[chosen + len(self.weights)])
        own = _share(longer, rank, world)
        return [own[members] for members in groups(longer[own], self.limit)]

    def group(self, index: int, members: Ints) -> Group:
        """Chosen rows first. `pair_weights` times the pairs' losses add up to the step's loss."""
        chosen = self.plan[index]
        both = np.concatenate([chosen[members], chosen[members] + len(self.weights)])
        extra = {
            "pair_weights": self.weights[chosen[members]] / len(chosen),
            "smoothing": self.smoothing[chosen[members]],
            "margins": self.margins[chosen[members]],
            "reference": self.reference[both],
        }
        return gather(self.rows, both) | {key: value.astype(np.float32) for key, value in extra.items()}

    def step_tokens(self) -> Ints:
        """Tokens without padding that each step reads, (steps,)."""
        pairs = self.rows.lengths[: len(self.weights)] + self.rows.lengths[len(self.weights) :]
        return pairs[self.plan].sum(axis=1)

    def digest(self) -> str:
        """Of everything that decides what is learnt."""
        return _digest([*self.rows.arrays(), self.weights, self.smoothing, self.margins, self.reference, self.plan])


@dataclass(frozen=True)
class RatedBatches(_Passes):
    """R rows that are good or bad, and their weights, (R,). `reference`: (R,) summed log-probabilities of the completions in
    nats; `plan`: (steps, B). `strangers`: steps x B rows, each the prompt of a row of the step with the completion of
    the row before it in the plan, from which the reference point is estimated; `strange`: their `reference`."""

    rows: Rows
    labels: npt.NDArray[np.bool_]
    weights: Floats
    reference: Floats
    plan: Ints
    strangers: Rows
    strange: Floats
    limit: int = PASS_TOKENS

    def without_reference(self) -> "RatedBatches":
        """The same without numbers of the reference model, which on a GPU are not the same from run to run."""
        return replace(self, reference=np.zeros(0), strange=np.zeros(0))

    def step(self, index: int, rank: int = 0, world: int = 1) -> list[Group]:
        """First the passes over strangers, then those over rows."""
        points = _Points(self.strangers, self.strange, np.arange(self.plan.size).reshape(self.plan.shape), self.limit)
        return points.step(index, rank, world) + super().step(index, rank, world)

    def cuts(self, index: int, rank: int, world: int) -> list[Ints]:
        lengths = self.rows.lengths[self.plan[index]]
        own = _share(lengths, rank, world)
        return [own[members] for members in groups(lengths[own], self.limit)]

    def group(self, index: int, members: Ints) -> Group:
        """`row_weights` times the rows' losses add up to the step's loss."""
        chosen = self.plan[index]
        rows = chosen[members]
        extra = {"row_weights": self.weights[rows] / len(chosen), "reference": self.reference[rows]}
        floats = {key: value.astype(np.float32) for key, value in extra.items()}
        return gather(self.rows, rows) | floats | {"labels": self.labels[rows]}

    def step_tokens(self) -> Ints:
        """Tokens without padding that each step reads, (steps,)."""
        strange = self.strangers.lengths.reshape(self.plan.shape)
        return self.rows.lengths[self.plan].sum(axis=1) + strange.sum(axis=1)

    def digest(self) -> str:
        """Of everything that decides what is learnt."""
        arrays = [*self.rows.arrays(), self.labels, self.weights, self.reference, self.plan]
        return _digest([*arrays, *self.strangers.arrays(), self.strange])


@dataclass(frozen=True)
class _Points(_Passes):
    """Rows from which the reference point of each step is estimated; they teach nothing."""

    rows: Rows
    reference: Floats
    plan: Ints
    limit: int

    def cuts(self, index: int, rank: int, world: int) -> list[Ints]:
        lengths = self.rows.lengths[self.plan[index]]
        own = _share(lengths, rank, world)
        return [own[members] for members in groups(lengths[own], self.limit)]

    def group(self, index: int, members: Ints) -> Group:
        """`point_weights` times the rows' log-ratios add up to the reference point."""
        rows = self.plan[index][members]
        weights = np.full(len(rows), 1 / self.plan.shape[1], dtype=np.float32)
        return gather(self.rows, rows) | {
            "point_weights": weights,
            "reference": self.reference[rows].astype(np.float32),
        }


Batches = SftBatches | PairBatches | RatedBatches


def _digest(arrays: Sequence[npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]
