"""What a run will take, told before it: `python -m flows.check --estimate`.

Requests and completion tokens are upper bounds: every block says how many it puts at most (`tasks.core.asking.demand`), no two
of them alike, nothing malformed, everything refused. `expected` takes what can be known off them: conversations that
repeat are asked once, and how many of the factored critic's questions repeat is told from the seed corpus's own answers;
replies are as long as the corpus's, or as the trial's where the model is there already. Training reads a known number of
rows.

Prompts, answers and tokens come from the task's data: the artifacts where `prepare` is current, else what `prepare`
would write, made in memory. Seconds come from a trial on this machine (`flows.estimate.trial`, `flows.estimate.speed`); where
it did not get that far, or the engine is a server somewhere else, they are unknown. They are the engine's and the
trainer's: starting processes, importing libraries and reading files come on top. The least and the most differ by how
long the longest reply of a call is, and by what the timed steps of a training differed.

Bytes: models from the files' sizes (a LoRA adapter alone where it is kept alone); tables and stored replies by rows and
tokens. DVC's cache holds every artifact a second time, unless the file system can share the blocks (reflinks).
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.estimate import demands, trial
from flows.estimate.demands import Stage, Task
from flows.estimate.speed import Call, Training
from flows.history import lock
from flows.params import schema, sections
from flows.params.schema import Prices
from tasks.blocks import train
from tasks.core.asking.demand import Demand
from tasks.core.block import validate
from tasks.core.catalog import ARTIFACTS, BASE
from tasks.core.errors import BadInput
from tasks.core.family import Messages
from tasks.core.models import folders
from tasks.core.models.pointer import Pointer
from tasks.core.training.options import OPTIONS, AnchoredOptions, Mixed

TEXTS = 5000  # on which the tokenizer of a random model is trained, at most
ROW_BYTES = 5  # of a row of Parquet, for ids and numbers, compressed
TOKEN_BYTES = 1.5  # of a token of text, compressed; a row of the default's tables takes 9 to 57 bytes
CHARACTERS = 4  # of a token, where there is no tokenizer


@dataclass
class Need:
    """What one stage asks, trains and writes. `at_most`: requests, prompt tokens, completion tokens. `seconds` of engine
    or trainer: least and most, None unknown."""

    stage: str
    iteration: str | None
    runs: bool
    requests: int = 0
    prompt_tokens: float = 0
    tokens: float = 0
    expected_requests: float = 0
    expected_prompt_tokens: float = 0
    expected_tokens: float = 0
    training_rows: int = 0
    training_tokens: float = 0
    engine_seconds: tuple[float, float] | None = (0.0, 0.0)
    training_seconds: tuple[float, float] | None = (0.0, 0.0)
    model_bytes: float | None = 0
    table_bytes: float = 0
    reply_bytes: float = 0

    @property
    def counts_for(self) -> str | None:
        return lock.counts_for(self.stage, self.iteration)

    def cost(self, prices: Prices, upper: bool = True) -> float | None:
        """Cost of the upper bound, or of what is expected; None where a priced duration is unknown."""
        tokens = (self.prompt_tokens, self.tokens) if upper else (self.expected_prompt_tokens, self.expected_tokens)
        cost = (tokens[0] * prices.prompt_tokens + tokens[1] * prices.completion_tokens) / 1e6
        for price, seconds in (
            (prices.engine_hours, self.engine_seconds),
            (prices.training_hours, self.training_seconds),
        ):
            if price and seconds is None:
                return None
            cost += price * (seconds[1] if seconds else 0.0) / 3600
        return cost


@dataclass
class Measured:
    """What the trial found. Without a tokenizer, tokens are characters divided by four."""

    bytes: int | None = None
    parameters: int | None = None
    adapter_bytes: int | None = None
    prompts: dict[str, float] = field(default_factory=dict)  # kind -> tokens
    rows: dict[str, float] = field(default_factory=dict)  # part -> tokens of prompt and reply
    replies: dict[str, float] = field(default_factory=dict)  # part -> tokens
    longest: dict[str, float] = field(default_factory=dict)  # part -> tokens of the longest reply
    calls: list[Call] = field(default_factory=list)
    training: dict[str, Training] = field(default_factory=dict)  # by `_named`
    load: float = 0.0  # of the machine before measuring, a core
    gpus: int = 0  # that the trial saw; it measures on one
    problem: str | None = None  # why the trial did not find everything
    real: bool = False  # whether the model is the one that will run, and no random one


@dataclass(frozen=True)
class Estimate:
    """Every stage's need, those that would not run too; what was measured, and in how many seconds at most."""

    needs: list[Need]
    measured: Measured
    prices: Prices
    everything: bool
    seconds: float

    @property
    def wanted(self) -> list[Need]:
        return [need for need in self.needs if need.runs or self.everything]


