"""What executions used: paid by all of them, needed by the last, from records made by hand."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows import costs
from flows.history import account as history_account
from flows.history import lock, overview, records
from flows.params import compose
from flows.params.schema import Prices
from tasks.core import digests, tables
from tests.support.work import write_yaml

PRICES = {
    "currency": "EUR",
    "prompt_tokens": 2.0,
    "completion_tokens": 10.0,
    "engine_hours": 3.6,
    "training_hours": 7.2,
}
FIGURES = {
    "requests": 100,
    "requests_made": 80,
    "requests_distinct": 80,
    "engine_prompt_tokens": 4000,
    "engine_tokens": 2000,
    "distinct_prompt_tokens": 4000,
    "distinct_tokens": 2000,
    "engine_seconds": 5.0,
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a dataset of i01 (three new rows, one new pair) and samples that dvc.lock knows."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    write_params(tmp_path)
    dataset = tmp_path / "data/i01/dataset"
    dataset.mkdir(parents=True)
    parts = [("own", "i01")] * 3 + [("own", "i00"), ("solve", None)]
    row = dict.fromkeys(tables.SFT) | {"prompt": [], "completion": [], "weight": 1.0}
    rows = [row | {"row_id": str(i), "part": part, "iteration": key} for i, (part, key) in enumerate(parts)]
    tables.frame(rows, tables.SFT).write_parquet(dataset / "sft.parquet")
    pair = dict.fromkeys(tables.PAIRS) | {"part": "own", "iteration": "i01"}
    tables.frame([pair], tables.PAIRS).write_parquet(dataset / "pairs.parquet")
    (tmp_path / "data/i01/samples.parquet").write_text("samples")
    params = compose.compose("self_evolution")
    entry = {
        "cmd": "sample",
        "params": {"params.yaml": {"sample": params["sample"]}},
        "outs": [{"path": "data/i01/samples.parquet", "md5": "0"}],
    }
    write_yaml(tmp_path / "dvc.lock", {"schema": "2.0", "stages": {"sample@i01": entry}})
    return tmp_path


def write_params(root: Path, **changes: Any) -> dict[str, Any]:
    params = compose.compose("self_evolution") | changes
    write_yaml(root / "params.yaml", json.loads(json.dumps(params)))
    return params


def record(root: Path, stage: str, number: int = 0, evolution: str | None = None, **changes: Any) -> None:
    """A record of i01; of the evolution of params.yaml unless another is named."""
    ours = lock.evolution_id(compose.compose("self_evolution"))
    made: dict[str, Any] = {
        "id": f"{stage}-{number}",
        "stage": stage,
        "iteration": "i01",
        "status": "finished",
        "started": 100.0 + number,
        "seconds": 10.0,
        "work_seconds": 8.0,
        "figures": FIGURES,
        "tags": {"evolution": evolution or ours},
        "outputs": {},
    }
    if stage == "sample":
        made["outputs"] = {"data/i01/samples.parquet": digests.of_file(root / "data/i01/samples.parquet")}
    records.write_record(root, made | changes)


def account(root: Path, **changes: Any) -> history_account.Account:
    return history_account.account(root, compose.compose("self_evolution") | changes)


def line(found: history_account.Account, stage: str) -> history_account.Line:
    return next(line for line in found.lines if (line.stage, line.iteration) == (stage, "i01"))


def test_cost_by_hand() -> None:
    trained = {"training_tokens": 500}
    spent = history_account.of_record({"seconds": 10.0, "work_seconds": 8.0, "figures": FIGURES | trained})
    assert spent.training_seconds == 8.0
    euros = 4000 * 2e-6 + 2000 * 10e-6 + 5 / 3600 * 3.6 + 8 / 3600 * 7.2
    assert spent.cost(Prices(**PRICES)) == pytest.approx(euros) == pytest.approx(0.049)
    assert (spent.busy, spent.tokens_per_second) == (0.5, 400.0)
    assert history_account.of_record({"seconds": 10.0, "figures": FIGURES}).training_seconds == 0.0
    assert history_account.of_record({"seconds": 10.0, "figures": trained}).tokens_per_second == 50.0


def test_executions_add_up_in_what_was_paid_and_the_last_counts_in_what_is_needed(root: Path) -> None:
    record(root, "sample", 0, status="failed", outputs={})
    record(root, "sample", 1, figures=FIGURES | {"requests_made": 30, "engine_tokens": 700, "engine_seconds": 2.0})
    found = line(account(root), "sample")
    assert found.state == "paid"
    assert (found.paid.executions, found.paid.failed, found.paid.made) == (2, 1, 110)
    assert (found.paid.tokens, found.paid.seconds, found.paid.engine_seconds) == (2700, 20.0, 7.0)
    assert (found.needed.made, found.needed.tokens) == (80, 2000)
    assert found.needed.unknown == 1  # 50 replies were stored: nobody knows how long they would have taken


def test_what_other_params_paid_is_restored_and_what_no_record_knows_is_unknown(root: Path) -> None:
    found = line(account(root), "sample")
    assert (found.state, found.paid.unknown, found.paid.seconds, found.needed.unknown) == ("unknown", 1, 0.0, 1)
    assert line(account(root), "critique").state == "missing"
    record(root, "sample", evolution="another")
    found = line(account(root), "sample")
    assert (found.state, found.paid, found.needed.tokens) == ("restored", history_account.Spent(), 2000)


def test_a_killed_execution_is_counted_and_its_use_unknown(root: Path) -> None:
    record(root, "train", 0, status="failed", seconds=None, work_seconds=None, figures={})
    record(root, "train", 1, status="running", seconds=None, figures={})
    assert line(account(root), "train").paid == history_account.Spent(executions=1, failed=1, unknown=1)


def test_a_row_costs_what_the_stages_that_made_it_paid(root: Path) -> None:
    for stage in ("synthesize", "sample", "critique", "refine", "filter", "train"):
        record(root, stage)
    found = account(root, prices=PRICES)
    each = 4000 * 2e-6 + 2000 * 10e-6 + 5 / 3600 * 3.6
    assert found.rows == {"i01": 4}
    assert found.per_row("i01") == pytest.approx({"row_tokens": 5 * 6000 / 4, "row_cost": 5 * each / 4})
    assert found.sum("paid", "i01").tokens == 6 * 2000
    assert account(root).per_row("i01").keys() == {"row_tokens"}
    (records.records_dir(root) / "critique-0.json").unlink()
    assert account(root).per_row("i01") == {}


def test_prices_belong_to_no_evolution(root: Path) -> None:
    params = compose.compose("self_evolution")
    assert lock.evolution_id(params) == lock.evolution_id(params | {"prices": PRICES})
    assert lock.evolution_id(params) != lock.evolution_id(params | {"seed": 5})


def test_the_command_and_the_summary_show_costs_where_there_are_prices(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    record(root, "sample")
    record(root, "sample", 1, status="failed", outputs={})
    costs.command(as_json_=False)
    shown = capsys.readouterr().out
    assert "2 (1 failed)" in shown
    assert "no prices" in shown
    assert overview.paid(root) is None
    write_params(root, prices=PRICES)
    costs.command(as_json_=False)
    assert "EUR" in capsys.readouterr().out
    heading, cells = overview.paid(root) or ("", [])
    assert (heading, cells[1]) == ("paid,\nEUR", "0.07")
    costs.command(as_json_=True)
    told = json.loads(capsys.readouterr().out)
    (sample,) = [stage for stage in told["stages"] if (stage["stage"], stage["iteration"]) == ("sample", "i01")]
    assert sample["paid"]["cost"] == told["run"]["paid"]["cost"] == pytest.approx(0.066)
    assert sample["needed"]["cost"] == pytest.approx(0.033)
    assert told["run"]["rows"] == 4
    assert pl.DataFrame(told["stages"]).height == 28
