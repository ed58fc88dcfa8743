"""What a run will take, told before it: `python -m flows.check --estimate`.

Requests are upper bounds: every block says how many it puts at most (`tasks.core.demand`), no two of them alike, nothing
malformed, everything refused. `expected` takes what can be known off them: conversations that repeat are asked once, and
how many of the factored critic's questions repeat is counted on the seed corpus's own answers; replies are as long as
the corpus's, or as the probe's where the model is there already. Training reads a known number of rows.

Prompts, answers and tokens come from the task's data: the artifacts where `prepare` is current, else what `prepare`
would write, made in memory. Seconds come from a short measurement on this machine (`flows.probe`); where it did not get
that far, or the engine is a server somewhere else, they are unknown. They are the engine's and the trainer's: starting
processes, importing libraries and reading files come on top.

Bytes: models from the files' sizes (a LoRA adapter alone where it is kept alone); tables and stored replies by rows and
tokens. DVC's cache holds every artifact a second time, unless the file system can share the blocks (reflinks).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from flows import artifacts, graph, history, probe
from tasks import evaluate
from tasks.blocks import critics, prompts, refinement, sampling, training
from tasks.core import families, models
from tasks.core import params as parameters
from tasks.core.blocks import validate
from tasks.core.context import Pointer
from tasks.core.demand import Counts, Demand, Kind
from tasks.core.errors import BadInput
from tasks.core.family import Family, Messages
from tasks.core.serving import Prices

if TYPE_CHECKING:
    from rich.table import Table

Example = tuple[Messages, str]  # prompt and reply
Stage = tuple[str, str | None]  # stage and iteration

SHOWN = 20_000  # answers on which repeated questions are counted, at most
CONVERSATIONS = 2048  # of a kind, which the probe asks at most
ROWS = 256  # of a part, which the probe trains on at most
TEXTS = 5000  # on which the tokenizer of a random model is trained, at most
PARTS: dict[Kind, tuple[str, ...]] = {  # whose prompts in the corpus are of this kind
    "answer": ("solve",), "question": ("fact", "usage"), "critique": ("critique",), "refine": ("refine",),
    "invent": ("invent",),
}  # fmt: skip
ROW_BYTES, TOKEN_BYTES = (
    20,
    1.5,
)  # of a row of Parquet: ids do not compress, text does (measured on the default: 13 to 36)
CHARACTERS = 4  # of a token, where there is no tokenizer
WIDTH = 150  # characters
OPTIMIZER = 3  # a checkpoint's bytes are those of the trained float32 weights so many times: weights and two moments


@dataclass(frozen=True)
class Task:
    """The task's data as far as the estimate needs it."""

    family: Family
    pool: list[Messages]
    heldout: int
    probe: int
    corpus: dict[str, list[Example]]  # by part

    @property
    def answers(self) -> list[Example]:
        """Well-formed answers to prompts like the pool's; none without a corpus."""
        return self.corpus.get("solve", [])[:SHOWN]


@dataclass
class Need:
    """What one stage asks, trains and writes. `at_most`: requests, prompt tokens, completion tokens. `seconds` of engine
    or trainer: least and most, None unknown."""

    stage: str
    key: str | None
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
    def iteration(self) -> str | None:
        return history.iteration_of(self.stage, self.key)

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
    """What the probe found. Without a tokenizer, tokens are characters divided by four."""

    bytes: int | None = None
    adapter_bytes: int | None = None
    prompts: dict[str, float] = field(default_factory=dict)  # kind -> tokens
    rows: dict[str, float] = field(default_factory=dict)  # part -> tokens of prompt and reply
    replies: dict[str, float] = field(default_factory=dict)  # part -> tokens
    speeds: list[probe.Found] = field(default_factory=list)
    training: list[float] = field(default_factory=list)  # tokens a second
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


# --- what is asked ---------------------------------------------------------------------------------------


