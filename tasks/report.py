"""report: all iterations side by side, for people and for `dvc plots`.

Reads   data/evaluations/<key>.json  flat figures of one iteration's held-out set and its `iteration`
Writes  data/report/iterations.csv   iteration, then every figure in the order of its name; empty where null
        data/report/report.md        the same, the figures as lines and the iterations as columns
        data/report/accuracy.svg     greedy accuracy with its 95 % interval, over iterations

Shares are in 0..1 in the CSV and in the figures' own units everywhere. Reruns when an evaluation, a row of
`evaluations`, its section or this module changes. The bytes depend on the figures and on matplotlib's version only: no times, fixed SVG ids.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.core.block import Options, validate
from tasks.core.context import Context
from tasks.core.errors import BadInput, MissingArtifact

Rows = Sequence[Mapping[str, Any]]

FIRST = (  # the figures that most questions are about; the others follow in the order of their names
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "pass_at_1",
    "pass_at_8",
    "maj_at_8",
    "critique_precision",
    "critique_recall",
    "refine_wrong_to_right",
    "refine_right_to_wrong",
    "distinct_answers",
    "response_tokens",
)


class ReportOptions(Options):
    """There is nothing to choose."""


def parse(section: Mapping[str, Any]) -> ReportOptions:
    """The section `report`, which is empty. Raises `BadInput`."""
    options: ReportOptions = validate(ReportOptions, section, "report")
    return options


def run(context: Context) -> None:
    """Writes the three files. Raises `MissingArtifact` without any evaluation, `BadInput` for a damaged one."""
    rows = read(context.path("evaluations"), context.iterations)
    folder = context.folder("report")
    (folder / "iterations.csv").write_text(table(rows), encoding="utf-8")
    (folder / "report.md").write_text(markdown(rows), encoding="utf-8")
    (folder / "accuracy.svg").write_bytes(chart(rows))
    context.log(iterations=len(rows))


def read(folder: Path, iterations: Sequence[str]) -> list[dict[str, Any]]:
    """The evaluations of the iterations in params.yaml; a file that an earlier recipe left for another is passed over;
    `iteration` is text, every figure a number or None."""
    rows = []
    for path in (
        folder / f"{iteration}.json" for iteration in sorted(iterations) if (folder / f"{iteration}.json").is_file()
    ):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadInput(f"{path} is no JSON ({error}); restore it with `dvc checkout`") from error
        if not isinstance(row, dict) or not isinstance(row.get("iteration"), str):
            raise BadInput(f"{path}: a mapping of figures with the text `iteration` is expected; rerun evaluate")
        wrong = [k for k, v in row.items() if k != "iteration" and not (v is None or isinstance(v, int | float))]
        if wrong:
            raise BadInput(f"{path}: {', '.join(wrong)}: figures are numbers or null; rerun evaluate")
        rows.append(row)
    if not rows:
        raise MissingArtifact(f"{folder} holds no evaluation; `dvc repro` makes them, `dvc pull` restores them")
    return sorted(rows, key=lambda row: (len(row["iteration"]), row["iteration"]))


def figures(rows: Rows) -> list[str]:
    """The names of all figures of all rows, the main ones first."""
    names = {name for row in rows for name in row} - {"iteration"}
    return [name for name in FIRST if name in names] + sorted(names - set(FIRST))


def table(rows: Rows) -> str:
    """CSV, one line per iteration; numbers as JSON writes them, nothing where a figure is null or missing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = figures(rows)
    writer.writerow(["iteration", *names])
    for row in rows:
        writer.writerow([row["iteration"], *("" if row.get(n) is None else json.dumps(row[n]) for n in names)])
    return text.getvalue()


def markdown(rows: Rows) -> str:
    """A Markdown table, one line per figure and one column per iteration, four decimals."""
    head = ["figure", *(row["iteration"] for row in rows)]
    lines = [head, ["---", *("---:" for _ in rows)]]
    lines += [[f"`{name}`", *(_cell(row.get(name)) for row in rows)] for name in figures(rows)]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return (
        "# Iterations\n\nHeld-out figures; shares in 0..1, lengths in tokens, `-` where a figure cannot be computed.\n"
        "`accuracy` is greedy, `accuracy_low` and `accuracy_high` are its 95 % interval.\n\n"
        f"![Held-out accuracy by iteration](accuracy.svg)\n\n{body}\n"
    )


def chart(rows: Rows) -> bytes:
    """Accuracy with its interval as SVG; iterations without accuracy leave a gap."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "autodidact", "svg.fonttype": "none", "font.family": "sans-serif"}):
        picture = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = picture.add_subplot()
        for index, row in enumerate(rows):
            low, high = row.get("accuracy_low"), row.get("accuracy_high")
            if low is not None and high is not None:
                axes.plot([index, index], [100 * low, 100 * high], color="tab:blue", linewidth=6, alpha=0.25)
        shares = [float("nan") if row.get("accuracy") is None else 100 * row["accuracy"] for row in rows]
        axes.plot(range(len(rows)), shares, color="tab:blue", marker="o", markersize=4)
        axes.set_xticks(range(len(rows)), [row["iteration"] for row in rows])
        axes.set_ylim(0, 100)
        axes.set_xlabel("iteration")
        axes.set_ylabel("%")
        axes.set_title("Held-out greedy accuracy, with its 95 % interval")
        axes.grid(axis="y", alpha=0.3)
        text = io.BytesIO()
        picture.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
