"""Whether the sections of params.yaml, each of which is sound by itself, fit one another.

Blocks say what they give and need (`tasks.core.block`), so a few rules serve all of them: a critic says what the block
that names it asks for; the family has the skills, the engine tells the numbers, the recipe declares the labels; filter
makes the rows and pairs that train takes; the corpus has what is replayed. Beside these: a gate that somebody measures,
adapters of one shape, warm-ups that end, and a pool that is large enough. Every function gives problems, a line each.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from flows.params import sections as own
from flows.params.schema import MODELS, WITH_BLOCKS
from tasks import evaluate, families, promote
from tasks.blocks.critique import BLOCKS as CRITICS
from tasks.blocks.evaluate import metrics
from tasks.core.block import SKILLS, Bound, Options, asks_nothing
from tasks.core.catalog import BASE
from tasks.core.engines import ENDPOINTS, server_renders
from tasks.core.engines.options import NO_SCORES
from tasks.core.errors import unknown_name
from tasks.core.training.options import AnchoredOptions, LoraOptions, TrainingOptions

Params = Mapping[str, Any]
ROWS, CORPUS_ROWS, PAIRS, RATED = "rows of ", "corpus rows of ", "pairs of ", "rated rows of "
MAKERS = {"rows of earlier": ["accumulate"], ROWS: ["rows"], PAIRS: ["pairs", "pairs_preferred"], RATED: ["rated"]}


def sections(params: Params, iterations: Sequence[str]) -> Iterator[str]:
    """All problems between the sections, of all iterations."""
    yield from _base(params)
    yield from _evaluation(params, BASE)
    for name in iterations:
        iteration = _Iteration(params, name)
        yield from iteration.abilities()
        yield from _evaluation(params, name)
        yield from iteration.opinions()
        yield from iteration.rows()
        yield from iteration.adapters()
        yield from iteration.gate()


@dataclass(frozen=True)
class _Iteration:
    """The blocks of an iteration's sections."""

    params: Params
    iteration: str

    def blocks(self, stage: str) -> list[Bound]:
        found: list[Bound] = own.options(self.params, stage, self.iteration)
        return found

    @cached_property
    def critics(self) -> dict[str, Bound]:
        return {critic.name: critic for critic in self.blocks("critique")}

    def abilities(self) -> Iterator[str]:
        """What blocks need of the family, the engine, the recipe and the row."""
        for stage in WITH_BLOCKS:
            for block in self.blocks(stage):
                yield from _abilities(f"{stage}.{block.name}", block, self.params)
                yield from _models(f"{stage}.{block.name}", block)
                yield from _uses(f"{stage}.{block.name}", block, self.params)
        yield from self.sources()

    def sources(self) -> Iterator[str]:
        """Whether the blocks whose answers others go on from, or choose among, are there."""
        makers = {stage: [block.name for block in self.blocks(stage)] for stage in ("sample", "refine")}
        known = {"sample": makers["sample"], "refine": makers["sample"] + makers["refine"]}
        for stage in ("sample", "refine", "filter"):
            for block in self.blocks(stage):
                for place, name in _named(block.options, "of"):
                    there = known.get(stage, known["refine"])
                    if name not in there:
                        where = f"{stage}.{block.name}.{place} (blocks of sample and refine)"
                        yield str(unknown_name("source", name, there, where))

    def opinions(self) -> Iterator[str]:
        """Whether the critics that blocks name are there and say what the blocks ask for."""
        for stage in ("critique", "refine", "filter"):
            for block, read in [(one, read) for one in self.blocks(stage) for read in one.reads]:
                name, where = read.critic, f"{stage}.{block.name}.{read.option}"
                if name not in self.critics:
                    yield str(unknown_name("critic", name, self.critics, where))
                    continue
                judge = self.critics[name]
                for word in sorted(read.needs - judge.gives):
                    others = [kind for kind, critic in CRITICS.items() if word in _fixed(critic.gives)]
                    yield (
                        f"{where}: given '{name}', a {judge.kind} critic, which gives {' and '.join(sorted(judge.gives))}, but "
                        f"{block.kind} needs {word}; name a critic of block {' or '.join(others)}"
                    )

    def rows(self) -> Iterator[str]:
        """Whether train mixes what filter makes, and filter replays what the corpus has."""
        made = frozenset().union(*(block.gives for block in self.blocks("filter")))
        for block in self.blocks("filter"):
            for part in _parts(block.needs, CORPUS_ROWS):
                if part not in (known := _corpus(self.params)):
                    yield str(unknown_name("part", part, known, f"filter.{block.name}.parts (what the corpus has)"))
            for part in sorted(set(_parts(block.needs, ROWS)) - set(_parts(made, ROWS))):
                yield f"filter.{block.name}: needs rows of {part}, which no block makes; add {_makers(ROWS + part)}"
        for block in self.blocks("train"):
            for what in (ROWS, PAIRS, RATED):
                option = "replay" if what == ROWS and isinstance(block.options, AnchoredOptions) else "mixture"
                parts, wanted = _parts(made, what), _parts(block.needs, what)
                if wanted and not parts and what != ROWS:
                    kind = what.removesuffix(" of ")
                    yield f"train.{block.name}: {block.kind} trains on {kind}, and no block of filter makes any; add {_makers(what)}"
                    continue
                for part in wanted:
                    if part not in parts:
                        hint = f"; {makers} makes {part}" if (makers := _makers(what + part)) else ""
                        where = f"train.{block.name}.{option} (what filter makes)"
                        yield f"{unknown_name('part', part, parts, where)}{hint}"
                if wanted and option == "mixture" and (unnamed := sorted(set(parts) - set(block.options.mixture))):
                    yield f"train.{block.name}.mixture: filter makes {', '.join(unnamed)} too; say how many rows a step takes, or 0"
            yield from _warmup(f"train.{block.name}", block.options)

    def adapters(self) -> Iterator[str]:
        """An adapter that is kept is trained on by the next block and the next iteration, so they must have its shape."""
        initial = self.params["iterations"][self.iteration]["initial"]
        shape = None
        for block in [] if initial == BASE else _Iteration(self.params, initial).blocks("train"):
            shape = _shape(block.options.lora) if _keeps(block.options.lora) else None
        for block in self.blocks("train"):
            wanted = _shape(block.options.lora)
            if wanted and shape and wanted != shape:
                yield (
                    f"train.{block.name}.lora: given {wanted}, but the adapter that it starts from has {shape}, and is trained "
                    "on; give the same, or let what makes that one `merge` it"
                )
            shape = wanted if _keeps(block.options.lora) else None

    def gate(self) -> Iterator[str]:
        """Whether the iteration and the one before it measure what promotion compares."""
        promotion, prepare = own.options(self.params, "promote", self.iteration), self.params["prepare"]
        metric = promotion.metric
        yield from self._tested(promotion.significance, metric)
        given = families.with_source(prepare["family"], prepare["options"], prepare["source"])
        levels = families.difficulties(prepare["family"], given)
        for measured in (self.params["iterations"][self.iteration]["previous"], self.iteration):
            evaluation: evaluate.Evaluation = own.options(self.params, "evaluate", measured)
            critic = next((critic for critic in evaluation.critics if critic.name == evaluation.own), None)
            verdicts = critic is not None and "verdicts" in critic.gives
            known = metrics.names(
                evaluation.samples, levels, critic is not None, verdicts, evaluation.refine is not None
            )
            gates = [name for name in known if name in promote.GATES or promote.COUNTED.fullmatch(name)]
            if metric not in (*gates, *promote.LABEL_FREE):
                place = f" in {measured}" if self.params["evaluations"][measured] else ""
                where = f"promote.metric (what evaluate measures{place})"
                advice = "; evaluate.samples, critics and refine decide what is measured"
                yield f"{unknown_name('metric', metric, {*gates, *promote.LABEL_FREE}, where)}{advice}"
                return

    def _tested(self, significance: float | None, metric: str) -> Iterator[str]:
        """Whether there will be what a paired test of the probe set compares."""
        if significance is None:
            return
        given, prepare = f"promote.significance: given {significance:g}", self.params["prepare"]
        if metric != "accuracy":
            yield f"{given}, but the test compares right answers, and promote.metric is {metric}; set metric to accuracy"
        options = families.with_source(prepare["family"], prepare["options"], prepare["source"])
        if not families.create(prepare["family"], options).has_truth:
            yield f"{given}, but these prompts have no answers, so nobody knows who is right; set it to null"
        previous = self.params["iterations"][self.iteration]["previous"]
        for measured in (previous, self.iteration):
            if not own.options(self.params, "evaluate", measured).probe_by_prompt:
                row = f" in {measured}" if self.params["evaluations"][measured] else ""
                yield (
                    f"{given}, but evaluate.probe_by_prompt is false{row}, so nothing is kept of single probe prompts; set "
                    "that to true"
                )
        if previous != BASE and own.options(self.params, "promote", previous).significance is None:
            yield (
                f"{given} for {self.iteration}, but null for {previous}, which it is compared with, so the policy's answers "
                "to single prompts may be lost; set it for both"
            )


