"""Compares recipes on an embedded family: `python -m tests.benchmarks.recipes [OPTIONS]`.

Every (seed, recipe) runs in a working copy of its own below `--workdir`: the repository's files, a DVC
repository without git, `python -m flows.recipe use RECIPE --seed SEED`, `python -m flows.evolve`. All
copies share one DVC cache, in which the run cache lies, so what does not depend on the recipe (data, base
model, the base's evaluation) is computed once a seed and restored for the other recipes.

Each finished run leaves a record, a small JSON file in `--records` (by default beside this file, to be committed): commit,
digest of code and params, figures, tokens, and which held-out prompts the base and the last model answer rightly. A run is
skipped where its record was made by the code and params it would be made with now, whether its artifacts are there or not;
interrupted runs go on where DVC and the shards have got to. So the command may be stopped and given again at any time, on
any machine. Outputs of a run go to `run.log` in its copy.

The table (`--out`, Markdown) holds what does not depend on the machine: held-out figures of the
candidates, the precision of what was trained on (checked with the family's verifier, which no label-free
loop can reach), and the two budgets: tokens generated inside the loop, and tokens trained on. Below it
stand the means over seeds and the three claims of the default, with their figures.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from flows.params import compose
from tasks import families
from tasks.core import digests, tables
from tasks.core.labels import Truth
from tasks.core.uncertainty import bootstrap_mean

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("flows", "tasks", "dvc.yaml", "params.yaml", ".dvcignore")
DEFAULT, LOWER, UPPER = "self_evolution", "unfiltered", "oracle"
POINTS, SHARE = 0.10, 0.70  # what the default must gain, and its share of the oracle's gain
TITLES = {
    "accuracy": "greedy", "pass_at_1": "sampled", "pass_at_8": "pass@8", "maj_at_8": "maj@8", "best_of_8": "best of 8",
    "refine_accuracy": "with one refinement", "distinct_answers": "distinct of 8",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One recipe with one seed, in a folder of its own."""

    recipe: str
    seed: int
    size: str | None  # a size recipe put on top, for a quick look
    workdir: Path
    family: str | None = None  # None: the recipe's own

    @property
    def folder(self) -> Path:
        return self.workdir / "-".join(filter(None, [f"seed{self.seed}", self.recipe, self.family, self.size]))

    @property
    def name(self) -> str:
        return f"seed {self.seed}, {self.recipe}"

    def record(self, records: Path) -> Path:
        """Where its record is."""
        return records / f"{self.folder.name}.json"


@dataclass(frozen=True)
class Result:
    """What a finished run came to. Lists run over the iterations, the base first in `figures`."""

    recipe: str
    seed: int
    figures: list[dict[str, float | None]]  # held-out metrics: base, i01, ...
    promoted: list[bool]
    precision: list[float | None]  # share of right answers among the rows that the iteration added
    rows: list[int]  # that many rows (or pairs)
    generated: int  # tokens: samples, refinements and all critiques, over all iterations
    trained: int | None  # tokens, over all iterations; None where the record is gone
    base: str = ""  # of each held-out prompt, by its id: 1 where the base model's greedy answer is right, else 0
    last: str = ""  # the same of the last candidate
    commit: str = ""  # of the code that made it
    digest: str = ""  # of code and params
    family: str = ""

    def gain(self, metric: str = "accuracy") -> float:
        first, last = self.figures[0][metric], self.figures[-1][metric]
        assert first is not None
        assert last is not None
        return last - first

    def interval(self) -> tuple[float, float] | None:
        """95 % of the gain in greedy accuracy: a bootstrap over the held-out prompts, which both models answered."""
        changes = [int(after) - int(before) for before, after in zip(self.base, self.last, strict=True)]
        low, high = bootstrap_mean(changes) if changes else (None, None)
        return None if low is None or high is None else (low, high)


class RunFailed(RuntimeError):
    """A run that ended in an error; the others go on."""


