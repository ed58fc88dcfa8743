"""Exporting: what is refused, adapters, what is kept private, and the upload, on a small model that is built here."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import export
from flows.params import compose, write
from flows.sharing import outgoing
from tasks.core import tables
from tasks.core.errors import BadInput, StageFailed
from tasks.core.models import folders, tokenizers, weights

ARCHITECTURE = {"model_type": "qwen3", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}  # fmt: skip
FIGURES = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "pass_at_8": 0.75, "critique_precision": 0.9,
           "benchmark_facts_exact_match": 0.25, "benchmark_facts_exact_match_stderr": 0.1, "benchmark_facts_samples": 40}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "candidate"
    weights.build(ARCHITECTURE, tokenizers.word_tokenizer(["a", "b", "c"]), 1, folder)
    return folder


@pytest.fixture
def root(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository after one iteration, without dvc.lock. The process runs in it."""
    root = tmp_path / "repository"
    params = compose.compose("self_evolution", iterations=2)
    for key in ("i00", "i01"):
        shutil.copytree(model, root / "data" / key / "candidate")
        promote(root, key)
        (root / "data" / key / "evaluation").mkdir()
        (root / "data" / key / "evaluation/metrics.json").write_text(json.dumps(FIGURES))
    lineage = {
        "initial": {"path": "/home/me/secret/base", "digest": "a" * 32},
        "reference": {"path": "data/i00/candidate", "digest": "b" * 32},
    }
    (root / "data/i01/candidate/lineage.json").write_text(json.dumps(lineage))
    promote(root, "i01")
    (root / "params.yaml").write_text(write.render(params))
    monkeypatch.chdir(root)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return root


def promote(root: Path, key: str, of: str | None = None) -> None:
    """Writes the policy after iteration `key`: the candidate of iteration `of`."""
    path = f"data/{of or key}/candidate"
    record = {"path": path, "digest": folders.digest(root / path), "promoted": of is None, "reason": "because"}
    (root / "data" / key / "policy.json").write_text(json.dumps(record))


