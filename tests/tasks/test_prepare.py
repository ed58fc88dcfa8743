"""prepare: its files, equal bytes for equal seeds, no answer in the pool, no problem in two parts."""

import json
from pathlib import Path

import polars as pl
import pytest

from tasks import families, prepare
from tasks.core import tables
from tasks.core.catalog import ARTIFACTS
from tasks.core.context import Context
from tasks.core.errors import BadInput, MissingArtifact, UnknownName
from tasks.families.text.family import Text
from tests.support.work import text_options

COUNTDOWN = {
    "numbers": 3,
    "largest": 6,
    "bound": 30,
    "heldout_share": 0.2,
    "labelled_share": 0.3,
    "labelled": 20,
    "heldout": 15,
    "probe": 10,
    "corpus": {"critique": 40, "refine": 20, "usage": 50, "invent": 10},
}
TEMPLATES = ARTIFACTS["templates"].path
TEXT = {key: value for key, value in text_options(heldout=3, probe=2, labelled=4).items() if key != "path"}


def ran(folder: Path, family: str, options: dict, seed: int = 0) -> tuple[Path, Context]:
    def no_model(pointer: object) -> None:
        raise AssertionError("prepare asks no model")

    context = Context(
        stage="prepare",
        iteration=None,
        row={},
        options=prepare.parse({"family": family, "source": "prompts.jsonl", "options": options}),
        seed=seed,
        labels=False,
        engine={},
        root=folder,
        staging=folder / "staging",
        scratch=folder / "scratch",
        open_model=no_model,  # type: ignore[arg-type]
    )
    prepare.run(context)
    return folder / "staging", context


def prompts(root: Path, name: str) -> pl.DataFrame:
    return tables.read(root / "data/tasks" / f"{name}.parquet", tables.PROMPTS)


def test_countdown_is_written_and_found_again(tmp_path):
    root, context = ran(tmp_path, "countdown", COUNTDOWN)
    files = {path.relative_to(root).as_posix() for path in (root / "data/tasks").rglob("*") if path.is_file()}
    templates = {f"{TEMPLATES}/{use}" for use in families.FILES}
    assert files == {*context.writes} - {TEMPLATES} | templates
    assert len(files) == 10 + len(families.FILES)
    assert all("countdown has no template files" in text for text in families.templates("countdown").values())
    assert not context.reads
    family = families.load(root)
    assert family.name == "countdown"
    assert family.options.labelled == 20
    pool, probe, heldout = (prompts(root, name) for name in ("prompts", "probe", "heldout"))
    assert pool["answer"].null_count() == pool.height
    assert pool["prompt_id"].is_sorted()
    assert (probe.height, heldout.height) == (10, 15) == (context.figures["probe"], context.figures["heldout"])
    marks = [
        family.fingerprint(messages) for table in (pool, probe, heldout) for messages in table["messages"].to_list()
    ]
    assert len(set(marks)) == len(marks)
    forbidden = tables.read(root / "data/tasks/fingerprints.parquet", tables.FINGERPRINTS)
    assert set(forbidden["fingerprint"]) == set(marks[pool.height :])
    assert forbidden["part"].value_counts().sort("part").rows() == [("heldout", 15), ("probe", 10)]
    corpus = tables.read(root / "data/tasks/corpus.parquet", tables.SFT)
    assert corpus["row_id"].n_unique() == corpus.height
    assert set(corpus["part"]) == {"solve", "critique", "refine", "fact", "usage", "invent"}
    solved = corpus.filter(part="solve")
    assert not {family.fingerprint(messages) for messages in solved["prompt"].to_list()} & set(marks)
    assert tables.read(root / "data/tasks/labels.parquet", tables.LABELS).height == 0


def test_bytes_depend_on_the_seed_and_nothing_else(tmp_path):
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        root, _ = ran(tmp_path / name, "countdown", COUNTDOWN, seed)
        digests.append({path.name: path.read_bytes() for path in (root / "data/tasks").glob("*.*")})
    assert digests[0] == digests[1]
    assert digests[0]["corpus.parquet"] != digests[2]["corpus.parquet"]
    assert digests[0]["heldout.parquet"] == digests[2]["heldout.parquet"]


