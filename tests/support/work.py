"""What blocks and stages are given in tests: prompts, candidates, a state, a context."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from ruamel.yaml import YAML

from tasks.blocks import filter
from tasks.blocks.filter.selection import Selection
from tasks.blocks.sample.candidates import Asked, candidates
from tasks.blocks.work import JUDGE, POLICY, Work
from tasks.core import tables
from tasks.core.asking.model import Model
from tasks.core.block import Bound, bind
from tasks.core.catalog import ARTIFACTS
from tasks.core.context import Context
from tasks.core.labels import Truth
from tests.support.family import Adding
from tests.support.models import ENGINE, replied
from tests.support.tiny import user


def prompts(*texts: str, family: str = "adding") -> pl.DataFrame:
    rows = [
        {
            "prompt_id": tables.prompt_id(family, user(text)),
            "messages": user(text),
            "family": family,
            "difficulty": len(text),
            "source": "test",
            "parent_ids": [],
            "answer": None,
        }
        for text in texts
    ]
    return tables.frame(rows, tables.PROMPTS)


def sampled(table: pl.DataFrame, *responses: Sequence[str], family: Any = None) -> pl.DataFrame:
    """CANDIDATES with these responses to each prompt of the table."""
    replies = [[replied("", text) for text in several] for several in responses]
    asked = [Asked(*row) for row in table.select("prompt_id", "messages", again="messages").iter_rows()]
    return candidates(family or Adding(), "m", "iid", 0, asked, replies)


def work(
    table: pl.DataFrame, model: Model | None = None, stage: str = "critique", labels: bool = False, **given: Any
) -> Work:
    """What blocks are given that ask one model, in both its roles, about prompts."""
    family = given.pop("family", None) or Adding()
    models = {POLICY: model, JUDGE: model} if model is not None else {}
    return Work(table, family, models, Truth(family, stage, labels), **{"seed": 1, "name": stage} | given)


def bound(blocks: Any, name: str, **options: Any) -> Bound:
    """One block with these options, under its own name."""
    [made] = bind(blocks, {name: options}, "here")
    return made


def through(state: Selection, **section: Any) -> Selection:
    """What the filter blocks of a section make of a selection."""
    for bound in filter.in_order(bind(filter.BLOCKS, section, "filter")):
        state = bound(state)
    return state


ROWS: dict[str, Any] = {"of": [], "reads": "prompt", "weight": None, "part": "own"}


def pairs(chosen: str = "best", rejected: str = "worst", **changes: Any) -> dict[str, Any]:
    """Options of the block `pairs`. `changes`: to them, `critic` and `at_least` to its pickers."""
    critic, gate = changes.pop("critic"), changes.pop("at_least", None)
    side = {"of": [], "critic": critic, "tier": 0.0, "tie": "id"}
    return {
        "block": "pairs",
        "within": "prompt",
        "chosen": {**side, "pick": chosen, "at_least": gate},
        "rejected": {**side, "pick": rejected, "at_least": None},
        "min_margin": 1e-6,
        "per_prompt": 1,
        "weight": None,
        "smoothing": 0.0,
        "part": "own",
        **changes,
    }


def context(root: Path, stage: str, key: str | None, options: Any, open_model: Any = None, **given: Any) -> Context:
    """A context whose outputs land below `root` itself."""
    row = {"previous": "i00", "initial": "i00", "reference": "i00", "judge": "i00", "past": "i00"}
    fields: dict[str, Any] = {"row": row, "seed": 1, "labels": False, "engine": ENGINE, "scratch": root / "scratch"}
    fields.update(given)
    return Context(stage, key, options=options, root=root, staging=root, open_model=open_model, **fields)


def predicted(root: Path, iteration: str, right: str, samples: str = "", said: str = "") -> None:
    """An iteration's predictions: a greedy answer for each letter of `right` (r, w, or ? where nobody knows), as many
    samples of each prompt as `samples` has letters, likewise. `said`: what the answers begin with."""
    rows = []
    for place, letter in enumerate(right):
        for draw, (kind, mark) in enumerate([("greedy", letter), *(("sample", mark) for mark in samples)]):
            answer = f"{said}{place} {mark}"
            known = {"r": True, "w": False, "?": None}[mark]
            rows.append((f"{place:016x}", kind, draw, 1, f"it is {answer}", answer, known, None, None, 4))
    table = pl.DataFrame(rows, schema=tables.PREDICTIONS, orient="row")
    tables.write(table, root / ARTIFACTS["predictions"].at(iteration), tables.PREDICTIONS)


def write_yaml(path: Path, value: Any) -> None:
    """With the library that reads params.yaml and dvc.lock."""
    with path.open("w") as file:
        YAML(typ="safe").dump(value, file)


def text_options(**changes: Any) -> dict[str, Any]:
    """`prepare.options` of the text family over fields `q` and `a` of `p.jsonl`, else as its recipes have them."""
    from flows.params import compose

    own: dict[str, Any] = compose.compose("lmsi", "text")["prepare"]["options"]
    return own | {"path": "p.jsonl", "prompt_field": "q", "answer_field": "a"} | changes
