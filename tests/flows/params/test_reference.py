"""The page of all options is what the code says."""

from flows.params import reference
from tests.support.workspace import ROOT

PAGE = ROOT / "docs/options.md"


def test_the_page_is_current() -> None:
    """`python -m flows.params.reference` writes it."""
    assert PAGE.read_text(encoding="utf-8") == reference.page()


def test_every_option_is_explained() -> None:
    rows = [line.split(" | ") for line in reference.page().splitlines() if line.startswith("| `")]
    nested = {row[0].rpartition(".")[0].strip("| `") for row in rows}
    unsaid = {row[0].strip("| `") for row in rows if row[2].strip("| ") == ""}
    skills = {"corpus.critique", "corpus.refine", "corpus.usage", "corpus.invent"}
    assert unsaid - nested - skills == set()