def test_labels_of_the_users_prompts_are_kept_apart(tmp_path):
    lines = [json.dumps({"q": f"How much is {n} and 1?", "a": f"#### {n + 1}"}) for n in range(20)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    root, _ = ran(tmp_path, "text", TEXT)
    pool, heldout = prompts(root, "prompts"), prompts(root, "heldout")
    labels = tables.read(root / "data/tasks/labels.parquet", tables.LABELS)
    assert pool["answer"].null_count() == pool.height == labels.height == 11
    assert set(labels["prompt_id"]) == set(pool["prompt_id"])
    assert heldout["answer"].null_count() == 0
    assert tables.read(root / "data/tasks/corpus.parquet", tables.SFT)["part"].to_list() == ["solve"] * 4


def test_rows_of_the_user_are_found_again_kept_or_dropped(tmp_path, caplog):
    rows = [{"q": f"How much is {n} and 1?", "a": f"#### {n + 1}", "name": f"row-{n}"} for n in range(20)]
    rows += [rows[3] | {"name": "twice"}, {"q": "How much is it?", "a": "unknown", "name": "silent"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    caplog.set_level("INFO")
    root, context = ran(tmp_path, "text", TEXT | {"id_field": "name", "duplicates": "drop", "unusable": "drop"})
    origins = tables.read(root / "data/tasks/origins.parquet", tables.ORIGINS)
    assert origins["part"].value_counts().sort("part").rows() == [
        ("heldout", 3), ("labelled", 4), ("pool", 11), ("probe", 2),
    ]  # fmt: skip
    assert set(origins["id"]) == {f"row-{n}" for n in range(20)}
    for part in ("probe", "heldout"):
        assert set(prompts(root, part)["prompt_id"]) == set(origins.filter(part=part)["prompt_id"])
    assert set(prompts(root, "prompts")["prompt_id"]) == set(origins.filter(part="pool")["prompt_id"])
    dropped = tables.read(root / "data/tasks/dropped.parquet", tables.UNUSED)
    assert dropped.select("file", "row", "id", "reason", "other_row", "other_id").rows() == [
        ("prompts.jsonl", 21, "twice", "duplicate", 4, "row-3"),
        ("prompts.jsonl", 22, "silent", "no answer", None, None),
    ]
    assert (context.figures["rows_read"], context.figures["rows_kept"]) == (22, 20)
    assert (context.figures["dropped_duplicate"], context.figures["dropped_no_answer"]) == (1, 1)
    assert caplog.messages == [
        "prepare  22 rows: kept 20",
        "prepare  1 dropped: duplicate",
        "prepare  1 dropped: no answer",
        "prepare  each of them is in data/tasks/dropped.parquet",
    ]


def test_benchmarks_are_avoided_but_not_evaluated(tmp_path):
    folder = tmp_path / "prompts.jsonl"  # a folder may be called anything
    folder.mkdir()
    lines = [json.dumps({"q": f"How much is {n} and 1?", "a": f"#### {n + 1}"}) for n in range(20)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "test.jsonl").write_text(json.dumps({"text": "How much is 7 and 1"}))
    given = {"ngram": 13, "shortest": 8, "benchmarks": {"test": {"file": "test.jsonl", "field": "text"}}}
    root, _ = ran(tmp_path, "text", TEXT | {"decontaminate": given})
    reserved = tables.read(root / "data/tasks/fingerprints.parquet", tables.FINGERPRINTS)
    assert reserved["part"].value_counts().sort("part").rows() == [("benchmark", 1), ("heldout", 3), ("probe", 2)]
    assert reserved["words"].list.len().to_list() == [6] * 6
    guard = families.load(root).guard(reserved)
    family = families.load(root)
    assert isinstance(family, Text)
    assert guard(family.prompt("how much is 7 and 1")) == "held out"
    [dropped] = tables.read(root / "data/tasks/dropped.parquet", tables.UNUSED).to_dicts()
    assert (dropped["row"], dropped["other_file"]) == (8, "test.jsonl")


def test_later_stages_render_the_templates_that_prepare_copied(tmp_path):
    lines = [json.dumps({"q": f"How much is {n} and 1?", "a": f"#### {n + 1}"}) for n in range(20)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    root, _ = ran(tmp_path, "text", TEXT)
    copies = {use: (root / TEMPLATES / use).read_text() for use in families.templates("text")}
    assert copies == families.templates("text")
    (root / TEMPLATES / "answer.j2").write_text("Now: {{ question }}")
    family = families.load(root)
    assert isinstance(family, Text)
    assert family.prompt("Why?") == [{"role": "user", "content": "Now: Why?"}]


def test_sections_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'countdown'"):
        prepare.parse({"family": "countdwn", "source": "x", "options": {}})
    with pytest.raises(BadInput, match=r"prepare\.options: unknown key 'labeled'; did you mean 'labelled'"):
        prepare.parse({"family": "countdown", "source": "x", "options": COUNTDOWN | {"labeled": 3}})
    with pytest.raises(BadInput, match=r"prepare\.options\.corpus: unknown key 'usages'"):
        prepare.parse(
            {
                "family": "countdown",
                "source": "x",
                "options": COUNTDOWN | {"corpus": COUNTDOWN["corpus"] | {"usages": 1}},
            }
        )
    with pytest.raises(BadInput, match=r"prepare\.options: is missing"):
        prepare.parse({"family": "countdown"})
    with pytest.raises(BadInput, match="no such file"):
        ran(tmp_path, "text", TEXT)
    assert not (tmp_path / "staging").exists()


def test_a_family_record_that_is_not_there_or_damaged(tmp_path):
    with pytest.raises(MissingArtifact, match=r"family\.json is not there"):
        families.load(tmp_path)
    (tmp_path / "data/tasks").mkdir(parents=True)
    (tmp_path / "data/tasks/family.json").write_text("[]")
    with pytest.raises(BadInput, match="no family record"):
        families.load(tmp_path)
