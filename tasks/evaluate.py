"""evaluate: how good this iteration's candidate is, on held-out prompts and, apart from them, on the probe set.

Reads `data/iN/candidate`, `data/tasks/heldout.parquet` and `data/tasks/probe.parquet` (PROMPTS with answers; no other
stage reads the first; evaluation may always see truth). For each set: one greedy answer and `samples` samples a prompt,
the model's own critiques of them (equal responses to one prompt are criticised once), one refinement of every greedy
answer that the critic refuses, and the truth of every answer where the family has one.

Writes `data/iN/evaluation/predictions.parquet` (PREDICTIONS, held-out prompts), `metrics.json` beside it
(flat figures of `tasks.blocks.evaluate.metrics.summary`, held-out), `data/evaluations/iN.json` (the same and
`iteration`, for report), and `probe.json`: `metrics`, the same figures on the probe set, `guards` and, with
`probe_by_prompt`, `by_prompt`: which of its prompts have a right greedy answer.
`makers` go on from these answers, and `answers` adds ways to answer with all of them (`tasks.blocks.evaluate.ways`), held out.
Only `probe.json` may be read inside the loop. Figures are null where the family has no truth. `benchmarks` adds the
figures of standard benchmarks to the held-out ones (`tasks.blocks.evaluate.benchmarks`).
Reruns for another candidate, other sets, this section, its override in the iteration's row of
`evaluations`, the folder `benchmark_files`, seed or engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
from pydantic import Field, ValidationInfo, field_validator

from tasks import families
from tasks.blocks import critique, refine, sample
from tasks.blocks.critique.judging import in_order, judged
from tasks.blocks.critique.opinions import aggregate
from tasks.blocks.evaluate import benchmarks, guards, metrics, ways
from tasks.blocks.evaluate.options import Benchmark
from tasks.blocks.sample import iid
from tasks.blocks.work import JUDGE, POLICY, Made, Work
from tasks.blocks.work import in_order as order_of_makers
from tasks.core import digests, tables
from tasks.core.asking.demand import Counts, Demand
from tasks.core.block import Block, Bound, Options, bind, validate
from tasks.core.context import Context
from tasks.core.engines import server_renders
from tasks.core.errors import BadInput, unknown_name
from tasks.core.labels import Truth
from tasks.core.models.pointer import Pointer
from tasks.core.seeds import derive

MAKERS: dict[str, Block] = {**sample.BLOCKS, "respond_judged": refine.BLOCKS["respond_judged"]}
KINDS = ("greedy", "sample", "refined")  # of predictions, beside the ways to answer


class Section(Options):
    """The `evaluate` section as params.yaml gives it."""

    samples: int = Field(ge=1)  # a prompt
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)
    critics: dict[str, Any]  # name -> critic block
    best_of: str | None  # the critic whose score chooses among samples
    refine: dict[str, Any] | None  # a refinement block
    makers: dict[
        str, Any
    ]  # name -> a block of sample, or respond_judged, that goes on from greedy, sample or one another
    answers: dict[str, ways.Way]  # name -> how attempts give one answer; {} for none
    benchmarks: dict[str, Benchmark] | None  # name -> tasks of lm-eval
    benchmark_files: str = Field(min_length=1)  # folder with tasks of the user's own
    probe_by_prompt: bool  # probe.json also says of each prompt whether it was right; promote.significance reads it

    @field_validator("temperature")
    @classmethod
    def _apart(cls, value: float, others: ValidationInfo) -> float:
        return iid.not_all_equal(value, others, "samples")


@dataclass(frozen=True)
class Evaluation:
    """The section with its blocks bound. `own`: the critic whose verdicts are measured, None without critics."""

    samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    critics: list[Bound]
    own: str | None
    refine: Bound | None
    makers: list[Bound]
    answers: Mapping[str, ways.Way]
    benchmarks: Mapping[str, Benchmark]
    benchmark_files: str
    probe_by_prompt: bool


@dataclass(frozen=True)
class Examination:
    """What the model did with one prompt set: PREDICTIONS, CRITIQUES by the own critic, and tokens by purpose."""

    predictions: pl.DataFrame
    critiques: pl.DataFrame
    tokens: dict[str, int]
    answered: Mapping[str, float | None]  # way to answer -> its tokens a prompt


def parse(section: Mapping[str, Any]) -> Evaluation:
    """The section, checked. Raises `BadInput`, or `UnknownName` for a block or critic that does not exist."""
    given: Section = validate(Section, section, "evaluate")
    bound = bind(critique.BLOCKS, given.critics, "evaluate.critics")
    in_order(bound)
    names = [critic.name for critic in bound]
    for critic in bound:
        for read in critic.reads:
            if read.critic not in names:
                raise unknown_name("critic", read.critic, names, f"evaluate.critics.{critic.name}.{read.option}")
    refiner = None
    if given.refine is not None:
        refiner = bind(refine.BLOCKS, {"refine": given.refine}, "evaluate")[0]
    gate = getattr(refiner.options, "critic", None) if refiner else None
    for place, name in (("evaluate.best_of", given.best_of), ("evaluate.refine.critic", gate)):
        if name is not None and name not in names:
            raise unknown_name("critic", name, names, place)
    makers = order_of_makers(bind(MAKERS, given.makers, "evaluate.makers"), "evaluate.makers")
    sources = ["greedy", "sample", *(maker.name for maker in makers)]
    for name in [*given.answers, *given.makers]:
        if name in KINDS:
            where = "answers" if name in given.answers else "makers"
            raise BadInput(
                f"evaluate.{where}.{name}: is the name of answers that are there anyway ({', '.join(KINDS)}); take another"
            )
    named = [(f"evaluate.answers.{name}.of", way.of) for name, way in given.answers.items()]
    named += [(f"evaluate.makers.{maker.name}.of", getattr(maker.options, "of", [])) for maker in makers]
    for place, several in named:
        for source in several:
            if source not in sources:
                raise unknown_name("source", source, sources, place)
    for maker in makers:
        for read in maker.reads:
            if read.critic not in names:
                raise unknown_name("critic", read.critic, names, f"evaluate.makers.{maker.name}.{read.option}")
    for way, options in given.answers.items():
        if options.critic is not None and options.critic not in names:
            raise unknown_name("critic", options.critic, names, f"evaluate.answers.{way}.critic")
        if options.critic is not None and "scores" not in next(c for c in bound if c.name == options.critic).gives:
            raise BadInput(
                f"evaluate.answers.{way}.critic: given '{options.critic}', which gives no scores; name one that does"
            )
    own = given.best_of or gate or (names[0] if names else None)
    return Evaluation(
        given.samples, given.temperature, given.top_p, given.max_new_tokens, bound, own, refiner,
        makers, given.answers, given.benchmarks or {}, given.benchmark_files, given.probe_by_prompt,
    )  # fmt: skip


def run(context: Context) -> None:
    from tasks.core.models import folders

    family, options = families.read(context), context.options
    digest = folders.digest(context.path("candidate"), context.scratch / digests.KNOWN)
    model = context.model(Pointer(context.where("candidate"), digest))
    standard = []
    if options.benchmarks:
        context.read(options.benchmark_files)
        scores = not server_renders(context.engine)
        standard = benchmarks.load(options.benchmarks, context.root, options.benchmark_files, scores)
    results = {}
    for part in ("heldout", "probe"):
        models = {POLICY: model, JUDGE: model}
        work = Work(context.load(part), family, models, context.truth(family), derive(context.seed, part), part)
        results[part] = examine(work, options)
    heldout, probe = results["heldout"], results["probe"]
    figures = metrics.summary(heldout.predictions, options.samples)
    prompts = heldout.predictions["prompt_id"].n_unique()
    figures |= metrics.rounded(ways.figures(heldout.predictions, heldout.answered, prompts))
    figures |= benchmarks.measure(standard, model, context.seed)
    report: dict[str, Mapping[str, Any]] = {
        "metrics": metrics.summary(probe.predictions, options.samples),
        "guards": guards.guards(probe.predictions, probe.critiques),
    }
    if options.probe_by_prompt:
        report["by_prompt"] = metrics.by_prompt(probe.predictions)
    for name in heldout.tokens:
        context.log(**{f"{name}_tokens": heldout.tokens[name] + probe.tokens[name]})
    context.log(
        tokens=sum(sum(result.tokens.values()) for result in results.values()),
        heldout_prompts=heldout.predictions["prompt_id"].n_unique(),
        probe_prompts=probe.predictions["prompt_id"].n_unique(),
    )
    context.save("predictions", heldout.predictions)
    context.save("metrics", figures)
    context.save("probe_metrics", report)
    context.save("evaluation", {**figures, "iteration": context.iteration})


def asks(options: Evaluation, prompts: int, questions: int) -> list[Demand]:
    """What the examination of `prompts` prompts asks, at most: no two answers alike, every greedy one refused.
    `questions`: as in `tasks.core.asking.demand.Counts`."""
    counts = Counts(prompts, prompts * (1 + options.samples), questions)
    asked = [
        Demand("answer", prompts, options.max_new_tokens),
        Demand("answer", prompts * options.samples, options.max_new_tokens, options.samples),
        *(demand for critic in options.critics for demand in critic.asks(counts)),
    ]
    if options.refine is not None:
        asked += refine.asks(options.refine, options.critics, Counts(prompts, prompts, questions))
    for maker in options.makers:
        asked += refine.asks(maker, options.critics, counts)
    return asked


def examine(work: Work, options: Evaluation) -> Examination:
    """Answers, samples, critiques and refinements of one prompt set (`work.prompts`, PROMPTS with answers), and their
    truth. `work.name` names the set in progress bars."""
    part, seed = work.name, work.seed
    greedily = iid.IidK(template="answer", n=1, temperature=0.0, top_p=1.0, max_new_tokens=options.max_new_tokens)
    sampled = iid.IidK(
        template="answer",
        n=options.samples,
        temperature=options.temperature,
        top_p=options.top_p,
        max_new_tokens=options.max_new_tokens,
    )
    greedy = iid.iid_k(replace(work, name=f"{part} greedy"), greedily).candidates
    drawn = iid.iid_k(replace(work, name=f"{part} samples", seed=derive(seed, "samples")), sampled).candidates
    both = pl.concat([greedy, drawn]).with_columns(
        judged_id=pl.col("candidate_id").first().over("prompt_id", "response")
    )
    judging = replace(work, seed=derive(seed, "critics"), voters=frozenset(drawn["candidate_id"]))
    critiques = _criticise(both, judging, options.critics)
    made = Made()
    if options.refine is not None:
        before = critiques.join(greedy.select("candidate_id"), on="candidate_id", how="semi", maintain_order="left")
        refining = replace(work, name=f"{part} refine", seed=derive(seed, "refine"), critics=options.critics)
        made = options.refine(replace(refining, candidates=greedy, opinions=before))
    final = made.candidates.sort("prompt_id", pl.col("turn") * -1, "draw", "candidate_id").unique(
        "prompt_id", keep="first", maintain_order=True
    )
    more = _further(replace(judging, seed=derive(seed, "makers"), name=part), greedy, drawn, critiques, options)
    told = pl.concat([critiques, *more.opinions])
    rows = pl.concat(
        [
            greedily_answered := _rows(greedy, "greedy", both.head(greedy.height)["judged_id"]),
            samples := _rows(drawn, "sample", both.tail(drawn.height)["judged_id"]),
            _rows(final, "refined", final["candidate_id"]),
            _unanswered(work.prompts, greedy, "greedy", 1),
            _unanswered(work.prompts, drawn, "sample", options.samples),
            ways.chosen(pl.concat([greedily_answered, samples, *more.rows]), told, options.answers),
        ]
    )
    opinions = pl.concat([told, made.opinions])
    predictions = _with_truth(_with_verdicts(rows, opinions, options.own), work.prompts, work.truth)
    tokens = {
        "answer": int(pl.concat([greedy["tokens"], drawn["tokens"]]).sum()),
        "critique": int(opinions["tokens"].sum()),
        "refine": int(made.candidates["tokens"].sum()),
    }
    if options.makers:
        tokens["makers"] = sum(more.spent.values())
    own = critiques.filter(pl.col("critic") == options.own) if options.own else critiques.clear()
    spent = {"greedy": int(greedy["tokens"].sum()), "sample": int(drawn["tokens"].sum()), **more.spent}
    parents = {maker.name: getattr(maker.options, "of", []) for maker in options.makers}
    answered = {
        name: ways.tokens(way, spent, parents, told, work.prompts.height) for name, way in options.answers.items()
    }
    return Examination(predictions, own, tokens, answered)


@dataclass(frozen=True)
class Further:
    """What makers made of the answers: rows of predictions, critiques of them, and new tokens by maker."""

    rows: list[pl.DataFrame]
    opinions: list[pl.DataFrame]
    spent: dict[str, int]


def _further(
    work: Work, greedy: pl.DataFrame, drawn: pl.DataFrame, critiques: pl.DataFrame, options: Evaluation
) -> Further:
    """The makers' answers, each judged by the critics that a way asks about them and that look at a candidate alone."""
    named = [greedy.with_columns(source=pl.lit("greedy")), drawn.with_columns(source=pl.lit("sample"))]
    found, opinions = Further([], [], {}), critiques
    for maker in options.makers:
        given = replace(work, candidates=pl.concat(named), opinions=opinions, critics=options.critics)
        made = maker(given.of(maker))
        told = made.opinions
        wanted = {way.critic for way in options.answers.values() if way.critic and maker.name in way.of}
        wanted -= set(told["critic"])
        alone = [c for c in options.critics if c.name in wanted and "siblings" not in c.needs]
        told = pl.concat([told, judged(replace(work, candidates=made.candidates), alone)])
        named.append(made.candidates)
        opinions = pl.concat([opinions, told])
        found.opinions.append(told)
        found.rows.append(_rows(made.candidates, maker.name, made.candidates["candidate_id"]))
        found.spent[maker.name] = int(made.candidates["tokens"].sum())
    return found


