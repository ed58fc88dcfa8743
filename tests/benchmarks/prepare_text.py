"""What it costs to read, deduplicate and decontaminate the user's prompts, and whether the cost stays linear.

    python -m tests.benchmarks.prepare_text [--rows 10000 100000 1000000]

Prompts of 20 to 40 words, drawn from 20,000 with the frequencies of a language (Zipf); of each hundred, two are copies
of an earlier one, five are copies with the last word replaced, one begins with 13 words of a benchmark prompt. Every
size runs in a process of its own, for its peak of memory. `select` is the whole of `tasks.families.text.corpus`: reading
JSONL, fields, exact and near duplicates (MinHash, 128 permutations, threshold 0.8), split, 13-grams of 1,300 evaluated
prompts. The floor reads the same file, normalises the words and drops exact duplicates, nothing else. `found` is the
share of what was planted that was dropped for that reason; copies of what shares a passage share it too.
"""

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from tasks.families.text import intake, overlap
from tasks.families.text.options import Options

VOCABULARY, BENCHMARK = 20_000, 300
OPTIONS = {
    "path": "x", "prompt_field": "prompt", "answer_field": None, "system_field": None, "messages_field": None,
    "id_field": None, "split": {"file": "rows.jsonl", "field": None, "value": None}, "limit": None, "limit_by": "first",
    "extraction": "text", "unusable": "drop", "duplicates": "drop",
    "near_duplicates": {"threshold": 0.8, "shingle": 3, "permutations": 128},
    "decontaminate": {"ngram": 13, "shortest": 8, "benchmarks": {"test": {"file": "test.jsonl", "field": "prompt"}}},
    "heldout": 700, "probe": 300, "labelled": 0, "system": None,
}  # fmt: skip


def write(folder: Path, rows: int) -> None:
    """The two files, and how many rows of each kind were planted."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(10, VOCABULARY + 10)
    words = np.array([f"word{index}" for index in range(VOCABULARY)])

    def drawn(count: int) -> list[list[str]]:
        lengths = rng.integers(20, 41, count)
        flat = words[rng.choice(VOCABULARY, lengths.sum(), p=shares / shares.sum())].tolist()
        ends = np.cumsum(lengths).tolist()
        return [flat[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]

    tests, prompts, planted = drawn(BENCHMARK), drawn(rows), Counter[str]()
    for index in range(100, rows):
        kind, source = index % 100, prompts[int(rng.integers(0, index))]
        if kind in (0, 50):
            prompts[index] = source
            planted["duplicate"] += 1
        elif kind in (10, 30, 55, 70, 90):
            prompts[index] = [*source[:-1], f"new{index}"]
            planted["near duplicate"] += 1
        elif kind == 99:
            test = tests[int(rng.integers(0, BENCHMARK))]
            prompts[index] = test[:13] + prompts[index]
            planted["shared passage"] += 1
    for name, texts in (("rows", prompts), ("test", tests)):
        with (folder / f"{name}.jsonl").open("w") as file:
            file.writelines(json.dumps({"prompt": " ".join(text)}) + "\n" for text in texts)
    (folder / "planted.yaml").write_text(json.dumps(planted))


def floor(path: Path) -> float:
    """Seconds of reading, normalising and exact duplicates."""
    began, seen = time.perf_counter(), set()
    with path.open("rb") as file:
        for line in file:
            seen.add(tuple(overlap.words(json.loads(line)["prompt"])).__hash__())
    return time.perf_counter() - began


def measure(rows: int) -> str:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = multiprocessing.Process(target=write, args=(folder, rows))  # its memory is not measured
        writer.start()
        writer.join()
        planted = json.loads((folder / "planted.yaml").read_text())
        least = floor(folder / "rows.jsonl")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        began = time.perf_counter()
        made = intake.select(Options.model_validate(OPTIONS), folder, lambda text: text)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    dropped = Counter(drop.reason for drop in made.dropped)
    found = {
        kind: sum(count for reason, count in dropped.items() if reason.startswith(kind)) / count
        for kind, count in planted.items()
    }
    shares = ", ".join(f"{kind} {share:.3f}" for kind, share in found.items())
    return (
        f"{rows:>9,} rows  {seconds:7.2f} s  {seconds / rows * 1e6:6.1f} us a row  floor {least:6.2f} s  "
        f"ratio {seconds / least:4.1f}  peak {peak:,.0f} MiB (the floor's {before:,.0f})  found: {shares}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--one", action="store_true", help="measure in this process")
    given = parser.parse_args()
    for rows in given.rows:
        if given.one:
            print(measure(rows), flush=True)
        else:
            command = [sys.executable, "-m", "tests.benchmarks.prepare_text", "--one", "--rows", str(rows)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
