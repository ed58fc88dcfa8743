"""The model card of an exported model: where it comes from, what it was trained on, how good it is, what it is not.

Everything is read from the artifacts, `params.yaml` and the recipe's file; nothing is estimated, and what no artifact
says is left out. The header is huggingface_hub's own, so that the hub reads it. No path of this machine goes into it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from flows.history import lock
from flows.history.artifacts import Artifacts, Record
from flows.params import compose, sections
from tasks.blocks.evaluate.benchmarks import PREFIX, scores
from tasks.blocks.evaluate.metrics import Z95
from tasks.core.catalog import BASE
from tasks.core.models import hub

EVERYTHING = pl.lit(True)
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


def model_card(root: Path, params: Mapping[str, Any], key: str, commit: str, adapter_of: str | None) -> str:
    """The text of README.md for the model of iteration `key`. `adapter_of`: the base's name, for an adapter."""
    artifacts = Artifacts(root)
    keys = [k for k in artifacts.keys if sections.number(k) <= sections.number(key)]
    given = compose.read(params["recipe"]) if params["recipe"] in compose.names() else None
    parts = [
        _header(artifacts, params, key, adapter_of),
        f"# {params['recipe']} {key}\n",
        _opening(params, key, given),
        _use(adapter_of),
        _lineage(artifacts, params, keys, commit),
        _data(artifacts, keys),
        _metrics(artifacts, keys),
        _limits(artifacts, params, keys),
        "## Licence\n\nNone is stated: that is for you to choose, within the licences of the model and of the prompts that "
        "the training started from.\n",
    ]
    return "\n".join(parts)


def dataset_card(root: Path, params: Mapping[str, Any], key: str, text: str) -> str:
    """The text of README.md for the dataset of iteration `key`: `text`, the artifact's own, and what is counted."""
    return f"{text}\nRecipe {params['recipe']}, iteration {key}.\n\n{_data(Artifacts(root), [key])}"


def public(path: str) -> str:
    """A model's path as others may see it: of a folder outside the repository, its name."""
    place = Path(path).expanduser()
    return place.name if place.is_absolute() or ".." in place.parts else path


def base_name(params: Mapping[str, Any]) -> str | None:
    """The hub name of the pretrained model, None where there is none."""
    given = params["base"]["pretrained"]
    return given if isinstance(given, str) and hub.NAME.fullmatch(given) and not Path(given).is_dir() else None