def _abilities(place: str, block: Bound, params: Params) -> Iterator[str]:
    """What the block needs, and the family, the engine or the recipe does not give."""
    family, engine = params["prepare"]["family"], params["engine"]
    lacking = families.lacks(family)
    for skill in sorted(block.needs & SKILLS & lacking.keys()):
        yield (
            f"{place}: block {block.kind} cannot work with family {family}: it needs {skill}, and {lacking[skill]}; "
            f"{_way_out(block, skill)}"
        )
    if "labels" in block.needs and not params["labels"] and not place.startswith("evaluate"):
        yield (
            f"{place}: block {block.kind} reads the truth, but params.yaml says `labels: false`; use a label-free critic, or a "
            "recipe that declares labels (`python -m flows.recipe use oracle`)"
        )
    if engine["name"] not in ENDPOINTS:
        return
    if "vocabulary" in block.needs:
        yield (
            f"{place}: block {block.kind} takes the probabilities of the whole vocabulary ({_statistic(block)}), and no server "
            "tells them; use engine.name: transformers or vllm, or statistic: logprob"
        )
    elif "likelihoods" in block.needs and server_renders(engine):
        yield (
            f"{place}: block {block.kind} reads log-probabilities of given text, and {NO_SCORES}, or a block that ends in "
            "_structured"
        )


