"""What a run leaves is opened by others: `datasets`, `transformers`, TRL's own scripts and the hub's card reader."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tasks.core import tables
from tests.support.workspace import environment, run

OPTIONS = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu", "--bf16", "False", "--report_to", "none",
           "--gradient_checkpointing", "False", "--save_strategy", "no", "--learning_rate", "0.001"]  # fmt: skip


def test_a_run_is_exported_with_its_data_and_a_card(finished: Path, tmp_path: Path) -> None:
    from datasets import load_dataset
    from huggingface_hub import DatasetCard, ModelCard
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = tmp_path / "model"
    said = run(finished, "python", "-m", "flows.export", "i01", str(target), "--datasets")
    policy = json.loads((finished / "data/i01/policy.json").read_text())
    assert policy["digest"] in said
    made = policy["path"].split("/")[1]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "fact 3 + 4 ="}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]
    card = ModelCard.load(target / "README.md")
    metrics = json.loads((finished / f"data/{made}/evaluation/metrics.json").read_text())
    assert card.data.eval_results[0].metric_value == metrics["accuracy"]
    assert "SELF" in card.text
    samples = pl.read_parquet(finished / "data/i01/samples.parquet").height
    if made == "i01":
        assert f" {samples:,} " in card.text
    for path in target.rglob("*"):
        if path.suffix in (".json", ".md", ".jinja"):
            assert str(finished) not in path.read_text(), path.name
    assert DatasetCard.load(target / "datasets/README.md").data.configs[0]["config_name"] == "sft"
    rows = load_dataset(str(target / "datasets"), "sft", cache_dir=str(tmp_path / "cache"))["train"]
    kept = tables.read(finished / f"data/{made}/dataset/sft.parquet", tables.SFT)
    assert rows["completion"] == kept["completion"].to_list()


def test_trls_own_scripts_train_on_the_artifacts_as_they_are(finished: Path, tmp_path: Path) -> None:
    """`trl sft` on the run's dataset folder and model; `trl dpo` on the same folder with pairs in it."""
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (dataset / "README.md").write_text(tables.dataset_card({"sft": 0, "pairs": 8, "dropped": 0}))
    sft = tables.read(finished / "data/i01/dataset/sft.parquet", tables.SFT).head(8)
    pairs = [
        {**dict.fromkeys(tables.PAIRS), "row_id": row["row_id"], "part": "own", "prompt": row["prompt"],
         "chosen": row["completion"], "rejected": [{"role": "assistant", "content": "1"}], "margin": 1.0, "weight": 1.0,
         "smoothing": 0.0}
        for row in sft.iter_rows(named=True)
    ]  # fmt: skip
    tables.write(tables.frame(pairs, tables.PAIRS), dataset / "pairs.parquet", tables.PAIRS)
    for name, schema in (("sft", tables.SFT), ("dropped", tables.DROPPED)):
        tables.write(tables.empty(schema), dataset / f"{name}.parquet", schema)
    model = ["--model_name_or_path", str(finished / "data/i01/candidate"), *OPTIONS]
    scripts = {
        "sft": ["--dataset_name", str(finished / "data/i01/dataset"), "--dataset_config", "sft", *model],
        "dpo": ["--dataset_name", str(dataset), "--dataset_config", "pairs", *model],
    }
    code = "import json, runpy, sys\nfor name, given in json.loads(sys.argv.pop()).items():\n"
    code += "    sys.argv = [name, *given]; runpy.run_module(f'trl.scripts.{name}', run_name='__main__')"
    for name, given in scripts.items():
        given += ["--output_dir", str(tmp_path / name)]
    done = subprocess.run(  # both in one process: importing TRL takes longer than training
        [sys.executable, "-c", code, json.dumps(scripts)],
        cwd=tmp_path,
        env={**environment(tmp_path), "HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    before = (finished / "data/i01/candidate/model.safetensors").read_bytes()
    trained = {(tmp_path / name / "model.safetensors").read_bytes() for name in scripts}
    assert before not in trained
    assert len(trained) == 2


@pytest.mark.parametrize("name", ["sft", "dropped"])
def test_a_datasets_folder_opens_table_by_table(finished: Path, tmp_path: Path, name: str) -> None:
    from datasets import load_dataset

    rows = load_dataset(str(finished / "data/i01/dataset"), name, cache_dir=str(tmp_path))["train"]
    assert rows.num_rows == pl.read_parquet(finished / f"data/i01/dataset/{name}.parquet").height
