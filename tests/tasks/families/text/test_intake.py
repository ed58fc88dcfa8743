"""The user's data: formats, fields, choices, what is dropped and why, and what is refused with which words."""

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from tasks import families
from tasks.core.errors import BadInput
from tasks.families.text import intake, readers
from tasks.families.text.fields import Row
from tests.support.paths import SHARED
from tests.tasks.families.text.test_family import OPTIONS

NO_SPLIT = {"file": None, "field": None, "value": None}
ROWS = [{"q": f"Question number {n} of {n * 7}?", "a": str(n), "id": f"q-{n}"} for n in range(20)]
LOOSE = OPTIONS | {"prompt_field": "q", "answer_field": "a", "heldout": 2, "probe": 2, "labelled": 2}
SENTENCE = "the quick brown fox jumps over the lazy dog while nine old cats sleep under a warm red roof"
WORDS = SENTENCE.split()


def lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def select(path: Path, **options) -> intake.Selected:
    family = families.create("text", LOOSE | {"path": str(path)} | options)
    return intake.select(family.options, path, lambda text: family.extract([], text))


def everything(made: intake.Selected) -> list[Row]:
    return sorted([*made.heldout, *made.probe, *made.labelled, *made.pool], key=lambda row: row.number)


# --- formats ---------------------------------------------------------------------------------------------------
def as_file(folder: Path, name: str) -> Path:
    path = folder / name
    table = pl.DataFrame(ROWS)
    if name.endswith(".parquet"):
        table.write_parquet(path)
        return path
    text = {
        "jsonl": "\n\n".join(json.dumps(row) for row in ROWS),
        "json": json.dumps(ROWS, indent=1),
        "csv": table.write_csv(),
        "tsv": table.write_csv(separator="\t"),
        "ndjson": table.write_ndjson(),
    }[name.split(".")[1]]
    (gzip.open if name.endswith(".gz") else open)(path, "wb").write(text.encode())  # type: ignore[operator]
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.json.gz", "a.csv.gz"]
)
def test_every_format_gives_the_same_rows(tmp_path, name):
    made = everything(select(as_file(tmp_path, name), id_field="id"))
    assert [(row.prompt, row.answer, row.id) for row in made] == [(r["q"], r["a"], r["id"]) for r in ROWS]
    assert [row.number for row in made] == [1 + n * (1 + name.startswith("a.jsonl")) for n in range(20)]
    assert {row.file for row in made} == {name}


def test_a_json_list_longer_than_what_is_looked_at_first(tmp_path, monkeypatch):
    path = as_file(tmp_path, "a.json")
    monkeypatch.setattr(readers, "PIECE", 300)
    assert [record["id"] for _, record in readers.records(path, {"id": "id_field"})] == [row["id"] for row in ROWS]
    whole = path.read_text()
    path.write_text(whole[:-30])
    seen = []
    with pytest.raises(BadInput, match="is no JSON"):
        seen.extend(number for number, _ in readers.records(path, {"id": "id_field"}))
    assert next(readers.records(path, {"id": "id_field"})) == (1, ROWS[0])


def test_a_folder_is_all_its_data_files_in_the_order_of_their_names(tmp_path):
    lines(tmp_path / "b/two.jsonl", ROWS[10:])
    lines(tmp_path / "a.jsonl", ROWS[:10])
    (tmp_path / "README.md").write_text("# Data")
    (tmp_path / ".cache").mkdir()
    lines(tmp_path / ".cache/hidden.jsonl", ROWS)
    made = select(tmp_path)
    assert Counter(row.file for row in everything(made)) == {"a.jsonl": 10, "b/two.jsonl": 10}
    assert readers.data_files(tmp_path)[1] == ["README.md"]
    chosen = everything(select(tmp_path, split=NO_SPLIT | {"file": "two.*"}))
    assert {row.file for row in chosen} == {"b/two.jsonl"}


# --- fields ----------------------------------------------------------------------------------------------------
def test_fields_of_the_rows(tmp_path):
    rows = [{"q": f"How many are {n}?", "a": n, "s": "Count." if n % 2 else None, "id": n} for n in range(12)]
    made = everything(select(lines(tmp_path / "a.jsonl", rows), system_field="s", id_field="id"))
    assert [(row.answer, row.system, row.id) for row in made] == [
        (str(n), "Count." if n % 2 else None, str(n)) for n in range(12)
    ]
    family = families.create("text", LOOSE | {"path": "a.jsonl", "system_field": "s", "id_field": "id"})
    data = families.build(family, random.Random(0), tmp_path)
    for row in data.pool:
        wanted = ["system", "user"] if row["origin"]["row"] % 2 == 0 else ["user"]
        assert [message["role"] for message in row["messages"]] == wanted