def demands(params: Mapping[str, Any], evaluated: int, questions: int) -> dict[Stage, list[Demand]]:
    """Requests of every stage that asks a model, at most. `evaluated`: held-out and probe prompts; `questions`: as in
    `tasks.core.demand.Counts`."""
    found: dict[Stage, list[Demand]] = {}
    for key in parameters.stage_keys(params, "evaluate"):
        found["evaluate", key] = evaluate.requests(parameters.options(params, "evaluate", key), evaluated, questions)
    for key in parameters.iterations(params):
        chosen, sampled, judges, refiners = (
            parameters.options(params, stage, key) for stage in ("synthesize", "sample", "critique", "refine")
        )
        number = sum(bound.options.n for bound in chosen)
        counts = Counts(number, 0, questions)
        asked = [prompts.REQUESTS[b.block](b.options, counts) for b in chosen if b.block in prompts.REQUESTS]
        found["synthesize", key] = [demand for several in asked for demand in several]
        answers = [d for b in sampled for d in sampling.REQUESTS[b.block](b.options, counts)]
        found["sample", key] = answers
        counts = Counts(number, sum(demand.requests for demand in answers), questions)
        found["critique", key] = critics.requests(judges, counts)
        found["refine", key] = [d for b in refiners for d in refinement.requests(b, judges, counts)]
    return found


def most_questions(family: Family, answers: Iterable[Example]) -> tuple[int, float]:
    """Into how many questions an answer is split, at most, and the share of all their questions that differ."""
    numbers, different, total = [0], set(), 0
    for prompt, reply in answers:
        asked = family.questions(prompt, reply) or []
        numbers.append(len(asked))
        total += len(asked)
        different |= {str(question.messages) for question in asked}
    return max(numbers), len(different) / total if total else 1.0


# --- the task's data -------------------------------------------------------------------------------------


def task(root: Path, params: Mapping[str, Any], current: bool) -> Task:
    """The task's data: from the artifacts where `prepare` is `current`, else made in memory. Raises `BadInput`."""
    import polars as pl

    if current and (root / families.FILE).is_file():
        found, everything = artifacts.Artifacts(root), pl.lit(True)
        pool, held, probed = (
            found.task(name, everything, ["messages"])["messages"].to_list() for name in ("prompts", "heldout", "probe")
        )
        corpus = found.task("corpus", everything, ["part", "prompt", "completion"]).rows()
        return Task(families.load(root), pool, len(held), len(probed), _by_part(corpus))
    given = params["prepare"]
    family = families.create(given["family"], families.with_source(given["family"], given["options"], given["source"]))
    data = family.build(Random(parameters.seed(params, "prepare", None)), str(root))
    pool = [row["messages"] for row in data.pool]
    rows = [(row["part"], row["prompt"], row["completion"]) for row in data.corpus]
    return Task(family, pool, len(data.heldout), len(data.probe), _by_part(rows))


def _by_part(rows: Iterable[tuple[str, Messages, Messages]]) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = {}
    for part, prompt, completion in rows:
        found.setdefault(part, []).append((prompt, completion[-1]["content"]))
    return found


def conversations(given: Task, asked: Iterable[Demand]) -> dict[Kind, list[Messages]]:
    """Prompts of every kind that is asked: the pool's, the corpus's, and where it has none, the family's templates around
    a pool prompt and a reply of full length."""
    found: dict[Kind, list[Messages]] = {}
    for demand in asked:
        if demand.kind in found:
            continue
        parts = [part for part in PARTS[demand.kind] if part in given.corpus]
        if demand.kind == "answer":
            found["answer"] = given.pool[:CONVERSATIONS]
        elif parts:
            each = CONVERSATIONS // len(parts)
            found[demand.kind] = [prompt for part in parts for prompt, _ in given.corpus[part][:each]]
        else:
            longest = max(d.longest for d in asked)
            pairs = given.answers[:ROWS] or [(prompt, _filler(given, longest)) for prompt in given.pool[:ROWS]]
            made = [_template(given.family, demand.kind, *pair) for pair in pairs]
            found[demand.kind] = [messages for messages in made if messages]
    return {kind: several for kind, several in found.items() if several}


def _template(family: Family, kind: Kind, prompt: Messages, reply: str) -> Messages | None:
    if kind == "critique":
        return family.critique_messages(prompt, reply)
    return family.refine_messages(prompt, reply, reply) if kind == "refine" else family.invent_messages([prompt] * 3)


def _filler(given: Task, tokens: int) -> str:
    """Text of about so many tokens, from the pool's prompts; a word is 4/3 tokens."""
    words = " ".join(messages[-1]["content"] for messages in given.pool[:ROWS]).split()
    return " ".join((words * ceil(tokens / max(1, len(words))))[: ceil(0.75 * tokens)])


