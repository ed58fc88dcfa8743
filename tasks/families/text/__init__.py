"""The family `text`: what is known of it before any work. Its prompts and answers: `family`."""

import random
from collections import Counter
from pathlib import Path

from tasks.core.family import SeedData
from tasks.families.text import corpus, intake
from tasks.families.text.family import NO_QUESTIONS, TEMPLATES, Text, level
from tasks.families.text.options import Options
from tasks.families.text.templates import check

CODE = (
    "answers.py",
    "intake.py",
    "plain.py",
    "replies.py",
    "sentences.py",
    "templates.py",
)  # that decide what is asked and read
USES = {  # of `Family.ask` beside the template files, and which of `Parts` each shows
    "answer": frozenset[str](),
    "revise": frozenset({"answers", "critique"}),
}
LACKS = {"sub-questions": NO_QUESTIONS}  # skills that it has not, and why


def create(options: Options, templates: Path | None = None) -> Text:
    """The family, with its own templates or with copies of them in a folder. Raises `BadInput` for own templates that
    cannot work (copies were checked before they were made); reads no data."""
    intake.check_options(options)
    if templates is None:
        check(TEMPLATES)
    family = Text(options, templates or TEMPLATES)
    family.question(family.prompt("A question"))
    return family


def build(family: Text, rng: random.Random, root: Path) -> SeedData:
    """All data of the family, from the files of `options.path` below `root`. Nothing is drawn with `rng`."""
    return corpus.build(family, root)


def parts(options: Options) -> list[str]:
    """The parts of the corpus: none without labelled rows."""
    return ["solve"] if options.labelled else []


def difficulties(options: Options) -> list[int]:
    """All that `difficulty` can give."""
    return [1, 2, 3]


def check_inputs(family: Text, root: Path) -> dict[int, int] | None:
    """How many prompts of each difficulty the pool will have. Refuses what `prepare` would refuse; of data that is too
    large to be read before any work, as far as the first rows of the files show it, and gives None."""
    path = root / family.options.path
    if not intake.is_small(family.options, path):
        intake.sample(family.options, path)
        return None
    chosen = intake.select(family.options, path, lambda text: family.extract([], text))
    return dict(Counter(level(row.prompt) for row in chosen.pool))