def test_conversations_give_their_first_question_and_its_reply(tmp_path):
    def said(*turns: str) -> dict:
        return {"talk": [{"role": turn.split(":")[0], "content": turn.split(":")[1]} for turn in turns]}

    rows = [
        said("system:Be brief.", f"user:What is {n} and {n}?", f"assistant:#### {2 * n}", "user:And now?")
        for n in range(9)
    ]
    path = lines(tmp_path / "a.jsonl", [*rows, said("assistant:Hello 1"), {"talk": []}, {"talk": None}])
    made = select(path, prompt_field=None, messages_field="talk", answer_field="talk", unusable="drop")
    kept = everything(made)
    assert [(row.prompt, row.answer, row.system) for row in kept[:2]] == [
        ("What is 0 and 0?", "#### 0", "Be brief."),
        ("What is 1 and 1?", "#### 2", "Be brief."),
    ]
    assert len(kept) == 9
    assert [(drop.row, drop.reason) for drop in made.dropped] == [(n, "no prompt") for n in (10, 11, 12)]
    bad = lines(tmp_path / "b.jsonl", [{"talk": [{"from": "human", "value": "hi"}]}])
    with pytest.raises(BadInput, match="is no list of messages with role and content"):
        select(bad, prompt_field=None, messages_field="talk", answer_field=None, labelled=0)


def test_answers_that_are_no_number_stay_what_they_are_and_rows_without_one_are_counted(tmp_path):
    answers = [
        r"\frac{3}{4}",
        r"2\sqrt{3}",
        "(3, 4)",
        "x^2+1",
        "12:30",
        "5-7",
        "1 000",
        "- 31",
        "none",
        None,
        "nothing",
        "8",
    ]
    path = lines(tmp_path / "a.jsonl", [{"q": f"What is {n}?", "a": a} for n, a in enumerate(answers)])
    family = families.create(
        "text", LOOSE | {"path": "a.jsonl", "unusable": "drop", "near_duplicates": None, "labelled": 0}
    )
    data = families.build(family, random.Random(0), tmp_path)
    read = {row["origin"]["row"]: row["answer"] for row in (*data.heldout, *data.probe, *data.pool)}
    assert [read[n] for n in sorted(read)] == [
        "0.75",
        r"2\sqrt{3}",
        "(3,4)",
        "x^2+1",
        "12:30",
        "5-7",
        "1000",
        "-31",
        "8",
    ]
    with pytest.raises(
        BadInput, match=r"row 9: no answer in 'a' \('none'\) \(and 2 more rows cannot be used\); correct them"
    ):
        select(path)
    lines(path, [{"q": f"What is {n}?", "a": None} for n in range(2)])
    with pytest.raises(
        BadInput, match=r"row 1: no answer in 'a' is empty \(null\) \(and 1 more row cannot be used\)"
    ) as caught:
        select(path)
    assert "extraction" not in str(caught.value)


def said(*turns: tuple[str, object]) -> dict:
    return {"talk": [{"role": role, "content": content} for role, content in turns]}


TALK = {
    "prompt_field": None,
    "messages_field": "talk",
    "answer_field": "talk",
    "near_duplicates": None,
    "decontaminate": None,
}


def test_roles_by_other_names_and_system_messages(tmp_path):
    rows = [said(("developer", "Be brief."), ("User", f"What is {n}?"), ("assistant", str(n))) for n in range(5)]
    rows += [said(("system", "A."), ("developer", "B."), ("human", "Who?"), ("gpt", "5"))]
    rows += [said(("user", "When?"), ("assistant", "6"), ("system", "C."), ("developer", "D."))]
    made = select(lines(tmp_path / "a.jsonl", rows), **TALK)
    kept = everything(made)
    assert [(row.prompt, row.answer, row.system) for row in kept[4:]] == [
        ("What is 4?", "4", "Be brief."), ("Who?", "5", "A.\n\nB."), ("When?", "6", None)
    ]  # fmt: skip
    assert made.counts["later_system_messages_left_out"] == 2