def examples(given: Task, wanted: Iterable[str], longest: int) -> dict[str, list[Example]]:
    """Rows to train on of every part; what the model will make itself is like the corpus's solutions."""
    own = given.answers[:ROWS] or [(prompt, _filler(given, longest)) for prompt in given.pool[:ROWS]]
    return {part: given.corpus.get(part, own)[:ROWS] for part in wanted}


# --- the estimate ----------------------------------------------------------------------------------------


def estimate(root: Path, params: Mapping[str, Any], everything: bool, seconds: float) -> Estimate:
    """What bringing the graph up to date takes, with `everything` what all of it takes from nothing. `seconds`: how long
    measuring may take, 0 for not at all. Raises `BadInput`."""
    stale = set(graph.stale(root))
    stages: list[Stage] = [(s, k) for s in parameters.STAGES for k in parameters.stage_keys(params, s)]
    given = task(root, params, "prepare" not in stale)
    questions, distinct = most_questions(given.family, given.answers)
    asked = demands(params, given.heldout + given.probe, questions)
    trained = {stage: _trainings(params, *stage) for stage in stages if stage[0] in ("base", "train")}
    runs = {stage: _name(stage) in stale for stage in stages}
    measured = _measured(root, params, given, asked, trained, "base" not in stale, seconds)
    needs = []
    for stage in stages:
        need = Need(*stage, runs[stage])
        for demand in asked.get(stage, []):
            _add(need, demand, distinct if demand.kind == "question" else 1.0, measured)
        _add_training(need, trained.get(stage, []), measured, params)
        need.table_bytes = _table_bytes(params, stage, given, asked, measured)
        needs.append(need)
    needs.sort(key=lambda need: parameters.number(need.iteration) if need.iteration else float("inf"))
    return Estimate(needs, measured, validate(Prices, params["prices"], "prices"), everything, seconds)


def _name(stage: Stage) -> str:
    return f"{stage[0]}@{stage[1]}" if stage[1] else stage[0]


def _trainings(params: Mapping[str, Any], stage: str, key: str | None) -> list[training.TrainingOptions]:
    if stage == "base":
        return [] if params["base"]["pretrained"] else [parameters.options(params, stage, key).sft]
    return [bound.options for bound in parameters.options(params, stage, key)]


def _mixture(options: training.TrainingOptions) -> dict[str, int]:
    """Rows of every part in a step; a pair is two rows of the iteration's own."""
    if isinstance(options, training.DpoOptions):
        return {"own": 2 * options.batch_size} | options.replay
    return options.mixture if isinstance(options, training.SftOptions) else {}


def _measured(
    root: Path,
    params: Mapping[str, Any],
    given: Task,
    asked: Mapping[Stage, list[Demand]],
    trained: Mapping[Stage, list[training.TrainingOptions]],
    based: bool,
    seconds: float,
) -> Measured:
    """What the probe finds, and without it, tokens by characters."""
    everything = [demand for several in asked.values() for demand in several]
    kinds = conversations(given, everything)
    longest = max((demand.longest for demand in everything if demand.kind == "answer"), default=1)
    first = next((o for stage, several in trained.items() if stage[0] == "train" for o in several), None)
    parts = {"own": 1, **{part: n for several in trained.values() for o in several for part, n in _mixture(o).items()}}
    rows = examples(given, parts, longest)
    found = Measured(
        prompts={kind: _characters(several) / CHARACTERS for kind, several in kinds.items()},
        replies={
            part: sum(len(reply) for _, reply in several) / len(several) / CHARACTERS for part, several in rows.items()
        },
    )
    found.rows = {
        part: found.replies[part] + _characters([p for p, _ in several]) / CHARACTERS for part, several in rows.items()
    }
    folder = _model(root, params, based)
    found.real = folder is not None
    if folder is not None:
        found.bytes = probe.size(folder)
    if seconds <= 0:
        return found
    widest = {d.kind: d for d in sorted(everything, key=lambda d: d.requests) if d.kind in kinds}
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
        "train": first and {"kind": _kind(first), "options": first.model_dump()},
    }
    for line in probe.measure(root, request, seconds):
        if "kind" in line:
            found.speeds.append(line)
        else:
            for name, value in line.items():
                setattr(found, name, value)
    return found


def _kind(options: training.TrainingOptions) -> str:
    return "dpo" if isinstance(options, training.DpoOptions) else "sft"


