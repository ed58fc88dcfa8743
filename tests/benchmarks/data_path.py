"""What the data path costs a row: load, sample with an engine that costs nothing, critique, pair, write.

    python -m tests.benchmarks.data_path [--rows 40000 200000 1000000] [--repeats 3]

Strings are copied, three answers in ten with a wrong digit; eight samples a prompt vote (`vote`), and the winner is
paired with the loser (`pairs`). The stages are the real ones, sample, critique, refine (with nothing to do)
and filter, with their tables, checks, shards and digests; only Prefect and DVC are left out, whose cost does not depend
on rows. The floor does the same work in plain Python on JSON lines, without schemas, ids, shards or lineage, as a
script would. Both run in turns; the table gives the fastest run of each. `beyond fixed` is the time above that of a
run of 80 rows, a row.
"""

import argparse
import gc
import json
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks import critique, families, filter, refine, sample
from tasks.core import tables
from tasks.core.asking.opener import Opener
from tasks.core.engines.contract import Completion, Sampling
from tasks.core.models import folders, tokenizers, weights
from tasks.core.models.pointer import Pointer
from tests.support.models import ENGINE, policy
from tests.support.work import context, pairs

DRAWS, DIGITS, FIXED = 8, 12, 80
FAMILY = {
    "digits": 10, "base_lengths": [1, 2], "corpus": 10, "max_length": 3, "pool": 1, "evaluated_lengths": [3],
    "heldout": 1, "probe": 1,
}  # fmt: skip
MODEL = {
    "model_type": "qwen3", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
SECTIONS: dict[str, Any] = {
    "sample": {
        "iid": {
            "block": "iid_k",
            "template": "answer",
            "n": DRAWS,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_new_tokens": 16,
        }
    },
    "critique": {"vote": {}},
    "refine": {},
    "filter": {
        "pairs": pairs(
            "most", "least", critic="vote", at_least=0.3, weight={"critic": None, "power": 1.0, "mean": None}
        )
    },
}
STAGES = {"sample": sample, "critique": critique, "refine": refine, "filter": filter}


def answer(digits: list[str], draw: int) -> str:
    """The copy, or one with its first digit off by one: three draws in ten, by the digits themselves."""
    if (int("".join(digits)) * 31 + draw * 7919) % 10 < 3:
        digits = [str((int(digits[0]) + 1) % 10), *digits[1:]]
    return " ".join(digits)


class Free:
    """An engine that knows the answers."""

    def generate(self, prompts: Sequence[str], sampling: Sampling, first_draw: int = 0) -> list[list[Completion]]:
        replies = []
        for prompt in prompts:
            digits = prompt[prompt.index("+") + 1 : prompt.index("=")].split()
            texts = [answer(digits, first_draw + draw) for draw in range(sampling.n)]
            replies.append([Completion(text, len(digits) + 4, len(digits) + 1, -1.0, "stop") for text in texts])
        return replies

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[list[float]]:
        """Certain of every token."""
        return [[0.0] * (len(response.split()) + 1) for response in responses]

    def close(self) -> None: ...


def strings(rows: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices("0123456789", k=DIGITS)) for _ in range(rows // DRAWS)]


def prepare(root: Path, rows: int) -> Path:
    """What `prepare`, `base` and `synthesize` would have left."""
    family = families.create("strings", FAMILY)
    (root / "data/tasks").mkdir(parents=True)
    (root / "data/tasks/family.json").write_text(json.dumps({"name": "strings", "options": FAMILY}))
    tokenizer = tokenizers.make_tokenizer(family.vocabulary(), [], 2000)
    weights.build(MODEL, tokenizer, 0, root / "data/i00/candidate")
    policy(root, "i00", folders.digest(root / "data/i00/candidate"))
    made = []
    for text in strings(rows):
        messages = [{"role": "user", "content": f"+ {text} ="}]
        made.append(
            {
                "prompt_id": tables.prompt_id("strings", messages), "messages": messages, "family": "strings",
                "difficulty": DIGITS, "source": "pool", "parent_ids": [], "answer": None,
            }
        )  # fmt: skip
    tables.write(tables.frame(made, tables.PROMPTS), root / "data/i01/prompts.parquet", tables.PROMPTS)
    tables.write(tables.empty(tables.SFT), root / "data/tasks/corpus.parquet", tables.SFT)
    tables.write(tables.empty(tables.SFT), root / "data/i00/dataset/sft.parquet", tables.SFT)
    tables.write(tables.empty(tables.PAIRS), root / "data/i00/dataset/pairs.parquet", tables.PAIRS)
    return root


def ours(root: Path) -> dict[str, float]:
    """Seconds of each stage."""
    engine = {**ENGINE, "rows_per_shard": 2304, "draws_per_shard": 16}
    opener = Opener(root, engine, root / "scratch")
    spent = {}

    def opened(pointer: Pointer) -> Any:
        model = opener(pointer)
        model._engine = Free()
        return model

    for name, module in STAGES.items():
        began = time.perf_counter()
        module.run(context(root, name, "i01", module.parse(SECTIONS[name]), opened))
        spent[name] = time.perf_counter() - began
    return spent


def floor(root: Path, prompts: Path) -> float:
    """The same in plain Python."""
    began = time.perf_counter()
    asked = [json.loads(line) for line in prompts.read_text().splitlines()]
    rows = []
    for prompt in asked:
        digits = prompt["content"][1:-1].split()
        rows.append((prompt, [answer(digits, draw) for draw in range(DRAWS)]))
    with (root / "samples.jsonl").open("w") as file:
        for prompt, texts in rows:
            for text in texts:
                file.write(json.dumps({"prompt": prompt["content"], "response": text}) + "\n")
    with (root / "pairs.jsonl").open("w") as file:
        for prompt, texts in rows:
            votes = Counter(texts).most_common()
            if len(votes) > 1 and votes[0][1] > votes[-1][1] and votes[0][1] / DRAWS >= 0.3:
                pair = {"prompt": prompt["content"], "chosen": votes[0][0], "rejected": votes[-1][0]}
                file.write(json.dumps(pair) + "\n")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.data_path", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[40_000, 200_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    measured: dict[int, tuple[dict[str, float], float]] = {}
    for rows in (FIXED, *given.rows):
        for _ in range(given.repeats):
            gc.collect()
            with tempfile.TemporaryDirectory() as name:
                root = prepare(Path(name), rows)
                lines = root / "prompts.jsonl"
                lines.write_text("".join(json.dumps({"content": f"+ {text} ="}) + "\n" for text in strings(rows)))
                stages, plain = ours(root), floor(root, lines)
            best = measured.get(rows)
            stages = stages if best is None or sum(stages.values()) < sum(best[0].values()) else best[0]
            measured[rows] = stages, plain if best is None else min(plain, best[1])
    fixed = sum(measured[FIXED][0].values())
    print(f"fixed (at {FIXED} rows): {fixed:.2f} s")
    print(
        f"{'rows':>9}  {'seconds':>8}  {'beyond fixed':>14}  {'floor':>10}  {'ratio':>5}  "
        + "  ".join(f"{n:>8}" for n in STAGES)
    )
    for rows in given.rows:
        stages, plain = measured[rows]
        beyond, bare = (sum(stages.values()) - fixed) / rows * 1000, plain / rows * 1000
        each = "  ".join(f"{seconds:7.2f}s" for seconds in stages.values())
        print(
            f"{rows:>9,}  {sum(stages.values()):>7.2f}s  {beyond:>11.4f} ms  {bare:>7.4f} ms  {beyond / bare:>5.1f}  {each}"
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