def source_files() -> list[Path]:
    """The repository's files that a run needs, relative to its root, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *COPIED],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return sorted(path for line in listed.stdout.splitlines() if (ROOT / (path := Path(line))).is_file())


def ready(run: Run) -> str:
    """Makes or updates the working copy; returns the digest of its code and params."""
    files = source_files()
    if not (run.folder / ".dvc").is_dir():
        shutil.rmtree(run.folder, ignore_errors=True)
    for top in COPIED:
        if (run.folder / top).is_dir():
            shutil.rmtree(run.folder / top)
    for path in files:
        (run.folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, run.folder / path)
    if not (run.folder / ".dvc").is_dir():
        call(run, "dvc", "init", "--no-scm", "--quiet")
        call(run, "dvc", "cache", "dir", "--local", str(run.workdir.resolve() / "cache"))
    family = ["--family", run.family] if run.family else []
    call(run, "flows.recipe", "use", run.recipe, "--seed", str(run.seed), *family)
    if run.size:
        call(run, "flows.recipe", "use", run.size)
    parts = [[str(path), digests.of_file(run.folder / path)] for path in files]
    return digests.of_value(parts)


def call(run: Run, module: str, *arguments: str) -> None:
    """`python -m MODULE ARGUMENTS` in the working copy, its output appended to `run.log`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "PREFECT_"))}
    with (run.folder / "run.log").open("a") as log:
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, cwd=run.folder, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode:
        tail = "\n".join((run.folder / "run.log").read_text().splitlines()[-15:])
        raise RunFailed(f"{run.name}: python -m {module} {' '.join(arguments)} failed ({done.returncode}):\n{tail}")


def execute(run: Run, records: Path) -> None:
    """Runs what is not finished, and writes its record."""
    digest, record = ready(run), run.record(records)
    if record.is_file() and recorded(record).digest == digest:
        print(f"{run.name}: finished before", flush=True)
        return
    print(f"{run.name}: running, see {run.folder / 'run.log'}", flush=True)
    call(run, "flows.evolve")
    result = replace(measure(run), commit=commit(), digest=digest)
    records.mkdir(parents=True, exist_ok=True)
    part = record.with_suffix(".part")
    part.write_text(json.dumps(asdict(result), sort_keys=True, indent=1) + "\n")
    part.replace(record)
    print(f"{run.name}: done, greedy {' '.join(_share(f['accuracy']) for f in result.figures)}", flush=True)


def recorded(path: Path) -> Result:
    """A run's record."""
    return Result(**json.loads(path.read_text()))


def commit() -> str:
    """The commit that is checked out."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def succeeds(run: Run, records: Path) -> bool:
    """Executes a run and tells of a failure, so that one recipe's does not keep the others from running."""
    try:
        execute(run, records)
    except RunFailed as error:
        print(error, file=sys.stderr, flush=True)
        return False
    return True


def measure(run: Run) -> Result:
    """The figures of a finished run, read from its artifacts."""
    data = run.folder / "data"
    keys = sorted(path.stem for path in (data / "evaluations").glob("i*.json"))
    loop = keys[1:]
    kept = [trained_precision(run.folder, key) for key in loop]
    return Result(
        run.recipe,
        run.seed,
        [json.loads((data / key / "evaluation/metrics.json").read_text()) for key in keys],
        [json.loads((data / key / "policy.json").read_text())["promoted"] for key in loop],
        [precision for precision, _ in kept],
        [rows for _, rows in kept],
        sum(generated_tokens(data / key) for key in loop),
        trained_tokens(run.folder, loop),
        rights(data / keys[0]),
        rights(data / keys[-1]),
        family=families.load(run.folder).name,
    )


def rights(folder: Path) -> str:
    """A digit for each held-out prompt, by its id: 1 where the greedy answer is right."""
    predictions = tables.read(folder / "evaluation/predictions.parquet", tables.PREDICTIONS)
    right = predictions.filter(pl.col("kind") == "greedy").sort("prompt_id")["correct"]
    return "".join("1" if value else "0" for value in right)


def trained_precision(folder: Path, key: str) -> tuple[float | None, int]:
    """Share of right answers among the rows that iteration `key` added to its dataset (of pairs, the chosen answers),
    and their number."""
    family = families.load(folder)
    verify = Truth(family, "evaluate", True).verify
    dataset = folder / "data" / key / "dataset"
    prompts = tables.read(folder / "data" / key / "prompts.parquet", tables.PROMPTS)
    answers = tables.read(folder / "data/tasks/labels.parquet", tables.LABELS)
    asked = (
        prompts.drop("answer")
        .join(answers, on="prompt_id", how="left")
        .rows_by_key("prompt_id", named=True, unique=True)
    )
    sft = tables.read(dataset / "sft.parquet", tables.SFT).select("prompt_id", "iteration", reply="completion")
    pairs = tables.read(dataset / "pairs.parquet", tables.PAIRS).select("prompt_id", "iteration", reply="chosen")
    rows = pl.concat([sft, pairs]).filter(pl.col("iteration") == key)
    right = 0
    for prompt_id, _, reply in rows.iter_rows():
        prompt = asked[prompt_id]
        right += verify(prompt["messages"], prompt["answer"], reply[-1]["content"])
    return (right / rows.height if rows.height else None), rows.height


