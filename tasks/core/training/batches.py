"""What a training step is fed: a plan of which token rows each step takes, and groups of like length.

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
from tasks.core.training.encoding import Floats, Ints, Rows

Group = dict[str, npt.NDArray[Any]]

PASS_TOKENS = 16_384  # tokens with padding that one forward pass may hold, where nothing else is said
GROUP_ROWS = 24  # fewer rows than this are not worth a forward pass of their own
WEIGHTS = ("token_weights", "pair_weights", "row_weights", "point_weights")  # of a group, by what they weigh
GROUP_SHRINK = 0.8  # a row this much shorter than its group's longest begins a new group


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