def test_content_in_parts_and_messages_that_call_tools(tmp_path):
    text = [{"type": "text", "text": "What "}, {"type": "text", "text": "now?"}]
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    rows = [
        said(("user", [*text, {"type": "text", "text": str(n)}]), ("assistant", [{"text": str(n)}])) for n in range(7)
    ]
    rows += [{"talk": [{"role": "user", "content": "With a tool?"}, call]}]
    made = select(lines(tmp_path / "a.jsonl", rows), **TALK, unusable="drop")
    assert [(row.prompt, row.answer) for row in everything(made)] == [(f"What now?{n}", str(n)) for n in range(7)]
    assert [(drop.row, drop.reason, drop.detail) for drop in made.dropped] == [
        (8, "no answer", "no answer in 'talk' is empty (null)")
    ]
    for part, kind in (({"type": "image_url", "image_url": {"url": "x"}}, "image_url"), ("plain", "str")):
        path = lines(tmp_path / "b.jsonl", [said(("user", [*text, part]))])
        with pytest.raises(BadInput, match=rf"row 1: talk\.content has a part of type '{kind}'; only parts of text"):
            select(path, **TALK)
    path = lines(tmp_path / "c.jsonl", [{"talk": [{"role": "user", "text": "hi"}]}])
    with pytest.raises(BadInput, match="is no list of messages with role and content"):
        select(path, **TALK)


def test_no_message_of_a_user_says_which_roles_there_are(tmp_path):
    path = lines(tmp_path / "a.jsonl", [said(("Tool", "x"), ("assistant", "y"), ("Tool", "z")), {"talk": []}])
    with pytest.raises(BadInput, match=r"row 1: no message in 'talk' has the role user \(there: Tool, assistant\)"):
        select(path, **TALK)
    [_, empty] = select_all_dropped(path)
    assert empty.detail == "no message in 'talk' has the role user (there: no message at all)"


def select_all_dropped(path: Path) -> list[intake.Drop]:
    lines(path.with_name("more.jsonl"), [said(("user", f"What is {n}?"), ("assistant", str(n))) for n in range(9)])
    return select(path.parent, **TALK, unusable="drop").dropped


def test_decimal_columns_are_numbers(tmp_path):
    values = ["1.50", "100", "-0.25", "7", "8", "9", "10"]
    table = pl.DataFrame({"q": [f"What is {n}?" for n in values], "a": pl.Series(values).str.to_decimal(scale=2)})
    table.write_parquet(tmp_path / "a.parquet")
    made = everything(select(tmp_path / "a.parquet", near_duplicates=None))
    assert [row.answer for row in made] == ["1.5", "100", "-0.25", "7", "8", "9", "10"]


# --- choices ---------------------------------------------------------------------------------------------------
def test_a_split_by_a_column(tmp_path):
    path = lines(tmp_path / "a.jsonl", [row | {"part": "train" if n % 2 else "test"} for n, row in enumerate(ROWS)])
    made = select(path, split=NO_SPLIT | {"field": "part", "value": "train"})
    assert [row.number for row in everything(made)] == list(range(2, 21, 2))
    assert made.counts == {"read": 10, "other_split": 10, "kept": 10}
    with pytest.raises(BadInput, match="none of its rows is of the split: no 'dev' in 'part'"):
        select(path, split=NO_SPLIT | {"field": "part", "value": "dev"})


def test_limits(tmp_path):
    path = lines(tmp_path / "a.jsonl", ROWS)
    assert [row.number for row in everything(select(path, limit=9))] == list(range(1, 10))
    drawn = select(path, limit=9, limit_by="sample")
    assert drawn.counts["beyond_limit"] == 11
    prompts = {row.prompt for row in everything(drawn)}
    assert prompts != {row["q"] for row in ROWS[:9]}
    lines(path, ROWS[::-1])
    again = select(path, limit=9, limit_by="sample")
    assert {row.prompt for row in everything(again)} == prompts
    assert [row.prompt for row in again.heldout] == [row.prompt for row in select(path).heldout]


