"""Where something comes from and what became of it: `python -m flows.trace ID [--all] [--json]`.

ID is the id of a prompt, a candidate, a dataset row or a model (its digest), or an unambiguous beginning of at least
six characters. Printed is its life: for a prompt the samples with their critiques, refinements and what the filter
said, the dataset rows they became, and the models that were trained on those, with their initial and reference models;
for a model its data, its gate, its held-out accuracy and where it was used. Long lists and texts are cut with a count
of the rest; `--all` prints everything; `--json` prints the whole record (flows/history/lives.py).

Text that a model wrote is shown with its control characters spelt out, so that it cannot steer a terminal.
Exit codes: 0, or 2 for an id that is too short, unknown or ambiguous. Reads artifacts, writes nothing.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.history.artifacts import Record

SHOWN = 20  # entries of a list
LETTERS = 400  # of a text
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode categories that are spelt out


@dataclass
class Page:
    """Lines with their styles. `everything`: nothing is cut. `names`: digest -> the iteration that made the model."""

    everything: bool
    names: Mapping[str, str] = field(default_factory=dict)
    lines: list[tuple[str, str]] = field(default_factory=list)

    def add(self, depth: int, text: str, style: str = "") -> None:
        self.lines.append((f"{'  ' * depth}{printable(text)}".rstrip(), style))

    def text(self, depth: int, label: str, text: str | None, style: str = "") -> None:
        """A text after its label: on the same line, or on lines of its own where it has several."""
        whole = text if text is not None else "(none)"
        cut = whole if self.everything or len(whole) <= LETTERS else whole[:LETTERS]
        rest = f" ... ({len(whole)} characters, --all)" if len(cut) < len(whole) else ""
        lines = cut.split("\n")
        if len(lines) == 1:
            self.add(depth, f"{label}  {cut}{rest}", style)
            return
        self.add(depth, label, style)
        for number, line in enumerate(lines, 1):
            self.add(depth, f"| {line}{rest if number == len(lines) else ''}", style)

    def some(self, depth: int, entries: Sequence[Any], what: str) -> Iterable[Any]:
        """The entries to show; after them a line that counts the rest."""
        shown = entries if self.everything else entries[:SHOWN]
        yield from shown
        if len(shown) < len(entries):
            self.add(depth, f"... and {len(entries) - len(shown)} more {what} (--all)", "dim")

    def model(self, pointer: Mapping[str, Any] | str | None) -> str:
        """How a model is named: the iteration that made it or its path, and its digest."""
        if not pointer:
            return "unknown"
        digest = pointer if isinstance(pointer, str) else str(pointer.get("digest") or "digest not recorded")
        path = "" if isinstance(pointer, str) else str(pointer.get("path") or "")
        return " ".join(part for part in (self.names.get(digest, path), digest) if part)


def printable(text: str) -> str:
    """The text with every control, format or unassigned character as its escape."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in HIDDEN else c for c in text.replace("\n", " ")
    )


def page(record: Record, everything: bool) -> Page:
    """The record as lines."""
    known = [
        *record["models"],
        *[m[r] for m in record["models"] for r in ("initial", "reference", "judge") if m.get(r)],
    ]
    made = Page(everything, {m["digest"]: str(m["path"]) for m in known if m.get("digest")})
    made.add(0, f"{record['kind']} {record['id']}", "bold")
    if record["kind"] == "model":
        _model(made, record)
    else:
        if record["kind"] == "row":
            _rows(made, record["rows"])
        if record["prompt"]:
            _prompt(made, record["prompt"], record["kind"] != "prompt")
        _candidates(made, record)
        if record["kind"] != "row":
            _rows(made, record["rows"])
        _trained(made, record["models"])
    if record["missing"]:
        made.add(0, f"not there, so not looked at: {', '.join(record['missing'])}", "yellow")
        made.add(0, "`dvc repro` makes what is missing; `dvc checkout` or `dvc pull` restores it", "yellow")
    return made