def _characters(several: Sequence[Messages]) -> float:
    """Mean characters of a conversation."""
    return sum(len(m["content"]) for messages in several for m in messages) / max(1, len(several))


def _model(root: Path, params: Mapping[str, Any], based: bool) -> Path | None:
    """The folder of the model that the loop starts from, where it is there."""
    name = params["base"]["pretrained"] or ("data/i00/candidate" if based else None)
    if name is None:
        return None
    try:
        return models.resolve(root, Pointer(name, ""))
    except BadInput:
        return None


def _add(need: Need, demand: Demand, distinct: float, measured: Measured) -> None:
    """Adds a demand: at most, and expected where `distinct` of its conversations differ."""
    prompt = measured.prompts.get(demand.kind, 0.0)
    speed = next((s for s in measured.speeds if s["kind"] == demand.kind), None)
    known = [measured.replies[part] for part in PARTS[demand.kind] if part in measured.replies]
    known = known or ([measured.replies["own"]] if demand.kind in ("answer", "refine") and not measured.real else [])
    length = float(speed["tokens"]) if speed and measured.real else sum(known) / len(known) if known else demand.longest
    length = min(length, demand.longest)
    expected = demand.requests * distinct
    need.requests += demand.requests
    need.prompt_tokens += demand.requests * prompt
    need.tokens += demand.requests * demand.longest
    need.expected_requests += expected
    need.expected_prompt_tokens += expected * prompt
    need.expected_tokens += expected * length
    need.reply_bytes += expected * (ROW_BYTES / 2 + TOKEN_BYTES * length)
    if speed is None or need.engine_seconds is None:
        need.engine_seconds = None if demand.requests else need.engine_seconds
        return
    shorter = (length + 1) / (speed["tokens"] + 1)
    least, most = (need.engine_seconds[i] + expected * speed["seconds"][i] * shorter for i in (0, 1))
    need.engine_seconds = (least, most)


def _add_training(
    need: Need, several: Sequence[training.TrainingOptions], measured: Measured, params: Mapping[str, Any]
) -> None:
    for options in several:
        need.training_rows += training.rows(options)
        tokens = options.steps * sum(n * measured.rows.get(part, 0.0) for part, n in _mixture(options).items())
        need.training_tokens += tokens
        if not measured.training or need.training_seconds is None:
            need.training_seconds = None
            continue
        fast, slow = max(measured.training), min(measured.training)
        need.training_seconds = (need.training_seconds[0] + tokens / fast, need.training_seconds[1] + tokens / slow)
        lora = options.model_dump().get("lora") or {}
        need.model_bytes = measured.adapter_bytes if lora.get("adapter") == "keep" else measured.bytes
    if several and not measured.training:
        need.model_bytes = measured.bytes


def _table_bytes(
    params: Mapping[str, Any], stage: Stage, given: Task, asked: Mapping[Stage, list[Demand]], measured: Measured
) -> float:
    """Bytes of the Parquet tables that a stage writes, at most."""
    name, key = stage
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
        number = sum(bound.options.n for bound in parameters.options(params, name, key))
        return table(number, measured.prompts.get("answer", 0.0))
    if name == "evaluate":
        options = parameters.options(params, name, key)
        return table(given.heldout * (2 + options.samples), reply)
    candidates = sum(d.requests for d in asked.get(("sample", key), []))
    refined = sum(d.requests for d in asked.get(("refine", key), []) if d.kind == "refine")
    judges = len(parameters.options(params, "critique", key)) if key and name in ("critique", "refine") else 0
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


# --- showing ---------------------------------------------------------------------------------------------


def as_json(made: Estimate) -> dict[str, Any]:
    """Every stage that is estimated, and what was measured."""
    stages = [
        {**asdict(need), "cost_at_most": need.cost(made.prices), "cost_expected": need.cost(made.prices, False)}
        for need in made.wanted
    ]
    current = [_name((need.stage, need.key)) for need in made.needs if not need.runs]
    return {
        "stages": stages,
        "up_to_date": current,
        "measured": asdict(made.measured),
        "currency": made.prices.currency,
    }


