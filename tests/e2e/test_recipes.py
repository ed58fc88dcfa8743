"""A spread of recipes end to end, in one process, at miniature size; those of a family share one base through DVC's run
cache. `make recipes` runs all of them."""

import json
import shutil

import polars as pl
import pytest

from tasks.core import tables
from tests.support.workspace import assert_told, digests, edit, lock, one_thread, ran, requests_made, run, workspace

pytestmark = pytest.mark.slow


KEYS = ("i01", "i02")


@pytest.fixture(scope="module")
def cache(finished, tmp_path_factory):
    """With prepare and base of countdown in it."""
    place = tmp_path_factory.mktemp("recipes")
    return shutil.copytree(finished.parent / "cache", place / "cache")


def evolved(tmp_path, cache, recipe, iterations):
    folder = workspace(tmp_path / "here", cache, recipe, iterations=len(iterations))
    one_thread(folder)
    output = run(folder, "python", "-m", "flows.evolve")
    assert iterations[-1] in output
    assert len(lock(folder)) == 4 + 8 * len(iterations)
    assert_told(folder)
    return folder


def dataset(folder, key, name, schema):
    return tables.read(folder / "data" / key / "dataset" / f"{name}.parquet", schema)


@pytest.mark.parametrize("recipe", ["lmsi", "unfiltered", "oracle", "b_star", "sharpening", "east"])
def test_recipes_that_train_on_answers(tmp_path, cache, recipe):
    folder = evolved(tmp_path, cache, recipe, KEYS[:1])
    rows = dataset(folder, "i01", "sft", tables.SFT)
    assert set(rows.filter(pl.col("part") == "own")["iteration"]) == {"i01"}
    assert digests(folder)["data/i00/candidate"] != digests(folder)["data/i01/candidate"]


@pytest.mark.parametrize("recipe", ["self_rewarding", "scpo", "cream", "evolve_self_refinement"])
def test_recipes_that_train_on_pairs(tmp_path, cache, recipe):
    keys = KEYS if recipe == "self_rewarding" else KEYS[:1]
    folder = evolved(tmp_path, cache, recipe, keys)
    for key in keys:
        pairs = dataset(folder, key, "pairs", tables.PAIRS)
        assert pairs.height
        assert pairs["margin"].min() > 0
        if recipe == "cream":
            assert set(pairs["smoothing"]) == {0.0}  # the first policy and the last one are the same model
        if recipe == "scpo":
            assert pairs["weight"].to_list() == pairs["margin"].to_list()
        lineage = json.loads((folder / "data" / key / "candidate/lineage.json").read_text())
        assert lineage["reference"]["digest"]
    if recipe == "self_rewarding":
        asked = requests_made(folder)
        edit(folder, "iterations.i02.train", {"dpo": {"loss": "ipo"}})
        assert set(ran(run(folder, "dvc", "repro"))) == {"train@i02", "evaluate@i02", "promote@i02", "report"}
        assert set(requests_made(folder) - asked) == {"evaluate@i02"}


def test_a_recipe_that_trains_on_rated_answers(tmp_path, cache):
    folder = evolved(tmp_path, cache, "kto", KEYS[:1])
    rated = dataset(folder, "i01", "rated", tables.RATED)
    assert set(rated["label"]) == {True, False}
    assert rated["value"].cast(pl.Boolean).to_list() == rated["label"].to_list()


@pytest.mark.parametrize(
    ("recipe", "ways"), [("self_certainty_bon", ["best_of_n", "borda", "majority"]), ("p_true", ["p_true"])]
)
def test_a_recipe_that_trains_nothing_measures_ways_to_answer(tmp_path, cache, recipe, ways):
    folder = evolved(tmp_path, cache, recipe, KEYS[:1])
    figures = [json.loads((folder / f"data/{key}/evaluation/metrics.json").read_text()) for key in ("i00", "i01")]
    assert figures[0]["accuracy"] == figures[1]["accuracy"]  # the same model; its samples are drawn anew
    for way in ways:
        low, share, high = (figures[0][f"accuracy_{way}{end}"] for end in ("_low", "", "_high"))
        assert low <= share <= high
        assert figures[0][f"tokens_{way}"] > 0
    if "majority" in ways:
        assert figures[0]["accuracy_majority"] == figures[0]["maj_at_8"]


def test_self_improving_transformers_grows_by_one_digit(tmp_path, cache):
    folder = evolved(tmp_path, cache, "self_improving_transformers", KEYS)
    lengths = [
        set(tables.read(folder / "data" / key / "prompts.parquet", tables.PROMPTS)["difficulty"]) for key in KEYS
    ]
    assert lengths == [{9}, {10}]
    parts = set(dataset(folder, "i02", "sft", tables.SFT)["part"])
    assert parts == {"own", "earlier", "solve"}