def _header(artifacts: Artifacts, params: Mapping[str, Any], key: str, adapter_of: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    figures = artifacts.record(key, "evaluation/metrics")
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
    data = ModelCardData(
        base_model=adapter_of or base_name(params),
        library_name="peft" if adapter_of else "transformers",
        pipeline_tag="text-generation",
        tags=["autodidact", "self-improvement", str(params["recipe"])],
        model_name=f"{params['recipe']}-{key}",
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _opening(params: Mapping[str, Any], key: str, given: compose.Recipe | None) -> str:
    labels = "saw the answers (it is a yardstick)" if params["labels"] else "saw no answers"
    about = f"{given.title} ({given.paper})" if given else "a recipe of the user's own"
    told = f"\n\n{given.summary.strip()}" if given else ""
    return (
        f"A language model that trained itself with autodidact: recipe `{params['recipe']}`, {about}; task family "
        f"`{params['prepare']['family']}`; iteration {key}. The loop {labels}.{told}\n"
    )


def _use(adapter_of: str | None) -> str:
    name = "AutoPeftModelForCausalLM" if adapter_of else "AutoModelForCausalLM"
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    if adapter_of:
        imports = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
    return (
        "## Use\n\n```python\n"
        f"{imports}\n\n"
        'folder = "."  # this folder, or its name on the hub\n'
        f"model = {name}.from_pretrained(folder)\ntokenizer = AutoTokenizer.from_pretrained(folder)\n"
        'messages = [{"role": "user", "content": "..."}]\n'
        'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)\n'
        "reply = model.generate(**inputs, max_new_tokens=64)\n```\n"
    )


def _lineage(artifacts: Artifacts, params: Mapping[str, Any], keys: Sequence[str], commit: str) -> str:
    rows = [["iteration", "model", "from", "reference", "judge", "policy after it"]]
    for key in keys:
        model = artifacts.model(key)
        policy = artifacts.record(key, "policy")
        rows.append(
            [
                key,
                _short(model["digest"]),
                *(_named(model[role]) for role in ("initial", "reference", "judge")),
                _named(policy),
            ]
        )
    base = params["base"]["pretrained"]
    start = f"the pretrained model {public(base)}" if base else "a model trained on the labelled seed corpus alone"
    reasons = [
        f"- {key}: {artifacts.record(key, 'policy')['reason']}" for key in keys if artifacts.record(key, "policy")
    ]
    return (
        f"## Lineage\n\ni00 is {start}. Models by folder and the first digits of their content's digest.\n\n"
        + _table(rows)
        + "\n"
        + "\n".join(reasons)
        + f"\n\nMade from commit `{commit}`, parameters `{lock.evolution_id(params)[:12]}`, seed {params['seed']}.\n"
    )


def _data(artifacts: Artifacts, keys: Sequence[str]) -> str:
    rows = [["iteration", "prompts", "samples", "refinements", "candidates dropped", "rows", "new rows", "pairs"]]
    reasons = []
    for key in keys:
        if key == BASE:
            continue
        counts = {
            name: artifacts.table(key, name, EVERYTHING, [column]).height
            for name, column in (("prompts", "prompt_id"), ("samples", "candidate_id"), ("refinements", "candidate_id"))
        }
        dropped = artifacts.table(key, "dataset/dropped", EVERYTHING)
        sft = artifacts.table(key, "dataset/sft", EVERYTHING, ["part", "iteration"])
        pairs = artifacts.table(key, "dataset/pairs", EVERYTHING, ["part"])
        own = sft.filter((pl.col("part") == "own") & (pl.col("iteration") == key))
        numbers = [*counts.values(), dropped["row_id"].n_unique(), sft.height, own.height, pairs.height]
        rows.append([key, *(f"{number:,}" for number in numbers)])
        why = dropped.group_by("block", "reason").len().sort("len", "block", "reason", descending=[True, False, False])
        reasons += [f"- {key}: {count:,} by `{block}`: {reason}" for block, reason, count in why.iter_rows()]
    if len(rows) == 1:
        return "## Data\n\nNo iteration has made data for this model.\n"
    told = "\nDropped, by block and reason:\n\n" + "\n".join(reasons) if reasons else ""
    return (
        "## Data\n\nRows are what training could draw from: the model's own (new ones of this iteration, and earlier ones "
        "where the recipe keeps them) and, where it replays them, rows of the labelled seed corpus.\n\n"
        f"{_table(rows)}{told}\n"
    )


def _metrics(artifacts: Artifacts, keys: Sequence[str]) -> str:
    figures = {key: artifacts.record(key, "evaluation/metrics") for key in keys}
    measured = scores(name for own in figures.values() for name in own)
    names = SHOWN | {name: name.removeprefix(PREFIX) for name in measured}
    rows = [["figure", *keys]]
    for name, label in names.items():
        if any(own.get(name) is not None for own in figures.values()):
            rows.append([label, *(_value(own, name) for own in figures.values())])
    if len(rows) == 1:
        return "## Metrics\n\nNone was measured.\n"
    return (
        "## Metrics\n\nOn held-out prompts that nothing in the loop reads; shares in 0 to 1. In brackets the 95 % interval, "
        f"where there is one.\n\n{_table(rows)}"
    )


def _limits(artifacts: Artifacts, params: Mapping[str, Any], keys: Sequence[str]) -> str:
    last = artifacts.record(keys[-1], "evaluation/metrics")
    critics = sorted(params["critique"])
    lines = ["## Limits\n"]
    if critics:
        right = last.get("critique_precision")
        how = f" Of what it accepts on held-out prompts, {100 * right:.1f} % is right." if right is not None else ""
        lines.append(
            f"- The critic ({', '.join(critics)}) decides what is trained on. It is no proof: it accepts wrong answers, "
            f"and it can drift as the model learns what it accepts.{how}"
        )
    else:
        lines.append("- No critic looked at the answers that were trained on.")
    lines.append(
        "- The loop read the answers of its prompts: this model is an upper bound, not a result of self-improvement."
        if params["labels"]
        else "- No stage of the loop read an answer, but `promote` compares candidates on a small labelled probe set where "
        "the family has answers, and the metrics here are labelled."
    )
    if not params["base"]["pretrained"]:
        lines.append("- i00 was trained on a labelled seed corpus; rows of it may be replayed in every iteration.")
    lines.append(
        "- Measured on one task family with one seed; an interval covers the choice of prompts, not of the seed."
    )
    return "\n".join(lines) + "\n"


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
