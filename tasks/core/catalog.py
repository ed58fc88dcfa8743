"""The catalog: every artifact by its name, with its place below the repository and, for a table, its schema and order.

A stage loads and saves artifacts by name (`tasks.core.context`), and flows reads them back by the same names. A name is
one artifact in every iteration. Paths hold `{iteration}` where there is one for each iteration. A test holds the paths
against the outputs of dvc.yaml.

`order`: the columns that a table is sorted by when it is written; without them all plain columns, in the order of the
schema, so that equal rows always give equal bytes.
"""

from dataclasses import dataclass

import polars as pl

from tasks.core import tables

BASE = "i00"  # the iteration of the base model


@dataclass(frozen=True)
class Artifact:
    """One artifact: a table where it has a schema, a folder where its path has no ending, else JSON or text."""

    path: str
    schema: pl.Schema | None = None
    order: tuple[str, ...] = ()
    sparse: bool = False  # a table whose file is there only where it has rows

    def at(self, iteration: str | None) -> str:
        """Its path in an iteration."""
        return self.path.replace("{iteration}", str(iteration))

    @property
    def per_iteration(self) -> bool:
        """Whether there is one for each iteration."""
        return "{iteration}" in self.path


TASK = {  # of prepare: the same for all iterations
    "family": Artifact("data/tasks/family.json"),
    "code": Artifact("data/tasks/code.json"),
    "templates": Artifact("data/tasks/templates"),
    "corpus": Artifact("data/tasks/corpus.parquet", tables.SFT, ("part", "row_id")),
    "pool": Artifact("data/tasks/prompts.parquet", tables.PROMPTS, ("prompt_id",)),
    "labels": Artifact("data/tasks/labels.parquet", tables.LABELS),
    "probe": Artifact("data/tasks/probe.parquet", tables.PROMPTS, ("prompt_id",)),
    "heldout": Artifact("data/tasks/heldout.parquet", tables.PROMPTS, ("prompt_id",)),
    "fingerprints": Artifact("data/tasks/fingerprints.parquet", tables.FINGERPRINTS),
    "origins": Artifact("data/tasks/origins.parquet", tables.ORIGINS),
    "unused": Artifact("data/tasks/dropped.parquet", tables.UNUSED, ("file", "row")),
}
LOOP = {  # of the other stages: one for each iteration
    "prompts": Artifact("data/{iteration}/prompts.parquet", tables.PROMPTS),
    "invented": Artifact("data/{iteration}/invented.parquet", tables.INVENTED),
    "samples": Artifact("data/{iteration}/samples.parquet", tables.CANDIDATES),
    "critiques": Artifact("data/{iteration}/critiques.parquet", tables.CRITIQUES),
    "critics": Artifact("data/{iteration}/critics.json"),
    "refinements": Artifact("data/{iteration}/refinements.parquet", tables.CANDIDATES),
    "refinement_critiques": Artifact("data/{iteration}/refinement_critiques.parquet", tables.CRITIQUES),
    "dataset": Artifact("data/{iteration}/dataset"),
    "sft": Artifact("data/{iteration}/dataset/sft.parquet", tables.SFT),
    "pairs": Artifact("data/{iteration}/dataset/pairs.parquet", tables.PAIRS),
    "rated": Artifact("data/{iteration}/dataset/rated.parquet", tables.RATED, sparse=True),
    "dropped": Artifact("data/{iteration}/dataset/dropped.parquet", tables.DROPPED),
    "dataset_card": Artifact("data/{iteration}/dataset/README.md"),
    "candidate": Artifact("data/{iteration}/candidate"),
    "lineage": Artifact("data/{iteration}/candidate/lineage.json"),
    "predictions": Artifact("data/{iteration}/evaluation/predictions.parquet", tables.PREDICTIONS),
    "metrics": Artifact("data/{iteration}/evaluation/metrics.json"),
    "probe_metrics": Artifact("data/{iteration}/evaluation/probe.json"),
    "evaluation": Artifact("data/evaluations/{iteration}.json"),
    "policy": Artifact("data/{iteration}/policy.json"),
    "pointer": Artifact("data/{iteration}/pointer.json"),
}
REPORT = {"evaluations": Artifact("data/evaluations"), "report": Artifact("data/report")}
ARTIFACTS = TASK | LOOP | REPORT