def _criticise(answers: pl.DataFrame, work: Work, critics: Sequence[Bound]) -> pl.DataFrame:
    """CRITIQUES of the answers. Equal responses to one prompt are criticised once, under the id of the first of
    them (`judged_id`); a vote gets all of them, and only samples vote, so that k samples stay k samples."""
    everything = answers.select(list(tables.CANDIDATES))
    once = everything.filter(answers["candidate_id"] == answers["judged_id"])
    counting = [critic for critic in critics if "votes" in critic.gives]
    others = [critic for critic in critics if "votes" not in critic.gives]
    return pl.concat(
        [judged(replace(work, candidates=once), others), judged(replace(work, candidates=everything), counting)]
    )


def _rows(candidates: pl.DataFrame, kind: str, judged_id: pl.Series) -> pl.DataFrame:
    """Candidates as predictions of one kind, without difficulty, truth and verdict."""
    return candidates.select(
        "prompt_id", pl.lit(kind).alias("kind"), "draw", "response", "answer", "tokens", judged_id.alias("judged_id")
    )


def _unanswered(prompts: pl.DataFrame, answers: pl.DataFrame, kind: str, draws: int) -> pl.DataFrame:
    """Predictions, without response, for the draws to which the model gave no reply at all: an endpoint may fail."""
    wanted = prompts.select("prompt_id").join(pl.select(draw=pl.int_range(draws, dtype=pl.Int32)), how="cross")
    return wanted.join(answers, on=["prompt_id", "draw"], how="anti", maintain_order="left").select(
        "prompt_id",
        pl.lit(kind).alias("kind"),
        "draw",
        pl.lit(None, dtype=pl.String).alias("response"),
        pl.lit(None, dtype=pl.String).alias("answer"),
        pl.lit(0, dtype=pl.Int32).alias("tokens"),
        pl.lit(None, dtype=pl.String).alias("judged_id"),
    )