def estimate(
    root: Path, params: Mapping[str, Any], stale: Collection[str], everything: bool, seconds: float
) -> Estimate:
    """What the stages take that are `stale` (`flows.run.graph.stale`), with `everything` what all of them take. `seconds`: how
    long measuring may take, 0 for not at all. Raises `BadInput`."""
    stages: list[Stage] = [(s, k) for s in schema.STAGES for k in sections.stage_keys(params, s)]
    if not (stale or everything):
        seconds = 0
    given = demands.task(root, params, "prepare" not in stale)
    questions = demands.count_questions(given.family, given.answers)
    asked = demands.demands(params, given.evaluated, questions.most)
    trained = {stage: _trainings(params, *stage) for stage in stages if stage[0] in ("base", "train")}
    runs = {stage: name_of(stage) in stale for stage in stages}
    measured = _measured(root, params, given, asked, trained, "base" not in stale, seconds)
    needs = []
    for stage in stages:
        need = Need(*stage, runs[stage])
        for demand in asked.get(stage, []):
            repeat = demand.kind == "question"
            expected = questions.expected(demand.requests) if repeat else float(demand.requests)
            _add(need, demand, expected, measured)
        _add_training(need, trained.get(stage, []), measured)
        need.table_bytes = _table_bytes(params, stage, given, asked, measured)
        needs.append(need)
    needs.sort(key=lambda need: sections.number(need.counts_for) if need.counts_for else float("inf"))
    return Estimate(needs, measured, validate(Prices, params["prices"], "prices"), everything, seconds)


def name_of(stage: Stage) -> str:
    """As DVC calls it: prepare, sample@i01."""
    return f"{stage[0]}@{stage[1]}" if stage[1] else stage[0]


def _trainings(params: Mapping[str, Any], stage: str, iteration: str | None) -> list[Mixed]:
    if stage == "base":
        return [] if params["base"]["pretrained"] else [sections.options(params, stage, iteration).sft]
    return [bound.options for bound in sections.options(params, stage, iteration)]


def _mixture(options: Mixed) -> dict[str, int]:
    """Rows of every part in a step; a pair, and a rated row, is two rows of the iteration's own."""
    if isinstance(options, AnchoredOptions):
        return {"own": 2 * sum(options.mixture.values())} | options.replay
    return options.mixture