# --- what is dropped -------------------------------------------------------------------------------------------
def test_every_row_is_kept_or_dropped_once_with_its_reason(tmp_path):
    def text(*changes: tuple[int, str]) -> str:
        own = list(WORDS)
        for place, word in changes:
            own[place] = word
        return " ".join(own)

    rows = [
        *ROWS,
        {"q": "question NUMBER 3, of 21", "a": "4", "id": "again"},
        {"q": " ", "a": "1", "id": "blank"},
        {"q": "No answer here?", "a": "none", "id": "silent"},
        {"q": "x" * 100_001, "a": "1", "id": "long"},
        {"q": text(), "a": "1", "id": "first"},
        {"q": text((18, "green")), "a": "1", "id": "near"},
        {"q": "Say the eight words of the bench mark", "a": "1", "id": "whole"},
        {"q": "Never say the eight words of the bench mark aloud to any of them", "a": "1", "id": "inside"},
        {"q": "Alpha beta gamma delta epsilon zeta eta theta iota kappa lamda my?", "a": "1", "id": "bench"},
        {"q": "Alpha beta gamma delta epsilon zeta eta theta iota kappa lamda mu nu", "a": "1", "id": "passage"},
    ]
    lines(tmp_path / "rows.jsonl", rows)
    bench = ["Say the eight words of the bench mark", "alpha beta gamma delta epsilon zeta eta theta iota kappa lamda"]
    lines(tmp_path / "bench.jsonl", [{"x": prompt} for prompt in bench])
    strict = {"benchmarks": {"mine": {"file": "bench.jsonl", "field": "x"}}, "ngram": 11, "shortest": 8}
    made = select(tmp_path, decontaminate=strict, unusable="drop", duplicates="drop", id_field="id")
    assert {drop.id: drop.reason for drop in made.dropped} == {
        "again": "duplicate",
        "blank": "no prompt",
        "silent": "no answer",
        "long": "prompt too long",
        "near": "near duplicate",
        "whole": "near copy of a benchmark prompt",
        "inside": "shared passage with a benchmark prompt",
        "bench": "near copy of a benchmark prompt",
        "passage": "near copy of a benchmark prompt",
    }
    assert len(made.dropped) == 9
    assert len(everything(made)) + 9 == len(rows) == made.counts["read"]
    why = {drop.id: drop for drop in made.dropped}
    assert (why["again"].other_row, why["again"].other_id) == (4, "q-3")
    assert why["near"].other_id == "first"
    assert why["near"].similarity == pytest.approx(16 / 18)
    assert (why["inside"].other_file, why["inside"].other_row) == ("bench.jsonl", 1)
    assert why["inside"].detail == "say the eight words of the bench mark"
    loose = select(tmp_path, decontaminate=None, near_duplicates=None, unusable="drop", duplicates="drop",
                   split=NO_SPLIT | {"file": "rows.jsonl"})  # fmt: skip
    assert Counter(drop.reason for drop in loose.dropped) == {
        "duplicate": 1, "no prompt": 1, "no answer": 1, "prompt too long": 1,
    }  # fmt: skip


def test_training_prompts_share_no_passage_with_the_held_out_and_probe_sets(tmp_path):
    rows = [{"q": f"item {n} begins{n} " + " ".join([*WORDS[:13], f"end{n}"]), "a": "1"} for n in range(30)]
    others = [{"q": f"Quite another question about thing {n}, then {n * n}?", "a": "2"} for n in range(30)]
    path = lines(tmp_path / "a.jsonl", rows + others)
    made = select(path, heldout=10, probe=10, near_duplicates=None)
    evaluated = [row for row in (*made.heldout, *made.probe) if "quick" in row.prompt]
    assert evaluated
    assert not [row for row in (*made.labelled, *made.pool) if "quick" in row.prompt]
    assert len(made.dropped) == 30 - len(evaluated)
    assert {drop.detail for drop in made.dropped} == {" ".join(WORDS[:13])}


def test_nothing_left_says_what_was_dropped(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"q": f"The same question again, number {n % 2}", "a": "1"} for n in range(12)])
    with pytest.raises(BadInput, match=r"2 different prompts \(dropped: 10 duplicate\), but heldout 2, probe 2"):
        select(path, duplicates="drop")