def _with_verdicts(rows: pl.DataFrame, critiques: pl.DataFrame, own: str | None) -> pl.DataFrame:
    """The rows with the own critic's `verdict` and `score`, null where it gave none or there is no critic."""
    if own is None:
        return rows.with_columns(verdict=pl.lit(None, dtype=pl.Boolean), score=pl.lit(None, dtype=pl.Float64))
    verdicts = aggregate(critiques, own).select(pl.col("candidate_id").alias("judged_id"), "verdict", "score")
    return rows.join(verdicts, on="judged_id", how="left", maintain_order="left")


def _with_truth(rows: pl.DataFrame, prompts: pl.DataFrame, truth: Truth) -> pl.DataFrame:
    """PREDICTIONS: the rows with `difficulty` and, where the family has truth, `correct`. No response is not right."""
    known = {row["prompt_id"]: row for row in prompts.iter_rows(named=True)}
    correct: list[bool | None] = []
    for prompt, response in rows.select("prompt_id", "response").iter_rows():
        gold = known[prompt]
        right = response is not None and truth.known and truth.verify(gold["messages"], gold["answer"], response)
        correct.append(right if truth.known else None)
    levels = [known[prompt]["difficulty"] for prompt in rows["prompt_id"]]
    return rows.with_columns(
        pl.Series("correct", correct, dtype=pl.Boolean),
        pl.Series("difficulty", levels, dtype=pl.Int32),
        pl.col("response").fill_null(""),
    ).select(list(tables.PREDICTIONS))