def _measured(
    root: Path,
    params: Mapping[str, Any],
    given: Task,
    asked: Mapping[Stage, list[Demand]],
    trained: Mapping[Stage, list[Mixed]],
    based: bool,
    seconds: float,
) -> Measured:
    """What the trial finds, and without it, tokens by characters."""
    everything = [demand for several in asked.values() for demand in several]
    kinds = demands.conversations(given, everything)
    longest = max((demand.longest for demand in everything if demand.kind == "answer"), default=1)
    trainings = [o for several in trained.values() for o in several]
    lora = next((o.lora for stage, several in trained.items() if stage[0] == "train" for o in several), None)
    parts = {"own": 1, **{part: n for options in trainings for part, n in _mixture(options).items()}}
    rows = demands.examples(given, parts, longest)
    found = Measured(
        prompts={kind: _characters(several) / CHARACTERS for kind, several in kinds.items()},
        replies={
            part: sum(len(reply) for _, reply in several) / len(several) / CHARACTERS for part, several in rows.items()
        },
        longest={part: max(len(reply) for _, reply in several) / CHARACTERS for part, several in rows.items()},
    )
    found.rows = {
        part: found.replies[part] + _characters([p for p, _ in several]) / CHARACTERS for part, several in rows.items()
    }
    folder = _model(root, params, based)
    found.real = folder is not None
    if folder is not None:
        known = trial.sizes(folder, lora.model_dump() if lora else None)
        found = replace(found, **known)
    if folder is None and params["base"]["pretrained"]:
        found.problem = (
            f"{params['base']['pretrained']} is not on this machine yet, and no other model says how long it takes"
        )
    if seconds <= 0 or found.problem:
        return found
    widest = {d.kind: d for d in sorted(everything, key=lambda d: d.requests) if d.kind in kinds}
    different = {_named(options): options for options in trainings}
    vocabulary = given.family.vocabulary()
    texts = [
        text
        for several in given.corpus.values()
        for prompt, reply in several[:TEXTS]
        for text in (prompt[-1]["content"], reply)
    ]
    request = {
        "folder": str(folder) if folder else None,
        "random": {
            "architecture": params["base"]["architecture"],
            "vocabulary": vocabulary,
            "texts": [] if folder or vocabulary else texts[:TEXTS],
            "vocabulary_size": params["base"]["tokenizer"]["vocabulary_size"],
        },
        "engine": params["engine"],
        "serving": params["serving"],
        "conversations": kinds,
        "rows": rows,
        "asked": [{"kind": d.kind, "draws": d.draws, "longest": d.longest} for d in widest.values()],
        "lora": lora and lora.model_dump(),
        "train": [{"name": n, "kind": _kind(o), "options": o.model_dump()} for n, o in different.items()],
    }
    found.load = os.getloadavg()[0] / (os.cpu_count() or 1)
    for line in trial.measure(root, request, seconds):
        if "kind" in line:
            found.calls.append(Call(**line))
        elif "training" in line:
            name = line["training"]
            found.training[name] = Training(line["fixed"], _step_tokens(different[name], found), line["steps"])
        else:
            for name, value in line.items():
                setattr(found, name, value)
    return found


def _step_tokens(options: Mixed, measured: Measured) -> float:
    """Tokens that a step reads."""
    return sum(n * measured.rows.get(part, 0.0) for part, n in _mixture(options).items())


def _kind(options: Mixed) -> str:
    return next(kind for kind, given in OPTIONS.items() if type(options) is given)


def _named(options: Mixed) -> str:
    """Name of trainings whose steps are alike: what they read."""
    rows = ", ".join(f"{part} {n}" for part, n in sorted(_mixture(options).items()) if n)
    return f"{_kind(options)} of {rows}"


def _alike(options: Mixed, measured: Measured) -> Training | None:
    """A training of the same kind, where the trial did not get to this one."""
    kind = f"{_kind(options)} of "
    return next((known for name, known in measured.training.items() if name.startswith(kind)), None)


def _characters(several: Sequence[Messages]) -> float:
    """Mean characters of a conversation."""
    return sum(len(m["content"]) for messages in several for m in messages) / max(1, len(several))


def _model(root: Path, params: Mapping[str, Any], based: bool) -> Path | None:
    """The folder of the model that the loop starts from, where it is there."""
    name = params["base"]["pretrained"] or (ARTIFACTS["candidate"].at(BASE) if based else None)
    if name is None:
        return None
    try:
        return folders.resolve(root, Pointer(name, ""))
    except BadInput:
        return None


