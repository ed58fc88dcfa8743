"""The family `text`: what is known of it before any work. Its prompts and answers: `family`."""

from collections import Counter
from pathlib import Path

from tasks.families.text import corpus as text_rows
from tasks.families.text import templates as text_templates
from tasks.families.text.family import NO_QUESTIONS, TEMPLATES, Text, level
from tasks.families.text.options import Options

CODE = ("answers.py", "corpus.py", "plain.py", "replies.py", "templates.py")  # that decide what is asked and read


UNUSABLE = {"factored_critique": NO_QUESTIONS}  # blocks that this family cannot work with, and why


# --- making it -------------------------------------------------------------------------------------
def create(options: Options, templates: Path | None = None) -> Text:
    """The family, with its own templates or with copies of them in a folder. Raises `BadInput` for own templates that
    cannot work (copies were checked before they were made); reads no data."""
    text_rows.check_options(options)
    if templates is None:
        text_templates.check(TEMPLATES)
    family = Text(options, templates or TEMPLATES)
    family.question(family._prompt("A question"))
    return family


def parts(options: Options) -> list[str]:
    """The parts of the corpus: none without labelled rows."""
    return ["solve"] if options.labelled else []


def difficulties(options: Options) -> list[int]:
    """All that `difficulty` can give."""
    return [1, 2, 3]


def check_inputs(family: Text, root: str) -> dict[int, int] | None:
    """How many prompts of each difficulty the pool will have. Refuses what `prepare` would refuse; of data that is too
    large to be read before any work, as far as the first rows of the files show it, and gives None."""
    path = Path(root) / family.options.path
    if not text_rows.is_small(family.options, path):
        text_rows.sample(family.options, path)
        return None
    chosen = text_rows.select(family.options, path, lambda text: family.extract([], text))
    return dict(Counter(level(row.prompt) for row in chosen.pool))
