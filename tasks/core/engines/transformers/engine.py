"""The `transformers` engine: a Hugging Face causal language model in this process, on GPU if there is one.

Why not `model.generate`: it prefills every sample of a prompt anew, carries finished rows to the end of the
slowest, and copies the keys and values at every step. Here a call's rows (prompts x draws) are sorted by
prompt length and decoded at most `batch_size` side by side; a prompt is prefilled once for its draws, a
finished row leaves the batch at once, and waiting rows enter when so few are left that a step costs no
less with fewer (`tasks.core.engines.transformers.cache`). Equal prompts of one call are decoded once.

Each row has random numbers of its own (`tasks.core.engines.uniforms`), so a draw depends on the sampling seed,
the prompt's text and the draw's number alone, up to the last bits of floating point: those may differ with
the batch's shape, which can only show where a random number falls onto the edge between two tokens.

Where memory does not suffice, the batch is halved and the call repeated, a few times; then it fails.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tasks.core import memory
from tasks.core.engines import statistics, uniforms
from tasks.core.engines.contract import Completion, Sampling, Statistic
from tasks.core.engines.texts import Texts
from tasks.core.engines.transformers import cache
from tasks.core.engines.transformers.choices import Choices
from tasks.core.errors import BadInput, OutOfMemory, StageFailed
from tasks.core.models import folders, tokenizers, weights

log = logging.getLogger(__name__)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
REFILL_ROWS = 32  # on CPU, where more rows than these cost in proportion and unequal lengths waste attention
SCORE_NUMBERS = 1 << 26  # logits held at once by `score`
HALVINGS = 4  # of a batch for which memory does not suffice

Result = TypeVar("Result")


def load(
    folder: Path, precision: str, threads: int, batch_size: int, serving: Mapping[str, Any]
) -> "TransformersEngine":
    """The engine with the model and tokenizer of `folder` (safetensors; no code of the folder is run); an adapter is
    merged into its base in memory.

    Raises `BadInput` for an unknown precision or a folder that holds no such model, `OutOfMemory` for one that does not
    fit into memory.
    """
    if precision not in PRECISIONS:
        raise BadInput(f"engine.precision: given {precision!r}; allowed are {', '.join(PRECISIONS)}")
    if batch_size < 1 or threads < 1:
        raise BadInput(f"engine: given batch_size {batch_size} and threads {threads}; both must be 1 or more")
    if not folders.is_part(folder) and not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: no model there (no config.json); give a folder that save_pretrained wrote")
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    less = "" if precision == "bfloat16" else "engine.precision: bfloat16 halves it; or "
    advice = f"{less}end what else uses memory, or use a smaller model"
    try:
        tokenizer = tokenizers.plain_tokenizer(folder)
        with memory.told(f"{folder} does not fit into memory", advice):
            model = weights.load(folder, PRECISIONS[precision]).to(device).eval()
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{folder}: no model that transformers can load: {error}") from error
    return TransformersEngine(model, tokenizer, threads, batch_size)


class TransformersEngine:
    """A model in memory. See `tasks.core.engines.contract.Engine` for the contract."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, threads: int, batch_size: int
    ) -> None:
        self.model, self.tokenizer, self.threads, self.batch_size = model, tokenizer, threads, batch_size
        self.memory: cache.Rows | None = None
        self.tell_progress: Callable[[int], None] | None = None
        configured = getattr(model.generation_config, "eos_token_id", None)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        known: Any = model.get_input_embeddings()
        self.texts = Texts(tokenizer, configured, positions, known.num_embeddings)
        self.ends, self.positions = self.texts.ends, self.texts.positions

    def generate(self, prompts: Sequence[str], sampling: Sampling, first_draw: int = 0) -> list[list[Completion]]:
        """`sampling.n` completions per prompt, numbered from `first_draw`.

        Raises `BadInput` for a prompt that is empty or fills the model's positions, or for choices that the tokenizer
        does not tell apart, `StageFailed` if the model computes something that is no number. A row also ends, with `length`, where the positions end.
        """
        torch.set_num_threads(self.threads)
        unique = list(dict.fromkeys(prompts))
        tokens = self.texts.prompts(unique)
        count = 1 if sampling.temperature == 0 else sampling.n  # greedy draws are all the same
        keys = uniforms.row_keys(sampling.seed, unique, range(first_draw, first_draw + count))
        rows = [(index, draw) for index in _longest_first(tokens) for draw in range(count)]
        choices = Choices(self.texts, sampling.choices) if sampling.choices else None
        with torch.inference_mode():
            decoded, self.batch_size = self._halving(
                lambda size: self._decode(tokens, keys, rows, sampling, choices, size), self.batch_size
            )
        texts = self.texts.replies([new for new, _ in decoded])
        if choices is not None:
            texts = [choices.text(new) or text for (new, _), text in zip(decoded, texts, strict=True)]
        replies: dict[int, list[Completion]] = {index: [] for index in range(len(unique))}
        for (index, _), (new, logprob), text in zip(rows, decoded, texts, strict=True):
            reason = "stop" if self.texts.ended(new) else "length"
            replies[index].append(Completion(text, len(tokens[index]), len(new), round(logprob, 4) + 0.0, reason))
        position = {prompt: index for index, prompt in enumerate(unique)}
        return [replies[position[prompt]] * (sampling.n // count) for prompt in prompts]

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], statistic: Statistic = "logprob"
    ) -> list[list[float]]:
        """The statistic at each token of each response and at the end of text.

        Prompt and response are tokenized apart, as they are when a response is generated. Raises `BadInput`
        for texts that do not fit the model, `StageFailed` if it computes something that is no number.
        """
        torch.set_num_threads(self.threads)
        asked, joined = self.texts.pairs(prompts, responses)
        order = _longest_first(joined)
        scores: list[list[float]] = [[] for _ in joined]
        vocabulary = self.model.config.get_text_config().vocab_size
        budget = max(1, min(cache.PREFILL_TOKENS, SCORE_NUMBERS // vocabulary))

        def compute(budget: int) -> None:
            for run in cache.runs([len(joined[index]) for index in order], budget, len(order)):
                found = self._score_block(order[run], asked, joined, statistic)
                for index, row in zip(order[run], found, strict=True):
                    scores[index] = row
                if self.tell_progress:
                    self.tell_progress(sum(map(bool, scores)))

        with torch.inference_mode():
            self._halving(compute, budget)
        return scores

    def close(self) -> None:
        """Gives the memory back; the engine cannot be used afterwards."""
        del self.model, self.memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _halving(self, compute: Callable[[int], Result], size: int) -> tuple[Result, int]:
        """What `compute(size)` gives, and the size at which memory sufficed: the one given, or halved some times.

        Raises `OutOfMemory` if it never does."""
        reason: BaseException | None = None
        for smaller in dict.fromkeys(max(1, size >> halving) for halving in range(HALVINGS + 1)):
            if reason is not None:
                log.warning("engine: out of memory; going on with batches of %s instead of %s", smaller, size)
            try:
                return compute(smaller), smaller
            except (MemoryError, RuntimeError) as error:
                if not memory.is_short(error):
                    raise
                reason = error
                self.memory = None
                error.__traceback__ = None  # its frames hold what has to be freed
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        raise OutOfMemory(
            f"the engine ran out of memory with batches of {size} and of {smaller}; lower engine.batch_size, or use "
            f"shorter replies or a smaller model ({memory.reason(reason) if reason else ''})"
        )

    def _decode(
        self,
        tokens: list[list[int]],
        keys: uniforms.Keys,
        rows: list[tuple[int, int]],
        sampling: Sampling,
        choices: Choices | None,
        size: int,
    ) -> list[tuple[list[int], float]]:
        """New tokens and the sum of their log-probabilities for each of `rows` (prompt, draw), sorted by prompt."""
        size = min(size, len(rows))
        live = _Live(size, sampling.max_new_tokens)
        batch = cache.make(self.model, size, sampling.max_new_tokens, self.memory) if rows else None
        self.memory = None  # not lent on if this call fails: what is no number would spread
        few = size // 2 if self.model.device.type == "cuda" else min(size // 2, REFILL_ROWS)
        done: list[tuple[list[int], float]] = [([], 0.0)] * len(rows)
        waiting = 0
        while batch is not None and (live.count or waiting < len(rows)):
            start, free = live.count, size - live.count
            if waiting < len(rows) and start <= (few if batch.refills else 0):
                entering = rows[waiting : waiting + free]
                owners = np.array([index for index, _ in entering], dtype=np.int64)
                changes = np.diff(owners, prepend=-1) != 0  # a prompt's rows stand together
                prefills = [tokens[index] for index in owners[changes]]
                logits = batch.enter(prefills, np.cumsum(changes) - 1)
                room = np.array([self.positions - len(tokens[index]) for index in owners])
                live.enter(
                    np.arange(waiting, waiting + len(entering)),
                    np.array([keys[index, draw] for index, draw in entering], dtype=np.uint64),
                    np.minimum(room, sampling.max_new_tokens),
                )
                waiting += len(entering)
            else:
                start = 0
                logits = batch.step(torch.from_numpy(live.last[: live.count]).to(self.model.device))
            finished = self._extend(live, start, logits, sampling, choices)
            if finished.any():
                for slot in np.flatnonzero(finished):
                    new = live.new[slot, : live.length[slot]].tolist()
                    done[live.row[slot]] = (new, float(live.logprob[slot]))
                live.keep(batch.leave(finished))
            if self.tell_progress:
                self.tell_progress(waiting - live.count)
        self.memory = batch
        return done

    def _extend(
        self, live: "_Live", start: int, logits: torch.Tensor, sampling: Sampling, choices: Choices | None
    ) -> NDArray[np.bool_]:
        """Gives every row from slot `start` its next token; which of all rows are finished."""
        rows = slice(start, live.count)
        logits = logits.float()
        uniform = torch.from_numpy(uniforms.uniforms(live.key[rows], live.length[rows])).to(logits.device)
        if choices is not None:
            logits = choices.among(logits, live.node[rows])
        tokens = uniforms.pick(logits, uniform, sampling.temperature, sampling.top_p)
        logprobs = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        picked, sums = tokens.cpu().numpy(), logprobs.cpu().numpy()
        if not np.isfinite(sums).all():
            raise StageFailed(
                "the model's logits are not finite numbers (NaN or infinity): its weights are broken, "
                "which a learning rate too high often does; train it again or use another model"
            )
        if choices is not None:
            live.node[rows] = choices.follow(live.node[rows], picked)
        live.new[np.arange(start, live.count), live.length[rows]] = picked
        live.last[rows] = picked
        live.length[rows] += 1
        live.logprob[rows] += sums
        finished = np.zeros(live.count, dtype=np.bool_)
        finished[rows] = np.isin(picked, self.ends) | (live.length[rows] >= live.limit[rows])
        return finished

    def _score_block(
        self, block: list[int], asked: list[list[int]], joined: list[list[int]], statistic: Statistic
    ) -> list[list[float]]:
        ids = cache.pad([joined[index] for index in block], self.model.device)
        first = min(len(asked[index]) for index in block)
        logits = self.model(
            input_ids=ids[:, :-1], use_cache=False, logits_to_keep=ids.shape[1] - first
        ).logits.float()  # right padding stays unseen by what precedes it
        told = statistics.at(logits, ids[:, first:], statistic)
        rows = []
        for index, row in zip(block, told.cpu().numpy(), strict=True):
            values = row[len(asked[index]) - first : len(joined[index]) - first]
            if not np.isfinite(values).all():
                raise StageFailed("the model's log-probabilities are not finite numbers: its weights are broken")
            rows.append([round(float(value), 4) + 0.0 for value in values])
        return rows


class _Live:
    """What the loop knows of the rows in the batch, by slot; the first `count` are in use."""

    def __init__(self, size: int, new_tokens: int) -> None:
        self.count = 0
        self.row = np.zeros(size, dtype=np.int64)  # index into the call's rows
        self.key = np.zeros(size, dtype=np.uint64)
        self.limit = np.zeros(size, dtype=np.int64)
        self.length = np.zeros(size, dtype=np.int64)  # new tokens so far
        self.node = np.zeros(size, dtype=np.int64)  # where the reply stands among the choices
        self.last = np.zeros(size, dtype=np.int64)
        self.logprob = np.zeros(size, dtype=np.float64)
        self.new = np.zeros((size, new_tokens), dtype=np.int64)

    def enter(self, row: NDArray[np.int64], key: uniforms.Keys, limit: NDArray[np.int64]) -> None:
        slots = slice(self.count, self.count + len(row))
        self.row[slots], self.key[slots], self.limit[slots] = row, key, limit
        self.length[slots] = 0
        self.node[slots] = 0
        self.logprob[slots] = 0
        self.count += len(row)

    def keep(self, order: NDArray[np.int64]) -> None:
        for name in ("row", "key", "limit", "length", "node", "last", "logprob", "new"):
            values = getattr(self, name)
            values[: len(order)] = values[order]
        self.count = len(order)


def _longest_first(tokens: Sequence[Sequence[int]]) -> list[int]:
    return sorted(range(len(tokens)), key=lambda index: (-len(tokens[index]), index))