def generated_tokens(folder: Path) -> int:
    """New tokens of one iteration inside the loop: samples, refinements, and the critiques of both."""
    files = {
        "samples": tables.CANDIDATES, "refinements": tables.CANDIDATES,
        "critiques": tables.CRITIQUES, "refinement_critiques": tables.CRITIQUES,
    }  # fmt: skip
    return sum(int(tables.read(folder / f"{name}.parquet", schema)["tokens"].sum()) for name, schema in files.items())


def trained_tokens(folder: Path, keys: Iterable[str]) -> int | None:
    """Tokens that `train` reported for these iterations, None if a record is missing."""
    found: dict[str, int] = {}
    for path in sorted((folder / ".autodidact/records").glob("*.json")):
        record = json.loads(path.read_text())
        if record["stage"] == "train" and record["status"] == "finished":
            figures = record["figures"]
            tokens = [
                int(value) for name, value in figures.items() if name in ("sft_tokens", "dpo_tokens", "kto_tokens")
            ]
            if tokens:
                found[record["iteration"]] = sum(tokens)
    return sum(found[key] for key in keys) if all(key in found for key in keys) else None


# --- the page --------------------------------------------------------------------------------------------


def page(results: Sequence[Result], command: str) -> str:
    """The Markdown page: runs, means over seeds, claims."""
    last = len(results[0].figures) - 1
    lines = [
        "# Recipes compared",
        "",
        "Written by `" + command + "`. Held-out figures, base -> after the last iteration; `greedy` gives every",
        "iteration. All recipes of a seed start from the same base model and read the same prompts. `right`: share of right",
        "answers among the rows that each iteration added to its training data. `generated`: thousands of new tokens in the",
        "loop (samples, refinements, critiques); `trained`: thousands of tokens trained on. `oracle` filters by the truth and",
        "`unfiltered` by nothing: the bounds. A * marks a candidate that `promote` refused.",
        "",
    ]
    head = [
        "recipe",
        "seed",
        "greedy",
        "gain (95 %)",
        *list(TITLES.values())[1:],
        "right",
        "rows",
        "generated",
        "trained",
    ]
    lines += _table(head, [_row(result) for result in results])
    lines += ["", "## Means over seeds", ""]
    lines += _table(
        ["recipe", "seeds", "base", f"i{last:02d}", "gain", "share of the oracle's gain", "pass@8", "sampled"],
        [_mean_row(name, results) for name in dict.fromkeys(result.recipe for result in results)],
    )
    lines += ["", f"The share compares the same seeds. {_error(results)}", ""]
    lines += ["## Claims", "", *claims(results), ""]
    return "\n".join(lines)


def claims(results: Sequence[Result]) -> list[str]:
    """The three claims of the default, each with yes or no and its figures; nothing where a recipe was not run."""
    own, lower, upper = ([r for r in results if r.recipe == name] for name in (DEFAULT, LOWER, UPPER))
    said = []
    if own:
        gain = _mean(r.gain() for r in own)
        said.append(f"- {_yes(gain >= POINTS)}: {DEFAULT} gains at least +10 points: {_points(gain)} ({_each(own)})")
    share = oracle_share(DEFAULT, results)
    if share is not None:
        said.append(
            f"- {_yes(share >= SHARE)}: at least 70 % of the oracle filter's gain: {share:.0%} ({UPPER}: {_each(upper)})"
        )
    if lower:
        gain = _mean(r.gain() for r in lower)
        said.append(f"- {_yes(gain <= 0)}: no gain from {LOWER} self-training: {_points(gain)} ({_each(lower)})")
    return said


def oracle_share(recipe: str, results: Sequence[Result]) -> float | None:
    """Mean gain of a recipe / mean gain of the oracle, over the seeds that both have; None without such a gain."""
    ours, best = ({r.seed: r.gain() for r in results if r.recipe == name} for name in (recipe, UPPER))
    both = sorted(ours.keys() & best.keys())
    top = _mean(best[seed] for seed in both) if both else 0.0
    return _mean(ours[seed] for seed in both) / top if top > 0 else None


def _error(results: Sequence[Result]) -> str:
    """How far a run's accuracy is from the model's, by its 95 % interval."""
    ends = [(r.figures[-1].get("accuracy_low"), r.figures[-1].get("accuracy_high")) for r in results]
    widths = [high - low for low, high in ends if low is not None and high is not None]
    if not widths:
        return "The interval of a run's accuracy is not known."
    return f"A run's accuracy is known to within {50 * _mean(widths):.1f} points (95 % interval over held-out prompts)."


