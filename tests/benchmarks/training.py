"""Training speed: the sft block against a plain PyTorch loop, same model, same batches, weights on, one run.

    python tests/benchmarks/training.py [--steps 60] [--threads 2] [--rounds 2]

The plain loop is what one would write by hand: each step's rows padded to the longest, an attention mask,
the model's logits, weighted cross-entropy on the completions, clipping, AdamW, the same learning-rate
curve; no checkpoints and no logging. The model, the corpus and the mixture are those of params.yaml. Both
sides take turns, and the fastest round of each counts. Also checked: that both end at the same loss.
Prints tokens per second (padding not counted) and their ratio; exit code 1 if it is below 0.8.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()

    from tasks import families
    from tasks.blocks.train import sft
    from tasks.blocks.train.job import Job, sft_batches, use_threads
    from tasks.core import tables
    from tasks.core.models import tokenizers
    from tasks.core.models.weights import build
    from tasks.core.training.options import SftOptions

    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    family = families.create(params["prepare"]["family"], params["prepare"]["options"])
    drawn = random.Random(0)
    rows = [
        {
            "row_id": tables.content_id(i),
            "part": row["part"],
            "prompt": row["prompt"],
            "completion": row["completion"],
            "weight": drawn.choice([0.25, 0.5, 1.0]),
            "prompt_id": tables.content_id(i),
            "candidate_id": None,
            "iteration": None,
        }
        for i, row in enumerate(families.build(family, random.Random(0), ROOT).corpus)
    ]
    settings = {**params["base"]["sft"], "steps": given.steps, "threads": given.threads, "warmup_steps": 10}
    options = SftOptions(**{**settings, "checkpoint_steps": 1_000_000})
    use_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = tokenizers.make_tokenizer(family.vocabulary(), [], 2000)
        build(params["base"]["architecture"], tokenizer, 0, folder / "initial")
        job = Job(
            initial=folder / "initial",
            reference=folder / "initial",
            sft=tables.frame(rows, tables.SFT),
            pairs=tables.empty(tables.PAIRS),
            output=folder / "output",
            scratch=folder / "scratch",
            seed=0,
        )
        batches = sft_batches(job, options, options.mixture, 1.0, "mixture", False)
        ours, plain = 0.0, 0.0
        for _ in range(given.rounds):
            trained = sft.sft(job, options)
            ours = max(ours, trained.figures["sft_tokens_per_second"])
            speed, losses = plain_loop(folder / "initial", batches, options)
            plain = max(plain, speed)
            last = np.mean(losses[-(len(losses) - int(trained.curve[-2]["step"])) :])
            assert abs(last - trained.curve[-1]["loss"]) < 0.05, (last, trained.curve[-1]["loss"])
    ratio = ours / plain
    print(f"rows a step {batches.plan.shape[1]}, tokens a step {batches.step_tokens().mean():.0f}")
    print(f"sft block {ours:,.0f} tokens/s; plain loop {plain:,.0f} tokens/s; ratio {ratio:.2f} (at least 0.80)")
    return 0 if ratio >= 0.8 else 1


def plain_loop(initial: Path, batches, options) -> tuple[float, list[float]]:
    """Tokens per second and the loss of every step."""
    import torch
    from transformers import AutoModelForCausalLM

    from tasks.core.training.rates import schedule

    model = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float32)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, betas=tuple(options.betas), weight_decay=options.weight_decay
    )
    share = schedule(options.schedule, options.steps, options.warmup_steps, options.final_share)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    rows, losses = batches.rows, []
    began = time.perf_counter()
    model.train()
    for step in batches.plan:
        sequences = [rows.tokens[rows.starts[i] : rows.starts[i] + rows.lengths[i]] for i in step]
        longest = max(len(s) for s in sequences)
        ids = torch.zeros(len(step), longest, dtype=torch.long)
        mask = torch.zeros(len(step), longest, dtype=torch.long)
        labels = torch.full((len(step), longest), -100)
        for k, sequence in enumerate(sequences):
            ids[k, : len(sequence)] = torch.from_numpy(sequence)
            mask[k, : len(sequence)] = 1
            begin = rows.prompts[step[k]]
            labels[k, begin : len(sequence)] = ids[k, begin : len(sequence)]
        weights = torch.from_numpy(batches.weights[step]).float()
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        entropies = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100, reduction="none"
        ).view(len(step), -1)
        counts = (labels[:, 1:] != -100).sum(dim=1)
        loss = (weights[:, None] * entropies).sum() / (weights * counts).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return float(batches.step_tokens().sum()) / (time.perf_counter() - began), losses


if __name__ == "__main__":
    sys.exit(main())