def table(made: Estimate) -> "Table":
    """A line for each stage that takes something, a sum of each iteration and of the run."""
    from rich import box
    from rich.table import Table

    priced = any(value for value in made.prices.model_dump().values() if not isinstance(value, str))
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, padding=(0, 1))
    columns = [
        "iteration", "stage", "requests\nat most", "prompt\ntokens", "completion\ntokens, at most", "expected\nrequests",
        "engine\ntime", "training\ntokens", "training\ntime", "disk",
    ]  # fmt: skip
    for column in [*columns, *([f"cost at\nmost, {made.prices.currency}"] if priced else [])]:
        shown.add_column(column, justify="left" if column in ("iteration", "stage") else "right", no_wrap=True)
    keys = list(dict.fromkeys(need.iteration for need in made.wanted))
    for key in keys:
        mine = [need for need in made.wanted if need.iteration == key]
        for need in mine:
            if need.requests or need.training_rows or (need.model_bytes or 0) + need.table_bytes > 0:
                shown.add_row(key or "", need.stage, *_cells([need], made.prices, priced))
        if key:
            shown.add_row(key, "sum", *_cells(mine, made.prices, priced), end_section=True)
    shown.add_row("run", "", *_cells(made.wanted, made.prices, priced))
    return shown


def _cells(needs: Sequence[Need], prices: Prices, priced: bool) -> list[str]:
    def total(name: str) -> str:
        value = sum(getattr(need, name) for need in needs)
        return f"{value:,.0f}" if value else "-"

    engine, trained = ([getattr(need, name) for need in needs] for name in ("engine_seconds", "training_seconds"))
    models_ = [need.model_bytes for need in needs]
    written = sum(need.table_bytes + need.reply_bytes for need in needs)
    disk = "unknown" if None in models_ else human(sum(value or 0.0 for value in models_) + written)
    cells = [total("requests"), total("prompt_tokens"), total("tokens"), total("expected_requests"), _span(engine)]
    cells += [total("training_tokens"), _span(trained), disk]
    costs = [need.cost(prices) for need in needs]
    known = [cost for cost in costs if cost is not None]
    return [*cells, f"{sum(known):,.2f}" if len(known) == len(costs) else "unknown"] if priced else cells


def _span(spans: Sequence[tuple[float, float] | None]) -> str:
    """Least and most time of several."""
    known = [span for span in spans if span is not None]
    if len(known) < len(spans):
        return "unknown"
    least, most = (sum(span[i] for span in known) for i in (0, 1))
    if not most:
        return "-"
    low, high = duration(least), duration(most)
    return low if low == high else f"{low} to {high}"


def duration(seconds: float) -> str:
    """4.2 s, 12 min or 3.1 h."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def human(number: float) -> str:
    """1.4 MB or 15.2 GB."""
    scale, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if number >= s), (1.0, "B"))
    return f"{number / scale:.1f} {unit}"


def remarks(made: Estimate) -> list[str]:
    """What the table does not say."""
    found = made.measured
    idle = [_name((need.stage, need.key)) for need in made.needs if not need.runs]
    lines = []
    if idle and not made.everything:
        lines.append(f"up to date, not counted (--all counts them): {', '.join(idle)}")
    lines.append(
        "requests: at most, no two alike and every answer refused; expected: repeated questions counted once. "
        "Early cut-off and DVC's run cache can spare more."
    )
    if found.speeds or found.training:
        of = "the model that is there" if found.real else "the architecture with random weights"
        spread = max((s["seconds"][1] / s["seconds"][0] for s in found.speeds), default=1.0)
        lines.append(
            f"time: of engine and trainer alone, from at most {made.seconds:.0f} s of measuring {of} here; two measurements of "
            f"one thing differ up to {spread:.1f} times"
        )
    if not found.speeds:
        lines.append(
            "engine time is unknown: nothing was measured (--probe SECONDS gives the probe more time; no server is asked)"
        )
    if found.bytes is not None:
        kept = sum(1 for need in made.wanted if need.model_bytes)
        more = human(OPTIMIZER * found.bytes)
        lines.append(
            f"disk: a model is {human(found.bytes)}, {kept} are written; DVC's cache holds artifacts once more where the file "
            f"system has no reflinks; while training, each of up to 2 checkpoints takes about {more} (full weights)"
        )
    return lines


def show(made: Estimate, as_json_: bool = False) -> None:
    """Prints the table and what it does not say, or everything as JSON."""
    if as_json_:
        print(json.dumps(as_json(made), indent=2))
        return
    from rich.console import Console

    out = Console(highlight=False)
    out.width = max(out.width, WIDTH)
    out.print(table(made))
    for line in remarks(made):
        print(line)
