"""Whether the sections of params.yaml, each of which is sound by itself, fit one another.

Every function gives problems, a line each: critics that are not there or do not say what a block asks them for,
parts that training mixes and nothing makes, blocks for which the family has no skill, labels where none may
be, a gate that nobody measures, a pool that is too small for what the iterations ask of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from flows.params.file import FILE
from flows.params.sections import BASE, options, section
from tasks import families
from tasks.core.engines import ENDPOINTS, server_renders
from tasks.core.engines.options import NO_SCORES
from tasks.core.errors import unknown_name

NEEDS_VERDICTS = {"accepted": "accepted", "critique_revise": "refined"}  # blocks, and what would not happen
NEEDS_VOTES = ("majority", "pairs_vote_margin")
NEEDS_COMPARISONS = ("pairs_preferred",)
COMPARING = ("judge_pairwise", "judge_pairwise_structured", "judge_pairwise_logprobs")  # critics of pairs
SCORES_ONLY = (  # critics without verdicts on a candidate
    *("judge_pointwise", "judge_pointwise_structured", "judge_pointwise_logprobs", "intrinsic_score"),
    *COMPARING,
)
READS_SCORES = ("judge_pointwise_logprobs", "judge_pairwise_logprobs", "judge_checklist_logprobs", "intrinsic_score")


def between_sections(params: Mapping[str, Any], key: str) -> Iterator[str]:
    """Problems between this iteration's sections, each of which is sound by itself."""
    critics = section(params, "critique", key)
    for stage in ("synthesize", "critique", "refine", "evaluate"):
        yield from unusable(stage, section(params, stage, key), params)
    yield from _near_copies(params, key)
    if not params["labels"]:
        for name, entry in critics.items():
            if _block(name, entry) == "verifier":
                yield (
                    f"critique.{name}: block verifier reads the truth, but {FILE} says `labels: false`; use a "
                    "label-free critic, or a recipe that declares labels (`python -m flows.recipe use oracle`)"
                )
    for stage in ("refine", "filter"):
        for name, entry in section(params, stage, key).items():
            if "critic" in entry and entry["critic"] not in critics:
                yield str(unknown_name("critic", str(entry["critic"]), critics, f"{stage}.{name}.critic"))
            elif "critic" in entry:
                judge = _block(entry["critic"], critics[entry["critic"]])
                yield from _opinion(f"{stage}.{name}", _block(name, entry), entry["critic"], judge)
    filters, training = section(params, "filter", key), section(params, "train", key)
    yield from _corpus_parts(filters, params)
    yield from _parts(filters, training)
    for name, entry in training.items():
        yield from _warmup(f"train.{name}", entry)
    yield from _adapters(params, key)
    yield from _gate(params, key)


def _block(name: str, entry: Mapping[str, Any]) -> str:
    return str(entry.get("block", name))


def _near_copies(params: Mapping[str, Any], key: str) -> Iterator[str]:
    """Comparisons of texts for a family whose prompts are none."""
    family = params["prepare"]["family"]
    if families.has_free_text(family):
        return
    for name, entry in section(params, "synthesize", key).items():
        if _block(name, entry) == "self_instruct" and entry["near_copy"] is not None:
            yield (
                f"synthesize.{name}.near_copy: given {entry['near_copy']}, but prompts of family {family} are no free "
                "text, and all of them are alike; use null"
            )


def _opinion(where: str, block: str, critic: str, judge: str) -> Iterator[str]:
    """Problems of a block that asks a critic for what this kind of critic never says."""
    if block in NEEDS_VERDICTS and judge in SCORES_ONLY:
        yield (
            f"{where}.critic: given '{critic}', a {judge} critic, which gives scores and no verdicts, so nothing "
            f"would be {NEEDS_VERDICTS[block]}; name a critic with verdicts, or select with `threshold`"
        )
    if block in NEEDS_VOTES and judge != "vote":
        yield (
            f"{where}.critic: given '{critic}', a {judge} critic, but {block} counts votes; add `vote: {{}}` to critique "
            "and name it here"
        )
    if block in NEEDS_COMPARISONS and judge not in COMPARING:
        yield (
            f"{where}.critic: given '{critic}', a {judge} critic, but {block} takes pairs that were compared; name a "
            f"critic of block {' or '.join(COMPARING)}"
        )