def _prompt(made: Page, prompt: Record, named: bool) -> None:
    if named:
        made.add(0, f"prompt {prompt['prompt_id']}", "bold")
    if prompt["messages"] is None:
        made.add(1, "its text is not there")
    for message in prompt["messages"] or []:
        made.text(1, message["role"], message["content"])
    if prompt["family"]:
        made.add(1, f"family {prompt['family']}, difficulty {prompt['difficulty']}")
    if prompt["answer"] is not None:
        made.text(1, "answer", prompt["answer"])
    places = [f"{source['where']} ({source['block']})" for source in prompt["sources"]]
    made.add(1, f"in {', '.join(places) or 'no table of prompts'}")
    for origin in prompt["origins"]:
        own = f", id {origin['id']}" if origin["id"] else ""
        made.add(1, f"from {origin['file']}, row {origin['row']}{own}")
    for name, ids in (("parents", prompt["parent_ids"]), ("children", prompt["children"])):
        for other in made.some(1, ids, name):
            made.add(1, f"{name.removesuffix('s') if name == 'parents' else 'child'} {other}")
    for row in made.some(1, prompt.get("predictions", []), "evaluated answers"):
        truth = {True: "right", False: "wrong", None: "truth unknown"}[row["correct"]]
        made.text(1, f"evaluated in {row['iteration']}, {row['kind']} {row['draw']}, {truth}:", row["response"])


def _candidates(made: Page, record: Record) -> None:
    several = record["kind"] != "prompt"
    for iteration, trees in record["candidates"].items():
        made.add(
            0,
            f"{'candidate' if several else 'samples'} of {iteration}" + ("" if several else f": {len(trees)}"),
            "bold",
        )
        above = record["ancestors"].get(iteration, [])
        for depth, ancestor in enumerate(above):
            _candidate(made, {**ancestor, "refinements": []}, 1 + depth)
        for tree in made.some(1, trees, "samples"):
            _candidate(made, tree, 1 + len(above))


def _candidate(made: Page, candidate: Record, depth: int) -> None:
    what = "refinement" if candidate["parent_id"] else "sample"
    made.add(depth, f"{what} {candidate['candidate_id']}  {candidate['source'] or ''}", "cyan")
    if candidate["model"]:
        made.text(depth + 1, f"turn {candidate['turn']}, draw {candidate['draw']}:", candidate["response"])
        logprob = "unknown" if candidate["logprob"] is None else f"{candidate['logprob']:.3f}"
        figures = f"{candidate['tokens']} tokens, log-probability {logprob}, {candidate['finish_reason']}"
        if candidate["answer"] is None:
            figures += ", no answer"
        made.add(depth + 1, f"{figures}, by {made.model(candidate['model'])}")
    else:
        made.add(depth + 1, "its text is not there")
    for critique in made.some(depth + 1, candidate["critiques"], "critiques"):
        _critique(made, critique, depth + 1)
    fate = candidate["fate"]
    label = {True: "kept", False: "not kept", None: "unknown"}[fate["kept"]]
    rest = [f"row {row}" for row in fate["rows"]] + fate["why"]
    style = {True: "green", False: "red", None: "yellow"}[fate["kept"]]
    made.add(depth + 1, f"{label}: {'; '.join(rest)}", style)
    for other in made.some(depth + 1, candidate["refinements"], "refinements"):
        _candidate(made, other, depth + 1)


def _critique(made: Page, critique: Record, depth: int) -> None:
    if critique["parsed"]:
        words = ("better", "worse", "no preference") if critique["other_id"] else ("accepts", "refuses", "no verdict")
        verdict = dict(zip((True, False, None), words, strict=True))[critique["verdict"]]
        said = verdict + ("" if critique["score"] is None else f", score {critique['score']:.3f}")
    else:
        said = f"not parsed: {critique['why']}"
    against = f" against {critique['other_id']}" if critique["other_id"] else ""
    judge = f", by {made.model(critique['model'])}" if critique["model"] else ""
    label = f"critic {critique['critic']}, draw {critique['draw']}{against}{judge}: {said}"
    if critique["text"]:
        made.text(depth, label + ";", critique["text"])
    else:
        made.add(depth, label)