def _models(place: str, block: Bound) -> Iterator[str]:
    """Whether the models that a block names are columns of the row, and whether it asks any."""
    if block.model is not None and block.block.asks is asks_nothing:
        yield f"{place}.model: given '{block.model}', but block {block.kind} asks no model; leave it out"
    for option, column in (("model", block.model), ("minus", getattr(block.options, "minus", None))):
        if column is not None and column not in MODELS:
            yield str(unknown_name("column of the row", column, MODELS, f"{place}.{option}"))


def _named(options: Any, field: str, before: str = "") -> Iterator[tuple[str, str]]:
    """The names in every option of this name, nested ones too, with their places."""
    for name, value in options:
        if name == field:
            yield from ((f"{before}{name}", one) for one in value)
        elif isinstance(value, Options):
            yield from _named(value, field, f"{before}{name}.")


def _uses(place: str, block: Bound, params: Params) -> Iterator[str]:
    """Whether the family can write the prompt that a block's `template` names."""
    use, family = getattr(block.options, "template", None), params["prepare"]["family"]
    if use is None:
        return
    known = families.uses(family)
    if use not in known:
        yield str(unknown_name("use", use, known, f"{place}.template (what family {family} can ask)"))
    elif "gold" in known[use] and not params["labels"]:
        yield (
            f"{place}.template: '{use}' shows the right answer, but params.yaml says `labels: false`; use another template, or a "
            "recipe that declares labels (`python -m flows.recipe use oracle`)"
        )
    elif (hasattr(block.options, "together") or hasattr(block.options, "texts")) and not known[use] & {
        "answers",
        "gold",
    }:
        yield f"{place}.template: '{use}' shows no answer, and {block.kind} is about answers; use one that does"
    elif hasattr(block.options, "n") and not hasattr(block.options, "of") and "answers" in known[use]:
        yield f"{place}.template: '{use}' shows an answer, and {block.kind} has none to show; use `respond`"


def _way_out(block: Bound, skill: str) -> str:
    """What makes a block do without a skill: an option to set to null, or leaving the block out."""
    for name, given in block.options:
        without = replace(block, options=block.options.model_copy(update={name: None}))
        if given is not None and callable(block.block.needs) and skill not in without.needs:
            return f"set {name} to null, or leave the block out"
    return "leave the block out"


def _statistic(block: Bound) -> str:
    return f"statistic: {getattr(block.options, 'statistic', block.kind)}"