# --- what is refused -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"questoin": "a", "a": "1"}\n', "a.jsonl has no such field; name one of: a, questoin"),
        ("a.jsonl", b'{"Q": "a", "a": "1"}\n', "prepare.options.prompt_field: given 'q', but row 1 of "),
        ("a.jsonl", b'{"q": "1", "aa": "1"}\n', "a.jsonl has no such field; did you mean 'aa'? (its fields: aa, q)"),
        ("a.jsonl", b'{"q": "a", "a": "1"}\n{"q": "b", "a": 2}\n', "row 2: field 'a' is a number, but text in row 1"),
        ("a.jsonl", b'{"q": "a", "a": "1"}\n{"q": "b", \n', "; write one object in each line, as `json.dumps` does"),
        (
            "a.jsonl",
            b'{"q": "\xfc", "a": "1"}\n',
            "row 1 is no JSON in UTF-8 (invalid start byte at byte 7); save it as UTF-8",
        ),
        ("a.jsonl", '{"q": "a"}\n'.encode("utf-16"), "looks like UTF-16"),
        ("a.jsonl", b'{"q": "' + b"x" * 17 * 2**20 + b'"}\n', "row 1 is longer than 16 MiB"),
        ("a.jsonl.gz", b"no gzip", "is no whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"q": "a", "a": "1"}\n' * 99, mtime=0)[:-9], "is no whole gzip file"),
        ("a.json", b'[{"q": "a", "a": "1"}, 7]', "row 2 is a int"),
        ("a.json", b'[{"q": "a", "a": "1"},', "; write one list of objects, as `json.dumps` does"),
        ("a.json", b"[]", "has no rows"),
        ("a.csv", b"", "has no rows"),
        ("a.csv", b"q,a\n", "has no rows"),
        ("a.csv", b"q,q\n1,2\n", "its header has 'q' more than once"),
        ("a.csv", b"q,a\n1,2\n1,2,3\n", "row 2, line 3: 3 values under 2 fields"),
        ("a.csv", b'q,a\n"1"x,2\n', "row 1 is no CSV"),
        ("a.csv", b"q;a\n1,5;2\n", "the header, 'q;a', has ';' in it: separate fields with ','"),
        ("a.csv", b'"q";"a"\n"1,5";"2"\n', "has ';' in it: separate fields with ','"),
        ("a.tsv", b'"q";"a"\n"1"x;"2"\n', "has ';' in it: separate fields with"),
        (
            "a.json",
            b'{"data": [{"q": "a", "a": "1"}]}',
            "a list below 'data', which is not read; write the list alone: `jq",
        ),
        (
            "a.json",
            b'{\n "version": 1.0,\n "rows": [\n  {"q": "a", "a": "1"}\n ]\n}',
            "a list below 'rows', which is not read",
        ),
        ("a.csv", "q,a\nZürich,2\n".encode("latin-1"), "is no UTF-8"),
        ("a.csv", "q,a\nb,2\n".encode("utf-16"), "looks like UTF-16"),
        ("a.csv", b"prompt,answer\n1,2\n", "a.csv has no such field; name one of: answer, prompt"),
        ("a.parquet", b"PAR1 or not", "; write or fetch it again, or give the file the ending of its format"),
        ("a.txt", b"q", "'.txt' is no format of prompts"),
    ],
)
def test_bad_files_are_refused_by_one_message(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    for function in (select, lambda path: families.check_inputs("text", LOOSE | {"path": name}, tmp_path)):
        with pytest.raises(BadInput) as caught:
            function(tmp_path / name)
        assert message in str(caught.value)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_bad_folders_and_tables(tmp_path):
    with pytest.raises(BadInput, match="is a folder without data files, it has no files"):
        select(tmp_path)
    (tmp_path / "notes.md").write_text("nothing")
    with pytest.raises(BadInput, match=r"it has only notes\.md"):
        select(tmp_path)
    pl.DataFrame({"question": ["a"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"but the table .*a\.parquet has no such field; name one of: question"):
        select(tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"did you mean 'a\.parquet'"):
        select(tmp_path, split=NO_SPLIT | {"file": "a.parqet"})
    benchmark = {"ngram": 13, "shortest": 8, "benchmarks": {"b": {"file": "b.jsonl", "field": "q"}}}
    with pytest.raises(BadInput, match="names files of the folder"):
        select(tmp_path / "a.parquet", decontaminate=benchmark)
    (tmp_path / "saved").mkdir()
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / "saved" / name).write_text("{}")
    with pytest.raises(BadInput, match=r"`python -m flows\.fetch"):
        select(tmp_path / "saved")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages_field": "m"}, "name one of them"),
        ({"prompt_field": None}, "name one of them"),
        ({"split": NO_SPLIT | {"field": "part"}}, "field and value go together"),
        ({"system": "a", "system_field": "b"}, "one of them is null"),
        ({"decontaminate": {"ngram": 5, "shortest": 6, "benchmarks": {}}}, "shortest: given more than ngram"),
        ({"near_duplicates": {"threshold": 1.2, "shingle": 3, "permutations": 128}}, "threshold: given 1.2"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(BadInput, match=message):
        families.create("text", LOOSE | {"path": "a.jsonl"} | options)


def test_large_files_are_looked_at_and_not_read_before_any_work(tmp_path, monkeypatch):
    path = lines(tmp_path / "a.jsonl", ROWS * 10)
    with path.open("a") as file:
        file.write("no JSON\n")
    monkeypatch.setattr(intake, "SMALL", 1000)
    read = Counter[str]()
    records = readers.records

    def counted(file, fields):
        for number, record in records(file, fields):
            read[file.name] += 1
            yield number, record

    monkeypatch.setattr(readers, "records", counted)
    assert families.check_inputs("text", LOOSE | {"path": "a.jsonl", "duplicates": "drop"}, tmp_path) is None
    assert read == {"a.jsonl": intake.SAMPLED}
    with pytest.raises(BadInput, match="row 201 is no JSON"):
        select(path)
    with pytest.raises(BadInput, match=r"prompt_field: given 'question', but row 1 of .* no such field"):
        families.check_inputs("text", LOOSE | {"path": "a.jsonl", "prompt_field": "question"}, tmp_path)


# --- real data -------------------------------------------------------------------------------------------------
@pytest.mark.skipif(
    not SHARED.is_dir(), reason="GSM8K and Self-Instruct are not part of this repository, nor beside it"
)
@pytest.mark.parametrize(
    ("options", "kept", "dropped"),
    [
        ({}, 7466, {"near duplicate": 1, "shared passage with a held-out prompt": 2,
                    "shared passage with a benchmark prompt": 4}),
        ({"near_duplicates": None, "decontaminate": None}, 7473, {}),
    ],
)  # fmt: skip
def test_gsm8k(options, kept, dropped):
    given = {"ngram": 13, "shortest": 8, "benchmarks": {"test": {"file": "test.jsonl", "field": "question"}}}
    fields = {"prompt_field": "question", "answer_field": "answer", "split": NO_SPLIT | {"file": "train.jsonl"}}
    sizes = {"heldout": 200, "probe": 100, "labelled": 1000, "decontaminate": given}
    made = select(SHARED / "gsm8k", **fields | sizes | options)
    assert made.counts == {"files_that_are_no_data": 1, "read": 7473, "other_split": 0, "kept": kept}
    assert Counter(drop.reason for drop in made.dropped) == dropped
    assert [len(part) for part in (made.heldout, made.probe, made.labelled)] == [200, 100, 1000]


@pytest.mark.skipif(
    not SHARED.is_dir(), reason="GSM8K and Self-Instruct are not part of this repository, nor beside it"
)
def test_self_instruct(tmp_path):
    fields = {"prompt_field": "instruction", "answer_field": None, "id_field": "id", "labelled": 0}
    made = select(SHARED / "self_instruct", **fields)
    assert made.counts == {"files_that_are_no_data": 1, "read": 175, "other_split": 0, "kept": 175}
    assert not made.dropped
    assert {row.id for row in everything(made)} == {f"seed_task_{n}" for n in range(175)}


def test_questions_that_differ_by_a_sign_are_two(tmp_path: Path) -> None:
    texts = [
        "3 - 2 = ?",
        "3 + 2 = ?",
        "3 * 2 = ?",
        "x > 2?",
        "x < 2?",
        "C++ or C",
        "C or C",
        "a well-known one",
        "A well known one!",
    ]
    rows = [{"q": text, "a": str(number)} for number, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = select(tmp_path / "a.jsonl", near_duplicates=None, decontaminate=None, duplicates="drop")
    assert [(drop.reason, drop.row) for drop in made.dropped] == [("duplicate", 9)]


@pytest.mark.parametrize("same", ["3 − 2 = ?", "３－２", "3 - 2", "3 -2 =", "(3)-2!"])
def test_look_alike_signs_make_no_new_question(same: str) -> None:
    assert intake.fingerprint("3 - 2 = ?") == intake.fingerprint(same) != intake.fingerprint("3 + 2 = ?")


def test_very_small_and_large_numbers_are_read_as_they_are(tmp_path: Path) -> None:
    rows = [
        {"q": f"question {number}", "a": value}
        for number, value in enumerate([0.00001, 1e20, 0.5, 72.0, 1.0, 2.0, 3.0])
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = everything(select(tmp_path / "a.jsonl", near_duplicates=None))
    assert [row.answer for row in made] == ["0.00001", "100000000000000000000", "0.5", "72", "1", "2", "3"]