def _add(need: Need, demand: Demand, expected: float, measured: Measured) -> None:
    """Adds a demand: at most, and `expected` requests."""
    prompt = measured.prompts.get(demand.kind, 0.0)
    call = next((call for call in measured.calls if call.kind == demand.kind), None)
    length, longest = _lengths(demand, call, measured)
    need.requests += demand.requests
    need.prompt_tokens += demand.requests * prompt
    need.tokens += demand.requests * demand.longest
    need.expected_requests += expected
    need.expected_prompt_tokens += expected * prompt
    need.expected_tokens += expected * length
    need.reply_bytes += expected * (ROW_BYTES / 2 + TOKEN_BYTES * length)
    if call is None or need.engine_seconds is None:
        need.engine_seconds = None if demand.requests else need.engine_seconds
        return
    least, most = need.engine_seconds
    need.engine_seconds = (least + call.of(expected, longest), most + call.of(expected, demand.longest))


def _lengths(demand: Demand, call: Call | None, measured: Measured) -> tuple[float, float]:
    """Tokens that replies are expected to have: in the mean, and the longest. As the model's own were, if it is there;
    else as the corpus's; else up to the limit."""
    limit = demand.longest
    if call and measured.real:
        return call.length(limit), call.most(limit)
    parts = [part for part in demands.PARTS[demand.kind] if part in measured.replies]
    if not parts and demand.kind in ("answer", "refine") and not measured.real:
        parts = ["own"]
    if not parts:
        return limit, limit
    mean = sum(measured.replies[part] for part in parts) / len(parts)
    return min(mean, limit), min(max(measured.longest[part] for part in parts), limit)


def _add_training(need: Need, several: Sequence[Mixed], measured: Measured) -> None:
    """Adds the trainings of a stage, and the model that the last one writes."""
    for options in several:
        tokens = options.steps * _step_tokens(options, measured)
        need.training_rows += train.rows(options)
        need.training_tokens += tokens
        known = measured.training.get(_named(options)) or _alike(options, measured)
        if known is None or need.training_seconds is None:
            need.training_seconds = None
            continue
        least, most = known.seconds(tokens)
        need.training_seconds = (need.training_seconds[0] + least, need.training_seconds[1] + most)
    if several:
        lora = several[-1].model_dump()["lora"] or {}
        need.model_bytes = measured.adapter_bytes if lora.get("adapter") == "keep" else measured.bytes


def _table_bytes(
    params: Mapping[str, Any], stage: Stage, given: Task, asked: Mapping[Stage, list[Demand]], measured: Measured
) -> float:
    """Bytes of the Parquet tables that a stage writes, at most."""
    name, iteration = stage
    reply = measured.replies.get("own", 0.0)

    def table(rows: float, tokens: float) -> float:
        return rows * (ROW_BYTES + TOKEN_BYTES * tokens)

    if name == "prepare":
        corpus = sum(len(rows) for rows in given.corpus.values())
        prompt = measured.prompts.get("answer", 0.0)
        return table(corpus, sum(measured.rows.values()) / max(1, len(measured.rows))) + table(
            len(given.pool) + given.heldout + given.probe, prompt
        )
    if name == "synthesize":
        number = sum(bound.options.n for bound in sections.options(params, name, iteration))
        return table(number, measured.prompts.get("answer", 0.0))
    if name == "evaluate":
        options = sections.options(params, name, iteration)
        return table(given.heldout * (2 + options.samples), reply)
    candidates = sum(d.requests for d in asked.get(("sample", iteration), []))
    refined = sum(d.requests for d in asked.get(("refine", iteration), []) if d.kind == "refine")
    judges = len(sections.options(params, "critique", iteration)) if iteration and name in ("critique", "refine") else 0
    if name == "sample":
        return table(candidates, reply)
    if name == "critique":
        return table(candidates * judges, 5)
    if name == "refine":
        return table(refined, reply) + table(refined * judges, 5)
    if name == "filter":
        corpus = sum(len(rows) for rows in given.corpus.values())
        return table(candidates + refined + corpus, reply)
    return 0.0
