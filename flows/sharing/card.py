"""The model card of an exported model: where it comes from, what it was trained on, how good it is, what it is not.

The words are in `model_card.md`, a template of huggingface_hub's card class, so that the hub reads it. The figures are
read from the artifacts, `params.yaml` and the recipe's file; nothing is estimated, and what no artifact says is left out.
No path of this machine goes into it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.history import lock
from flows.history.artifacts import Artifacts, Record
from flows.params import compose, sections
from tasks.blocks.evaluate.benchmarks import PREFIX, scores
from tasks.core.catalog import BASE
from tasks.core.models import hub
from tasks.core.uncertainty import Z95

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

TEMPLATE = Path(__file__).with_name("model_card.md")
SHOWN = {  # figure -> what the table of metrics calls it; where it has values
    "accuracy": "accuracy",
    "pass_at_8": "pass@8",
    "maj_at_8": "majority of 8",
    "critique_precision": "critique precision",
    "critique_recall": "critique recall",
    "refine_wrong_to_right": "refined, wrong to right",
    "refine_right_to_wrong": "refined, right to wrong",
    "response_tokens": "tokens of a response",
}


def model_card(root: Path, params: Mapping[str, Any], iteration: str, commit: str, adapter_of: str | None) -> str:
    """The text of README.md for the model of an iteration. `adapter_of`: the base's name, for an adapter."""
    from huggingface_hub import ModelCard

    artifacts = Artifacts(root)
    iterations = [k for k in artifacts.iterations if sections.number(k) <= sections.number(iteration)]
    given = compose.read(params["recipe"]) if params["recipe"] in compose.names() else None
    pretrained = params["base"]["pretrained"]
    policies = {k: artifacts.record("policy", k) for k in iterations}
    card = ModelCard.from_template(
        _header(artifacts, params, iteration, adapter_of),
        template_path=str(TEMPLATE),
        recipe=params["recipe"],
        iteration=iteration,
        about=f"{given.title} ({given.paper})" if given else "a recipe of the user's own",
        summary=given.summary.strip() if given else "",
        family=params["prepare"]["family"],
        labels=params["labels"],
        adapter=adapter_of is not None,
        pretrained=public(pretrained) if pretrained else None,
        lineage=_lineage(artifacts, policies),
        reasons=[(k, policy["reason"]) for k, policy in policies.items() if policy],
        commit=commit,
        parameters=lock.evolution_id(params)[:12],
        seed=params["seed"],
        data=_data(artifacts, iterations),
        metrics=_metrics(artifacts, iterations),
        critics=", ".join(sorted(params["critique"])),
        precision=artifacts.record("metrics", iteration).get("critique_precision"),
    )
    return str(card.content)


def dataset_card(root: Path, params: Mapping[str, Any], iteration: str, text: str) -> str:
    """The text of README.md for the dataset of an iteration: `text`, the artifact's own, and what is counted."""
    return f"{text}\nRecipe {params['recipe']}, iteration {iteration}.\n\n{_data(Artifacts(root), [iteration])}"


def public(path: str) -> str:
    """A model's path as others may see it: of a folder outside the repository, its name."""
    place = Path(path).expanduser()
    return place.name if place.is_absolute() or ".." in place.parts else path


def base_name(params: Mapping[str, Any]) -> str | None:
    """The hub name of the pretrained model, None where there is none."""
    given = params["base"]["pretrained"]
    return given if isinstance(given, str) and hub.NAME.fullmatch(given) and not Path(given).is_dir() else None


def _header(artifacts: Artifacts, params: Mapping[str, Any], iteration: str, adapter_of: str | None) -> "ModelCardData":
    """What the hub reads of the card."""
    from huggingface_hub import EvalResult, ModelCardData

    figures = artifacts.record("metrics", iteration)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=str(params["prepare"]["family"]),
            dataset_name=f"{params['prepare']['family']}, held out",
            metric_type=name,
            metric_value=figures[name],
            metric_name=SHOWN[name],
        )
        for name in ("accuracy", "pass_at_8")
        if figures.get(name) is not None
    ]
    return ModelCardData(
        base_model=adapter_of or base_name(params),
        library_name="peft" if adapter_of else "transformers",
        pipeline_tag="text-generation",
        tags=["autodidact", "self-improvement", str(params["recipe"])],
        model_name=f"{params['recipe']}-{iteration}",
        eval_results=results or None,
    )


def _lineage(artifacts: Artifacts, policies: Mapping[str, Record]) -> str:
    rows = [["iteration", "model", "from", "reference", "judge", "policy after it"]]
    for iteration, policy in policies.items():
        model = artifacts.model(iteration)
        made_of = (_named(model[role]) for role in ("initial", "reference", "judge"))
        rows.append([iteration, _short(model["digest"]), *made_of, _named(policy)])
    return _table(rows)


def _data(artifacts: Artifacts, iterations: Sequence[str]) -> str:
    rows = [["iteration", "prompts", "samples", "refinements", "candidates dropped", "rows", "new rows", "pairs"]]
    reasons = []
    for iteration in iterations:
        if iteration == BASE:
            continue
        counts = {
            name: artifacts.table(name, iteration, columns=[column]).height
            for name, column in (("prompts", "prompt_id"), ("samples", "candidate_id"), ("refinements", "candidate_id"))
        }
        dropped = artifacts.table("dropped", iteration)
        sft = artifacts.table("sft", iteration, columns=["part", "iteration"])
        pairs = artifacts.table("pairs", iteration, columns=["part"])
        own = sft.filter((pl.col("part") == "own") & (pl.col("iteration") == iteration))
        numbers = [*counts.values(), dropped["row_id"].n_unique(), sft.height, own.height, pairs.height]
        rows.append([iteration, *(f"{number:,}" for number in numbers)])
        why = dropped.group_by("block", "reason").len().sort("len", "block", "reason", descending=[True, False, False])
        reasons += [f"- {iteration}: {count:,} by `{block}`: {reason}" for block, reason, count in why.iter_rows()]
    if len(rows) == 1:
        return "## Data\n\nNo iteration has made data for this model.\n"
    told = "\nDropped, by block and reason:\n\n" + "\n".join(reasons) if reasons else ""
    return (
        "## Data\n\nRows are what training could draw from: the model's own (new ones of this iteration, and earlier ones "
        "where the recipe keeps them) and, where it replays them, rows of the labelled seed corpus.\n\n"
        f"{_table(rows)}{told}\n"
    )


def _metrics(artifacts: Artifacts, iterations: Sequence[str]) -> str:
    figures = {iteration: artifacts.record("metrics", iteration) for iteration in iterations}
    measured = scores(name for own in figures.values() for name in own)
    names = SHOWN | {name: name.removeprefix(PREFIX) for name in measured}
    rows = [["figure", *iterations]]
    for name, label in names.items():
        if any(own.get(name) is not None for own in figures.values()):
            rows.append([label, *(_value(own, name) for own in figures.values())])
    return _table(rows) if len(rows) > 1 else ""


def _value(figures: Record, name: str) -> str:
    value = figures.get(name)
    if value is None:
        return "-"
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    if (error := figures.get(f"{name}_stderr")) is not None:
        low, high = value - Z95 * error, value + Z95 * error
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")


def _named(pointer: Record | None) -> str:
    return f"{public(pointer['path'])} {_short(pointer['digest'])}" if pointer and "path" in pointer else "-"


def _short(digest: str | None) -> str:
    return f"`{digest[:12]}`" if digest else "-"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
