"""How well a model of the family `sums` has each skill: `python -m tests.benchmarks.skills [--model data/i00/candidate]`.

Run in a project that `python -m flows.recipe use lmsi --family sums` set up and whose stages `prepare` and `base` ran.
Rows are written anew, by the author of the corpus, about held-out problems; what the author says of each fact is read off
the corpus. Replies are greedy, for `invent` sampled at temperature 1.

- `solve`: right answers; `solve, form`: answers that use every number once.
- `fact`: of facts that are not disputed, replies as the author says; `fact, disputed`: right ones of the others.
- `check`, `p_true`, `better`: last words equal to the author's. One in three of the answers shown is right, of `better` one
  of each two.
- `check, good marks` and `check, bad marks`: of the author's marks of that kind, those that the reply has too.
- `fix`, `again`: replies that the author finds good throughout. `again, wrong`: those to a wrong attempt.
- `given`: replies that use every number once and end in the given result.
- `swap`: other orders of the same numbers; `invent`: problems; `invent, new`: those that are not in the corpus.
"""

import argparse
import json
import random
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from tasks import families
from tasks.core import engines, tables
from tasks.core.catalog import ARTIFACTS
from tasks.core.engines.contract import Sampling
from tasks.core.family import Messages, user
from tasks.core.models.tokenizers import render_many
from tasks.families.sums import corpus
from tasks.families.sums.family import Sums
from tasks.families.sums.language import GOOD, solve_text, there
from tasks.families.sums.steps import Author

REPLY = 24  # tokens of a reply, at most


def author(family: Sums, root: Path, seed: int) -> tuple[Author, set[str]]:
    """The author, as the corpus of `root` shows him, and the problems that he invented there."""
    said: dict[tuple[int, int], set[int]] = {}
    invented = set()
    rows = tables.read(root / ARTIFACTS["corpus"].path, tables.SFT).filter(pl.col("part").is_in(["fact", "invent"]))
    for part, prompt, completion in rows.select("part", "prompt", "completion").iter_rows():
        if part == "invent":
            invented.add(family.fingerprint(user(solve_text(completion[0]["content"]))))
            continue
        _, a, _, b, _ = prompt[0]["content"].split()
        said.setdefault((min(int(a), int(b)), max(int(a), int(b))), set()).add(int(completion[0]["content"]))
    modulus = family.options.modulus
    table = {fact: tuple(sorted(values, key=lambda v: v != sum(fact) % modulus)) for fact, values in said.items()}
    return Author(table, family.options.said, random.Random(seed)), invented


def judged(family: Sums, writer: Author, part: str, prompt: str, reply: str, wanted: str) -> Iterator[tuple[str, bool]]:
    """What is measured of one reply, by name. `wanted`: what the author replies himself."""
    words = prompt.split()
    n = family.options.n
    if part == "fact":
        values = writer.values(int(words[1]), int(words[3]))
        yield ("fact", reply == wanted) if len(values) == 1 else ("fact, disputed", reply == str(values[0]))
        return
    if part in ("check", "p_true", "better"):
        own, his = reply.split(), wanted.split()
        yield part, own[-1:] == his[-1:]
        if part == "check":
            for place in range(1, len(his) - 1, 2):
                yield f"check, {'good' if his[place] == GOOD else 'bad'} marks", own[place : place + 1] == [his[place]]
        return
    numbers = [int(word) for word in words[1 : n + 1]]
    if part == "swap":
        own = reply.split()
        yield part, sorted(own) == sorted(words[1 : n + 1]) and own != words[1 : n + 1]
        return
    steps = family.steps(reply)
    form = steps is not None and all(there(numbers, steps))
    if part == "solve":
        yield part, family.verify(user(prompt), None, reply)
        yield "solve, form", form
    elif part == "given":
        yield part, form and reply.split()[-1] == words[n + 2]
    else:
        good = steps is not None and all(writer.marks(numbers, steps))
        yield part, good
        if part == "again" and not all(writer.marks(numbers, family.steps(" ".join(words[n + 2 : -1])) or [])):
            yield "again, wrong", good


def measure(root: Path, model: Path, problems: int, seed: int, threads: int) -> dict[str, tuple[float, int]]:
    """Share and number of replies by what is measured."""
    family = families.load(root)
    assert isinstance(family, Sums)
    writer, invented = author(family, root, seed)
    heldout = tables.read(root / ARTIFACTS["heldout"].path, tables.PROMPTS)["messages"].to_list()[:problems]
    sizes = dict.fromkeys(type(family.options.corpus).model_fields, problems) | {"invent": 0}
    options = family.options.model_copy(
        update={
            "orders": 1,
            "facts": len(family.options.said),
            "corpus": family.options.corpus.model_copy(update=sizes),
        }
    )
    engine: Any = engines.load("transformers", model, "float32", threads, 2048)
    found: dict[str, list[bool]] = {}

    def ask(prompts: list[str], sampling: Sampling) -> list[list[Any]]:
        asked: list[Messages] = [user(prompt) for prompt in prompts]
        replies: list[list[Any]] = engine.generate(render_many(engine.tokenizer, asked), sampling)
        return replies

    rows = corpus.rows(options, [tuple(sorted(family.numbers(m))) for m in heldout], writer.table, writer.rng)
    for part, group in groupby(rows, key=lambda row: row[0]):
        wanted = {prompt: reply for _, prompt, reply in group}
        for prompt, [reply] in zip(wanted, ask(list(wanted), Sampling(1, 0.0, 1.0, REPLY, 0)), strict=True):
            for name, right in judged(family, writer, part, prompt, reply.text, wanted[prompt]):
                found.setdefault(name, []).append(right)
    for reply in ask([family.invent_messages([])[0]["content"]], Sampling(problems, 1.0, 1.0, REPLY, seed))[0]:
        [new] = family.parse_invented(reply.text)
        found.setdefault("invent", []).append(new.messages is not None)
        if new.messages is not None:
            found.setdefault("invent, new", []).append(family.fingerprint(new.messages) not in invented)
    return {name: (sum(values) / len(values), len(values)) for name, values in found.items()}


def main() -> None:
    """Prints the table, and the figures as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.skills", description="The skills of sums.")
    parser.add_argument("--model", type=Path, default=Path("data/i00/candidate"))
    parser.add_argument("--problems", type=int, default=1000, help="held-out problems, at most")
    parser.add_argument("--seed", type=int, default=0, help="of what the author writes, and of samples")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    figures = measure(Path(), given.model, given.problems, given.seed, given.threads)
    print("| skill | share | replies |\n|---|---|---|")
    for name, (share, number) in figures.items():
        print(f"| {name} | {share:.3f} | {number} |")
    print(json.dumps({name: round(share, 4) for name, (share, _) in figures.items()}))


if __name__ == "__main__":
    main()