def adapt(folder: Path, base: str) -> Any:
    """Puts a LoRA adapter into `folder` in place of what is there; the adapted model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    shutil.rmtree(folder)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    return adapted.eval()


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.tensor([[3, 4, 5]])).logits


def test_the_newest_policy_is_exported_whole_and_without_what_is_private(root: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = tmp_path / "out" / "model"
    policy = outgoing.export(root, target, None, None, False, False)
    assert (policy.iteration, policy.made) == ("i01", "i01")
    assert (target / "model.safetensors").read_bytes() == (root / "data/i01/candidate/model.safetensors").read_bytes()
    assert AutoTokenizer.from_pretrained(target).chat_template
    assert logits(AutoModelForCausalLM.from_pretrained(target)).shape == (1, 3, 6)
    assert not (target / "lineage.json").exists()
    texts = {path.name: path.read_text() for path in target.iterdir() if path.suffix in (".json", ".md", ".jinja")}
    for name, text in texts.items():
        assert "/home/me" not in text, name
        assert str(tmp_path) not in text, name
    card = ModelCard.load(target / "README.md")
    assert card.data.library_name == "transformers"
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("accuracy", 0.5), ("pass_at_8", 0.75)]
    assert "license" not in card.data.to_dict()
    assert "| accuracy | 0.500 (0.400 to 0.600) | 0.500 (0.400 to 0.600) |" in card.text
    assert "| facts_exact_match | 0.250 (0.054 to 0.446) |" in card.text
    assert "base `aaaaaaaaaaaa`" in card.text


def test_an_iteration_whose_candidate_was_refused_goes_on_with_the_one_before(root: Path, tmp_path: Path) -> None:
    promote(root, "i01", of="i00")
    result = CliRunner().invoke(_app(), ["i01", str(tmp_path / "model")])
    assert result.exit_code == 0, result.output
    assert "i00's model" in result.output
    assert "its own candidate was refused" in result.output
    assert (tmp_path / "model/README.md").read_text().count("# self_evolution i00\n") == 1


def test_an_adapter_goes_out_under_its_bases_name_or_merged(root: Path, tmp_path: Path) -> None:
    import torch
    from huggingface_hub import ModelCard
    from transformers import AutoModelForCausalLM

    adapted = adapt(root / "data/i01/candidate", "data/i00/candidate")
    promote(root, "i01")
    with pytest.raises(BadInput, match="adapter for data/i00/candidate, a folder that others do not have; --merge"):
        outgoing.export(root, tmp_path / "plain", None, None, False, False)
    outgoing.export(root, tmp_path / "adapter", None, "owner/base", False, False)
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "owner/base"
    assert {"adapter_model.safetensors", "tokenizer.json"} <= {path.name for path in (tmp_path / "adapter").iterdir()}
    assert ModelCard.load(tmp_path / "adapter/README.md").data.base_model == "owner/base"
    outgoing.export(root, tmp_path / "merged", None, None, True, False)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), logits(adapted), atol=1e-5, rtol=1e-5)
    before = AutoModelForCausalLM.from_pretrained(root / "data/i00/candidate").eval()
    assert not torch.allclose(logits(merged), logits(before), atol=1e-3)


def test_where_a_reply_ends_goes_out_with_the_model(root: Path, tmp_path: Path) -> None:
    """Also of a model that nothing here has written: its tokenizer names another end than its template writes."""
    folder = root / "data/i01/candidate"
    template = "{% for m in messages %}{{ m.content + ('<pad>' if m.role == 'assistant' else ' ') }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    own = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    ends = [tokenizers.load_tokenizer(folder).eos_token_id, own]
    assert ends[0] != own
    promote(root, "i01")
    outgoing.export(root, tmp_path / "whole", None, None, False, False)
    adapt(folder, "data/i00/candidate")
    for path in (root / "data/i00/candidate").glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    (folder / "chat_template.jinja").write_text(template)
    promote(root, "i01")
    outgoing.export(root, tmp_path / "adapter", None, "owner/base", False, False)
    outgoing.export(root, tmp_path / "merged", None, None, True, False)
    for name in ("whole", "adapter", "merged"):
        assert json.loads((tmp_path / name / "generation_config.json").read_text())["eos_token_id"] == ends, name
    assert "GenerationConfig.from_pretrained(folder)" in (tmp_path / "adapter/README.md").read_text()
    assert "GenerationConfig" not in (tmp_path / "whole/README.md").read_text()


def _changed(root: Path) -> None:
    (root / "data/i01/candidate/config.json").write_text('{"model_type": "qwen3"}')


def _gone(root: Path) -> None:
    record = {"path": "owner/nowhere", "digest": "c" * 32}
    (root / "data/i01/policy.json").write_text(json.dumps(record))


def _foreign(root: Path) -> None:
    (root / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")


@pytest.mark.parametrize(
    ("arguments", "spoil", "message"),
    [
        (["full"], None, "full is there and not empty"),
        (["i07", "new"], None, "unknown iteration 'i07'"),
        (["i02", "new"], None, "i02 has no promoted policy"),
        (["new"], _changed, "model data/i01/candidate has changed since it was promoted"),
        (["new"], _gone, "model owner/nowhere is not there"),
        (["new"], _foreign, "params.yaml is not what made i01's model"),
        (["new", "--datasets"], None, "data/i01/dataset is not there"),
        (["new", "--push", "owner/name"], None, "--push needs a token"),
        (["new", "--push", "name"], None, "a repository on the hub is owner/name"),
        (["i01", "new", "more"], None, "at most an iteration and a new folder"),
    ],
)
def test_refusals_come_first_and_leave_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], spoil: Any, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    (root / "full").mkdir()
    (root / "full/file").touch()
    if spoil:
        spoil(root)
    result = CliRunner().invoke(_app(), arguments)
    assert isinstance(result.exception, BadInput)
    assert message in str(result.exception)
    assert sorted(path.name for path in root.iterdir() if path.name != "dvc.lock") == [
        ".autodidact",
        "data",
        "full",
        "params.yaml",
    ]


def _app() -> Any:
    import typer

    app = typer.Typer()
    app.command()(export.command)
    return app


# --- a hub ---------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """What the client of a hub asks for when it makes a repository and uploads small files."""

    asked: list[tuple[str, str, bytes]]  # path, token, body
    refuses: bool

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, self.headers.get("Authorization", ""), body))
        path = self.path.partition("?")[0]
        if self.refuses:
            return self._answer({"error": "you may not write here"}, 403)
        if path.endswith("/repos/create"):
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            kind = "datasets/" if given.get("type") == "dataset" else ""
            return self._answer({"url": f"http://{self.headers['Host']}/{kind}{name}"})
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if "/commit/" in path:
            repo = path.removeprefix("/api/").removeprefix("models/").removesuffix("/commit/main")
            return self._answer(
                {"success": True, "commitOid": "d" * 40, "commitUrl": f"http://{self.headers['Host']}/{repo}/commit/d"}
            )
        return self._answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self._answer({"siblings": [], "id": "owner/name", "sha": "d" * 40})

    def _answer(self, value: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("Asked", (Hub,), {"asked": [], "refuses": False})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    server.server_close()


def test_the_folder_is_uploaded_with_the_users_token_and_the_datasets_apart(
    root: Path, tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    dataset = root / "data/i01/dataset"
    for name, schema in (("sft", tables.SFT), ("pairs", tables.PAIRS), ("dropped", tables.DROPPED)):
        tables.write(tables.empty(schema), dataset / f"{name}.parquet", schema)
    (dataset / "README.md").write_text(tables.dataset_card({"sft": 1, "pairs": 0, "dropped": 0}))
    result = CliRunner().invoke(_app(), [str(tmp_path / "model"), "--push", "owner/name", "--datasets"])
    assert result.exit_code == 0, result.output
    assert result.output.count("pushed to http://127.0.0.1") == 2
    assert "secret" not in result.output
    assert all(token == "Bearer secret" for _, token, _ in hub.asked if token)
    made = [json.loads(body) for path, _, body in hub.asked if path.endswith("/repos/create")]
    assert [given["visibility"] for given in made] == ["private", "private"]
    files = {path: _committed(body) for path, _, body in hub.asked if "/commit/" in path}
    assert len(files) == 2
    own = files["/api/models/owner/name/commit/main"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= own
    assert not any(name.startswith("datasets") for name in own)
    assert files["/api/datasets/owner/name-data/commit/main"] == {
        "README.md",
        "sft.parquet",
        "pairs.parquet",
        "dropped.parquet",
    }


def _committed(body: bytes) -> set[str]:
    lines = [json.loads(line) for line in body.splitlines()]
    return {line["value"]["path"] for line in lines if line["key"] == "file"}


def test_a_hub_that_refuses_leaves_the_folder(
    root: Path, tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.refuses = True
    target = tmp_path / "model"
    outgoing.export(root, target, None, None, False, False)
    with pytest.raises(StageFailed, match=r"the hub refused it .*403.*; try `hf upload owner/name"):
        outgoing.push(target, "owner/name", "secret", False)
    assert (target / "model.safetensors").is_file()