def unusable(stage: str, given: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[str]:
    """Blocks of the section for which the family has no skill."""
    family = params["prepare"]["family"]
    where, blocks = (f"{stage}.critics", given["critics"]) if stage == "evaluate" else (stage, given)
    entries = {f"{where}.{name}": _block(name, entry) for name, entry in blocks.items()}
    if stage == "evaluate" and given["refine"] is not None:
        entries["evaluate.refine"] = _block("refine", given["refine"])
    lacking = families.unusable(family)
    critics = given["critics"] if stage == "evaluate" else given if stage == "critique" else {}
    for name, entry in critics.items():
        place = f"evaluate.critics.{name}" if stage == "evaluate" else f"critique.{name}"
        yield from _scores(place, _block(name, entry), entry, params["engine"])
    for name, benchmark in (given["benchmarks"] or {}).items() if stage == "evaluate" else ():
        if server_renders(params["engine"]) and not benchmark["chat_template"]:
            yield (
                f"evaluate.benchmarks.{name}.chat_template: given false, so questions are plain text, and "
                "engine.endpoint.protocol is chat, which takes messages alone; set it to true, or use the protocol completions"
            )
    for place, block in entries.items():
        if stage == "evaluate" and block in COMPARING:
            yield f"{place}: block {block} compares answers and judges none by itself; evaluate with another critic"
        if block in lacking:
            yield f"{place}: block {block} cannot work with family {family}: {lacking[block]}; leave the block out"


def _scores(place: str, block: str, entry: Mapping[str, Any], engine: Mapping[str, Any]) -> Iterator[str]:
    """Problems of a critic that reads what the engine has no way to tell."""
    if block not in READS_SCORES or engine["name"] not in ENDPOINTS:
        return
    if entry.get("statistic", "logprob") != "logprob":
        yield (
            f"{place}.statistic: given {entry['statistic']}, which takes the probabilities of the whole vocabulary, and no "
            "server tells them; use engine.name: transformers or vllm, or statistic: logprob"
        )
    elif server_renders(engine):
        yield (
            f"{place}: block {block} reads log-probabilities of given text, and {NO_SCORES}, or a block that ends in _structured"
        )


def _corpus(params: Mapping[str, Any]) -> list[str]:
    prepare = params["prepare"]
    return families.parts(
        prepare["family"], families.with_source(prepare["family"], prepare["options"], prepare["source"])
    )


def base(params: Mapping[str, Any]) -> Iterator[str]:
    """Whether base trains on what the corpus has, and for long enough."""
    given = params["base"]
    if given["pretrained"] is not None:
        return
    if params["prepare"]["options"].get("labelled") == 0:
        yield (
            "base.pretrained: given null, and prepare.options.labelled is 0, so there is no seed corpus to train "
            "a base model on; name a pretrained model, or give the labels of some rows"
        )
        return
    yield from _warmup("base.sft", given["sft"])
    parts, mixture = _corpus(params), given["sft"]["mixture"]
    for part, rows in mixture.items():
        if rows and part not in parts:
            yield str(unknown_name("part", part, parts, "base.sft.mixture (what the corpus has)"))
    if unnamed := sorted(set(parts) - set(mixture)):
        yield f"base.sft.mixture: the corpus has {', '.join(unnamed)} too; say how many rows a step takes, or 0"


def _corpus_parts(filters: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[str]:
    """What filter replays must be what the corpus has."""
    for name, entry in filters.items():
        if _block(name, entry) == "replay":
            parts = _corpus(params)
            for part in entry["parts"]:
                if part not in parts:
                    yield str(unknown_name("part", part, parts, f"filter.{name}.parts (what the corpus has)"))


def _warmup(where: str, entry: Mapping[str, Any]) -> Iterator[str]:
    if entry["warmup_steps"] > entry["steps"]:
        yield (
            f"{where}.warmup_steps: given {entry['warmup_steps']}, but there are {entry['steps']} steps, so the learning "
            "rate would never be reached; lower it"
        )


def _adapters(params: Mapping[str, Any], key: str) -> Iterator[str]:
    """An adapter that is kept is trained on by the next block and the next iteration, so they must have its shape."""
    initial = params["iterations"][key]["initial"]
    before = {} if initial == BASE else section(params, "train", initial)
    shape = None
    for entry in _in_order(before).values():
        shape = _shape(entry) if _keeps(entry) else None
    for name, entry in _in_order(section(params, "train", key)).items():
        own = _shape(entry)
        if own and shape and own != shape:
            yield (
                f"train.{name}.lora: given {own}, but the adapter that it starts from has {shape}, and is trained on; "
                "give the same, or let what makes that one `merge` it"
            )
        shape = own if _keeps(entry) else None


def _in_order(training: Mapping[str, Any]) -> dict[str, Any]:
    """The blocks of a train section as they run."""
    return dict(sorted(training.items(), key=lambda item: (_block(*item) == "dpo", item[0])))


def _keeps(entry: Mapping[str, Any]) -> bool:
    return entry["lora"] is not None and entry["lora"]["adapter"] == "keep"


def _shape(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    lora = entry["lora"]
    return lora and {"rank": lora["rank"], "alpha": lora["alpha"], "targets": sorted(lora["targets"])}


def _gate(params: Mapping[str, Any], key: str) -> Iterator[str]:
    """Whether the iteration and the one before it measure what promotion compares."""
    promote, metrics = import_module("tasks.promote"), import_module("tasks.blocks.evaluate.metrics")
    metric, prepare = section(params, "promote", key)["metric"], params["prepare"]
    given = families.with_source(prepare["family"], prepare["options"], prepare["source"])
    levels = families.difficulties(prepare["family"], given)
    for measured in (params["iterations"][key]["previous"], key):
        evaluation = options(params, "evaluate", measured)
        own = next((critic.block.__name__ for critic in evaluation.critics if critic.name == evaluation.own), None)
        verdicts = own is not None and own not in SCORES_ONLY
        known = metrics.names(evaluation.samples, levels, own is not None, verdicts, evaluation.refine is not None)
        gates = [name for name in known if name in promote.GATES or promote.COUNTED.fullmatch(name)]
        if metric not in (*gates, *promote.LABEL_FREE):
            place = f" in {measured}" if params["evaluations"][measured] else ""
            where = f"promote.metric (what evaluate measures{place})"
            advice = "; evaluate.samples, critics and refine decide what is measured"
            yield f"{unknown_name('metric', metric, {*gates, *promote.LABEL_FREE}, where)}{advice}"
            return


def _parts(filters: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[str]:
    """What train mixes must be what filter makes."""
    entries = [(_block(name, entry), entry) for name, entry in filters.items()]
    blocks = {block for block, _ in entries}
    rows = {part for block, entry in entries if block == "replay" for part in entry["parts"]}
    if "positives" in blocks:
        rows.add("own")
        if any(block == "accumulate" and entry["apart"] for block, entry in entries):
            rows.add("earlier")
    for name, entry in training.items():
        block = _block(name, entry)
        if block == "dpo" and not any(made.startswith("pairs_") for made in blocks):
            yield f"train.{name}: dpo trains on pairs, and no block of filter makes any; add one (pairs_best_worst)"
        wanted = entry.get("mixture") if block == "sft" else entry.get("replay")
        for part, share in (wanted or {}).items():
            if share and part not in rows:
                place = f"train.{name}.{'mixture' if block == 'sft' else 'replay'}"
                hint = "" if part not in ("own", "earlier") else "; `positives` makes own, `accumulate` earlier"
                yield f"{unknown_name('part', str(part), rows, f'{place} (what filter makes)')}{hint}"
        if block == "sft" and (unnamed := sorted(rows - set(wanted or {}))):
            yield f"train.{name}.mixture: filter makes {', '.join(unnamed)} too; say how many rows a step takes, or 0"


def supply(params: Mapping[str, Any], keys: Sequence[str], pool: Mapping[int, int]) -> Iterator[str]:
    """Whether the pool, prompts by difficulty, has as many as every iteration asks for. A curriculum's difficulty is
    `start`, then `step` more than the hardest prompt of the previous iteration, where that can be known."""
    hardest: dict[str, int | None] = {}
    told: set[str] = set()
    for key in keys:
        previous = params["iterations"][key]["previous"]
        levels: list[int | None] = []
        for name, entry in section(params, "synthesize", key).items():
            block, level = _block(name, entry), None
            if block == "difficulty_curriculum":
                before = hardest.get(previous)
                level = entry["start"] if previous == BASE else None if before is None else before + entry["step"]
            levels.append(level)
            there = sum(pool.values()) if block == "fixed_unlabeled" else None if level is None else pool.get(level, 0)
            if there is not None and entry["n"] > there and name not in told:
                told.add(name)
                kind = "" if level is None else f" of difficulty {level}"
                longer = "" if level is None else f", and difficulties {min(pool)} to {max(pool)}"
                yield (
                    f"synthesize.{name}: {key} asks for {entry['n']} prompts{kind}, but the pool has {there}{longer}; "
                    "lower n, let there be fewer iterations, or make a larger pool in prepare.options"
                )
        hardest[key] = None if None in levels or not levels else max(level for level in levels if level is not None)