def _evaluation(params: Params, iteration: str) -> Iterator[str]:
    """What critics, refiners and benchmarks of an evaluation need."""
    evaluation: evaluate.Evaluation = own.options(params, "evaluate", iteration)
    for critic in evaluation.critics:
        place = f"evaluate.critics.{critic.name}"
        yield from _abilities(place, critic, params)
        if critic.model is not None or getattr(critic.options, "minus", None) is not None:
            yield f"{place}: names another model, and evaluate asks the candidate alone; leave it out"
        if "comparisons" in critic.gives:
            yield f"{place}: block {critic.kind} compares answers and judges none by itself; evaluate with another critic"
    for maker in evaluation.makers:
        place = f"evaluate.makers.{maker.name}"
        yield from _abilities(place, maker, params)
        yield from _uses(place, maker, params)
        if maker.model is not None:
            yield f"{place}: names another model, and evaluate asks the candidate alone; leave it out"
    if evaluation.refine is not None:
        yield from _abilities("evaluate.refine", evaluation.refine, params)
    for name, benchmark in evaluation.benchmarks.items():
        if server_renders(params["engine"]) and not benchmark.chat_template:
            yield (
                f"evaluate.benchmarks.{name}.chat_template: given false, so questions are plain text, and "
                "engine.endpoint.protocol is chat, which takes messages alone; set it to true, or use the protocol completions"
            )


def _base(params: Params) -> Iterator[str]:
    """Whether base trains on what the corpus has, and for long enough."""
    if params["base"]["pretrained"] is not None:
        return
    if params["prepare"]["options"].get("labelled") == 0:
        yield (
            "base.pretrained: given null, and prepare.options.labelled is 0, so there is no seed corpus to train "
            "a base model on; name a pretrained model, or give the labels of some rows"
        )
        return
    options = own.options(params, "base", None).sft
    yield from _warmup("base.sft", options)
    parts = _corpus(params)
    for part, rows in options.mixture.items():
        if rows and part not in parts:
            yield str(unknown_name("part", part, parts, "base.sft.mixture (what the corpus has)"))
    if unnamed := sorted(set(parts) - set(options.mixture)):
        yield f"base.sft.mixture: the corpus has {', '.join(unnamed)} too; say how many rows a step takes, or 0"


def _corpus(params: Params) -> list[str]:
    prepare = params["prepare"]
    options = families.with_source(prepare["family"], prepare["options"], prepare["source"])
    return families.parts(prepare["family"], options)


def _parts(words: Iterable[str], before: str) -> list[str]:
    """The parts that some words name."""
    return sorted(word.removeprefix(before) for word in words if word.startswith(before))


def _makers(word: str) -> str:
    """The filter blocks that make such rows."""
    for what, blocks in MAKERS.items():
        if word.startswith(what):
            return " or ".join(blocks)
    return ""


def _fixed(facts: Any) -> frozenset[str]:
    """Words that do not depend on options."""
    return frozenset() if callable(facts) else facts


def _warmup(where: str, options: TrainingOptions) -> Iterator[str]:
    if options.warmup_steps > options.steps:
        yield (
            f"{where}.warmup_steps: given {options.warmup_steps}, but there are {options.steps} steps, so the learning "
            "rate would never be reached; lower it"
        )


def _keeps(lora: LoraOptions | None) -> bool:
    return lora is not None and lora.adapter == "keep"


def _shape(lora: LoraOptions | None) -> dict[str, Any] | None:
    return None if lora is None else {"rank": lora.rank, "alpha": lora.alpha, "targets": sorted(lora.targets)}


def supply(params: Params, iterations: Sequence[str], pool: Mapping[int, int]) -> Iterator[str]:
    """Whether the pool, prompts by difficulty, has as many as every iteration asks for."""
    hardest: dict[str, int | None] = {BASE: 0}  # of an iteration's prompts, None where it cannot be known
    told: set[str] = set()
    for iteration in iterations:
        previous = params["iterations"][iteration]["previous"]
        levels: list[int | None] = []
        blocks: list[Bound] = own.options(params, "synthesize", iteration)
        for block in blocks:
            taken = block.block.takes and block.block.takes(block.options, previous == BASE, hardest.get(previous))
            levels.append(taken.difficulty if taken else None)
            if not taken:
                continue
            level = taken.difficulty
            there = sum(pool.values()) if level is None else pool.get(level, 0)
            if taken.number > there and block.name not in told:
                told.add(block.name)
                kind = "" if level is None else f" of difficulty {level}"
                longer = "" if level is None else f", and difficulties {min(pool)} to {max(pool)}"
                yield (
                    f"synthesize.{block.name}: {iteration} asks for {taken.number} prompts{kind}, but the pool has {there}{longer}; "
                    "lower n, let there be fewer iterations, or make a larger pool in prepare.options"
                )
        known = [level for level in levels if level is not None]
        hardest[iteration] = max(known) if known and len(known) == len(levels) else None