def _rows(made: Page, rows: Sequence[Record]) -> None:
    made.add(0, f"dataset rows: {len(rows)}", "bold")
    for row in made.some(1, rows, "rows"):
        figures = [f"weight {row['weight']:g}"]
        if row["table"] == "pairs":
            figures += [f"margin {row['margin']:g}", f"chosen {row['chosen_id']}", f"rejected {row['rejected_id']}"]
        elif row["candidate_id"]:
            figures.append(f"candidate {row['candidate_id']}")
        origin = f"made in {row['iteration']}" if row["iteration"] else "of the seed corpus"
        made.add(1, f"{row['table']} row {row['row_id']}, {origin}, {', '.join(figures)}", "cyan")
        for name in ("prompt", "completion", "chosen", "rejected"):
            for message in (row.get(name) or []) if row is rows[0] else []:  # equal ids, equal texts
                made.text(2, f"{name}, {message['role']}:", message["content"])
        for place in row["datasets"]:
            drawn = {True: "trained on", False: "not drawn from in training", None: "no record of what was drawn"}
            made.add(2, f"in the data of {place['iteration']} as part {place['part']}: {drawn[place['drawn']]}")


def _trained(made: Page, models: Sequence[Record]) -> None:
    made.add(0, f"models with these rows in their data: {len(models)}", "bold")
    for model in models:
        made.add(1, f"{model['iteration']}: {made.model(model)}", "cyan")
        _origin(made, model, 2)


def _origin(made: Page, model: Record, depth: int) -> None:
    """Initial and reference model, judge and gate."""
    if model["initial"] or model["reference"]:
        made.add(depth, f"initial model {made.model(model['initial'])}")
        made.add(depth, f"reference model {made.model(model['reference'])}")
    if model["judge"]:
        critics = [f"{name} ({about.get('block')})" for name, about in (model["critics"] or {}).items()]
        made.add(depth, f"judge {made.model(model['judge'])}; critics {', '.join(critics) or 'none'}")
    promoted = {True: "promoted", False: "not promoted", None: "not yet at its gate"}[model["promoted"]]
    made.add(depth, f"gate: {model['reason'] or promoted}")


def _model(made: Page, record: Record) -> None:
    made.add(1, f"at {', '.join(record['paths']) or 'no place that is recorded'}")
    if not record["models"]:
        made.add(1, "made by no iteration that is there now")
    for model in record["models"]:
        made.add(0, f"made in {model['iteration']}", "bold")
        _origin(made, model, 1)
        if model["dataset"]:
            made.add(1, f"dataset digest {model['dataset']}")
        for entry in made.some(1, model["data"], "parts"):
            made_in = f", made in {entry['iteration']}" if entry["iteration"] else ""
            made.add(1, f"data: {entry['rows']} rows of {entry['table']}, part {entry['part']}{made_in}")
        for block, parts in (model["drawn"] or {}).items():
            told = ", ".join(f"{part} {count}" for part, count in sorted(parts.items()))
            made.add(1, f"block {block} drew from: {told}")
        measured = model["heldout"]
        if measured["accuracy"] is None:
            made.add(1, "held-out accuracy: not measured")
        else:
            shares = [f"{100 * share:.1f}" if share is not None else "-" for share in measured.values()]
            made.add(1, f"held-out accuracy {shares[0]} % (95 % interval {shares[1]} to {shares[2]})", "green")
    made.add(0, "used", "bold")
    for entry in record["used"]:
        made.add(1, f"{'policy after' if entry['role'] == 'policy' else entry['role'] + ' of'} {entry['iteration']}")
    for iteration, counts in record["wrote"].items():
        told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)
        made.add(1, f"wrote in {iteration}: {told}")