def _row(result: Result) -> list[str]:
    first, last = result.figures[0], result.figures[-1]
    marks = [""] + ["" if promoted else "*" for promoted in result.promoted]
    path = " ".join(_share(f["accuracy"]) + mark for f, mark in zip(result.figures, marks, strict=True))
    spans = [f"{_figure(name, first)} -> {_figure(name, last)}" for name in list(TITLES)[1:]]
    return [
        result.recipe, str(result.seed), path, _gain(result), *spans,
        " ".join(_share(value) for value in result.precision), " ".join(str(n) for n in result.rows),
        f"{result.generated / 1000:.0f}", "-" if result.trained is None else f"{result.trained / 1000:.0f}",
    ]  # fmt: skip


def _mean_row(recipe: str, results: Sequence[Result]) -> list[str]:
    own = [result for result in results if result.recipe == recipe]
    share = oracle_share(recipe, results)
    ends = [[_mean(r.figures[end]["accuracy"] or 0.0 for r in own) for end in (0, -1)]]
    spans = [
        " -> ".join(_share(_mean(r.figures[end][name] or 0.0 for r in own)) for end in (0, -1))
        if all(r.figures[end].get(name) is not None for r in own for end in (0, -1)) else "-"
        for name in ("pass_at_8", "pass_at_1")
    ]  # fmt: skip
    seeds = " ".join(str(r.seed) for r in own)
    gain = _points(_mean(r.gain() for r in own))
    return [recipe, seeds, *map(_share, ends[0]), gain, "-" if share is None else f"{share:.0%}", *spans]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def _figure(name: str, figures: dict[str, float | None]) -> str:
    value = figures.get(name)
    return f"{value:.1f}" if name == "distinct_answers" and value is not None else _share(value)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _gain(result: Result) -> str:
    ends = result.interval()
    return _points(result.gain()) + ("" if ends is None else f" ({_points(ends[0])} to {_points(ends[1])})")


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _each(results: Sequence[Result]) -> str:
    return ", ".join(f"seed {r.seed} {_points(r.gain())}" for r in results)


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def _mean(values: Iterable[float]) -> float:
    given = list(values)
    return sum(given) / len(given)


def arguments(given: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.recipes", description="Compares recipes.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--recipes",
        nargs="+",
        default=[DEFAULT, LOWER, UPPER],
        help="run with every seed; all: every recipe on an embedded family",
    )
    parser.add_argument(
        "--also", nargs="*", default=["lmsi", "self_rewarding", "scpo"], help="with the first seed only"
    )
    parser.add_argument("--family", help="instead of each recipe's own")
    parser.add_argument("--size", help="a size recipe put on top (mini), for a quick look")
    parser.add_argument("--workdir", type=Path, required=True, help="working copies and the shared DVC cache")
    parser.add_argument("--records", type=Path, default=Path(__file__).with_name("records"), help="of finished runs")
    parser.add_argument("--out", type=Path, help="the Markdown page; without it, the page is printed")
    parser.add_argument("--table-only", action="store_true", help="no run: the page from the records")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(given)
    if options.recipes == ["all"]:
        options.recipes = [name for name in compose.names() if compose.read(name).family != "text"]
    wanted = [(recipe, seed) for seed in options.seeds for recipe in options.recipes]
    wanted += [(recipe, options.seeds[0]) for recipe in options.also if recipe not in options.recipes]
    options.workdir.mkdir(parents=True, exist_ok=True)
    runs = [Run(recipe, seed, options.size, options.workdir, options.family) for recipe, seed in wanted]
    failed = [] if options.table_only else [run for run in runs if not succeeds(run, options.records)]
    runs = [run for run in runs if run not in failed and run.record(options.records).is_file()]
    if not runs:
        raise SystemExit(f"no record of a finished run in {options.records}, so there is no table")
    recipes = list(dict.fromkeys(recipe for recipe, _ in wanted))
    found = (recorded(run.record(options.records)) for run in runs)
    results = sorted(found, key=lambda r: (recipes.index(r.recipe), r.seed))
    shown = [
        "python -m tests.benchmarks.recipes --seeds", *map(str, options.seeds), "--recipes", *options.recipes,
        "--also", *options.also, *(["--family", options.family] if options.family else []),
        *(["--size", options.size] if options.size else []), "--workdir", "FOLDER",
    ]  # fmt: skip
    text = page(results, " ".join(shown))
    if options.out:
        options.out.write_text(text)
        print(f"{options.out} written")
    else:
        print(text)
    if failed:
        raise SystemExit(f"not in the table: {'; '.join(run.name for run in failed)}; give the command again to go on")


if __name__ == "__main__":
    main()
