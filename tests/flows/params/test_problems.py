"""params.yaml: what is refused, in which words, and what a stage gets as its own."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.params import compose, problems, schema, sections, trainable, write
from flows.params.file import load, parse
from flows.run.declared import declared, graph
from tasks.core.errors import BadInput, UnknownName
from tasks.families.text import family
from tests.support.models import model_files
from tests.support.paths import ROOT
from tests.support.work import pairs

BENCHMARK = {"tasks": ["facts"], "fewshot": 0, "limit": 8, "chat_template": True, "max_new_tokens": 8}
OPTIONS = compose.compose("self_evolution")["prepare"]["options"]


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return compose.compose("self_evolution")


@pytest.fixture
def params(committed: dict[str, Any]) -> dict[str, Any]:
    return parse(write.render(committed), "params.yaml")


LORA = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj"], "adapter": "keep", "load_in_4bit": False}


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Sets a dotted path; a mapping shared by alias is changed in both places, as in the file."""
    *folders, last = path.split(".")
    for name in folders:
        tree = tree[name]
    tree[last] = value


def refusal(params: dict[str, Any]) -> str:
    with pytest.raises(BadInput) as caught:
        problems.check(params, recipes=compose.names())
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_an_adapter_keeps_its_shape_from_one_iteration_to_the_next(params: dict[str, Any]) -> None:
    put(params, "train.sft.lora", LORA)
    problems.check(params)
    put(params, "iterations.i02.train", {"sft": {"lora": {"rank": 4}}})
    assert "train.sft.lora: given {'rank': 4," in refusal(params)
    put(params, "iterations.i01.train", {"sft": {"lora": {"adapter": "merge"}}})
    put(params, "iterations.i02.train", {"sft": {"lora": {"rank": 4, "adapter": "merge"}}})
    problems.check(params)


def test_what_this_machine_lacks_for_training(params: dict[str, Any], tmp_path: Path) -> None:
    keys = ["i01", "i02"]
    assert list(trainable.machine(params, keys, tmp_path)) == []
    put(params, "train.sft.accelerate", "eight_gpus.yaml")
    (told,) = {line for line in trainable.machine(params, keys, tmp_path) if line.startswith("train")}
    assert told.startswith("train.sft.accelerate: given 'eight_gpus.yaml': there is no such file; `accelerate config")
    (tmp_path / "eight_gpus.yaml").write_text("distributed_type: MULTI_GPU\n")
    assert list(trainable.machine(params, keys, tmp_path)) == []
    put(params, "train.sft.lora", {**LORA, "load_in_4bit": True})
    (told,) = trainable.machine(params, keys, tmp_path)
    assert told.startswith("train.sft.lora.load_in_4bit: given true, but ")
    assert "bitsandbytes" in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nonsense: [", "gpus.yaml: while parsing a flow node expected the node content"),
        ("- 1", "gpus.yaml: is no mapping of settings; `accelerate config --config_file gpus.yaml` makes one"),
        ("num_processes: 2", "gpus.yaml: A `distributed_type` must be specified in the config file; `accelerate"),
        ("distributed_type: FSDPP", "gpus.yaml: 'FSDPP' is not a valid DistributedType"),
        ("distributed_type: NO", "gpus.yaml: False is not a valid DistributedType; write 'NO' with quotation marks"),
        ("distributed_type: DEEPSPEED", "gpus.yaml: distributed_type is DEEPSPEED, and deepspeed is not installed"),
        (
            "distributed_type: FSDP\nnum_proceses: 2",
            "gpus.yaml: The config file at gpus.yaml had unknown keys (['num_proceses'])",
        ),
        ("distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {fsdp_version: 2}", None),
        ("distributed_type: 'NO'", None),
    ],
)
def test_a_file_that_accelerate_would_refuse(
    params: dict[str, Any], tmp_path: Path, text: str, expected: str | None
) -> None:
    put(params, "train.sft.accelerate", "gpus.yaml")
    (tmp_path / "gpus.yaml").write_text(text)
    told = {line for line in trainable.machine(params, ["i01"], tmp_path) if line.startswith("train")}
    assert len(told) == (expected is not None)
    assert all(line.startswith(f"train.sft.accelerate: {expected}") for line in told)


def test_targets_of_lora_are_layers_of_the_model(params: dict[str, Any], tmp_path: Path) -> None:
    put(params, "train.sft.lora", {**LORA, "targets": ["q_prj"]})
    (told,) = trainable.targets(params, ["i01", "i02"], None)
    assert told.startswith(
        "train.sft.lora.targets (layers of this model): unknown layer 'q_prj'; did you mean 'q_proj'? (known: "
    )
    put(params, "train.sft.lora", {**LORA, "targets": ["q_proj", "self_attn.v_proj", "all-linear"]})
    (told,) = trainable.targets(params, ["i01", "i02"], None)
    assert "unknown layer 'all-linear'" in told
    params["base"]["pretrained"] = "m"
    assert list(trainable.targets(params, ["i01"], None)) == []  # still to be fetched
    own = {"h.0.special.weight": [2, 2], "h.0.ln.weight": [2], "lm_head.weight": [2, 2]}
    folder = model_files(tmp_path / "m", **own)
    put(params, "train.sft.lora", {**LORA, "targets": ["special", "h.0.special", "ln", "q_proj"]})
    (told,) = trainable.targets(params, ["i01"], folder)
    assert told.endswith("unknown layer 'ln' (known: special)")


def test_the_committed_file_passes_every_check() -> None:
    problems.check(load(ROOT), ROOT, compose.names())


def test_one_line_switches_the_engine(params: dict[str, Any]) -> None:
    params["engine"]["name"] = "openai"
    problems.check(params, ROOT, compose.names())


@pytest.mark.parametrize(
    ("path", "value"),
    [("base_urls", ["https://me:SECRET@host/v1"]), ("base_urls", ["https://host/v1?key=SECRET"]),
     ("base_urls", ["SECRET"]), ("key_variable", "sk-SECRET"), ("key_variable", "hf_SECRETaBc0123")],
)  # fmt: skip
def test_a_key_in_the_file_is_refused_and_not_repeated(params: dict[str, Any], path: str, value: Any) -> None:
    put(params, f"serving.openai.{path}", value)
    message = refusal(params)
    assert message.startswith(f"serving.openai.{path}")
    assert "SECRET" not in message


@pytest.mark.parametrize("name", ["api_key", "Authorization", "my_access_token"])
def test_a_key_in_what_goes_into_every_request_is_refused(params: dict[str, Any], name: str) -> None:
    put(params, "engine.endpoint.extra", {"top_k": -1, name: "SECRET"})
    message = refusal(params)
    assert message.startswith(f"engine.endpoint.extra.{name}: looks like a key")
    assert "SECRET" not in message


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("sampel", {}, "params.yaml: unknown key 'sampel'; did you mean 'sample'?"),
        ("recipe", "self_evolutoin", "did you mean 'self_evolution'?"),
        ("recipe", 3, "recipe: given 3"),
        ("seed", -1, "seed: given -1; input should be greater than or equal to 0"),
        ("seed", True, "seed: given True"),
        ("labels", "no", "labels: given 'no'"),
        ("engine.name", "transfomers", "engine.name: unknown engine 'transfomers'; did you mean 'transformers'?"),
        ("engine.precision", "float16", "engine.precision: given 'float16'"),
        ("engine.threads", 0, "engine.threads: given 0; input should be greater than or equal to 1"),
        ("engine.batch", 4, "engine: unknown key 'batch'; did you mean 'batch_size'?"),
        ("engine.name", "opnai", "engine.name: unknown engine 'opnai'; did you mean 'openai'?"),
        ("engine.endpoint.protocol", "responses", "engine.endpoint.protocol: given 'responses'"),
        ("engine.endpoint.modle", "m", "engine.endpoint: unknown key 'modle'; did you mean 'model'?"),
        ("engine.endpoint.extra", {"temperature": 1.0}, "engine.endpoint.extra.temperature: is set elsewhere"),
        ("serving.openai.base_urls", [], "serving.openai.base_urls: given no address"),
        ("serving.openai.base_urls", ["localhost:8000"], "serving.openai.base_urls.0: is no address of a server"),
        ("serving.openai.base_urls", ["http://h:x/v1"], "serving.openai.base_urls.0: is no address of a server"),
        ("serving.openai.timeout", 0, "serving.openai.timeout: given 0"),
        ("prepare.family", "countdwon", "prepare.family: unknown family 'countdwon'; did you mean 'countdown'?"),
        ("prepare.options.heldout_shar", 0.1, "did you mean 'heldout_share'?"),
        ("synthesize.pool.n", "many", "synthesize.pool.n: given 'many'"),
        ("sample.iid.temperature", -0.5, "sample.iid.temperature: given -0.5"),
        ("sample.iid.temprature", 1.0, "sample.iid: unknown key 'temprature'; did you mean 'temperature'?"),
        ("sample.iid.block", "iidk", "sample.iid: unknown block 'iidk'; did you mean 'iid_k'?"),
        ("sample.iid.temperature", float("inf"), "sample.iid.temperature: given inf"),
        ("sample", [1], "sample: given [1]; a mapping is wanted"),
        ("sample", None, "sample: given None; a mapping is wanted"),
        ("critique.factored", 3, "critique.factored: given 3; a block takes a mapping"),
        (
            "filter.accepted.critic",
            "factord",
            "filter.accepted.critic: unknown critic 'factord'; did you mean 'factored'?",
        ),
        ("refine.revise.critic", "judge", "refine.revise.critic: unknown critic 'judge'"),
        ("evaluate.best_of", "factord", "did you mean 'factored'?"),
        ("train.sft.mixture.solv", 3, "unknown part 'solv'; did you mean 'solve'?"),
        ("train.sft.mixture.earlier", 3, "(what filter makes): unknown part 'earlier'"),
        ("train.sft.learning_rate", 0, "train.sft.learning_rate: given 0"),
        ("train.sft.warmup_steps", 151, "train.sft.warmup_steps: given 151, but there are 150 steps"),
        ("base.sft.warmup_steps", 1301, "base.sft.warmup_steps: given 1301, but there are 1300 steps"),
        (
            "base.sft.mixture.usge",
            3,
            "base.sft.mixture (what the corpus has): unknown part 'usge'; did you mean 'usage'?",
        ),
        (
            "base.sft.mixture",
            {"solve": 4},
            "base.sft.mixture: the corpus has critique, fact, invent, refine, usage too",
        ),
        ("prepare.options.corpus.invent", 0, "unknown part 'invent'"),
        (
            "filter.replay.parts",
            ["solv"],
            "filter.replay.parts (what the corpus has): unknown part 'solv'; did you mean",
        ),
        (
            "sample.iid.temperature",
            0.0,
            "sample.iid.temperature: given 0.0; 9 samples of a prompt at temperature 0 are 9 times the "
            "same; raise it, or set n to 1",
        ),
        (
            "evaluate.temperature",
            0.0,
            "evaluate.temperature: given 0.0; 8 samples of a prompt at temperature 0 are 8 times the same; "
            "raise it, or set samples to 1",
        ),
        ("base.chat_template", "plane", "unknown chat template 'plane'; did you mean 'plain'?"),
        ("base.chat_template_options", None, "base.chat_template_options: given None; a mapping is wanted"),
        ("base.chat_template_options", {"tools": []}, "base.chat_template_options.tools: every template is given that"),
        ("train.sft.packing", 1, "train.sft.packing: given 1"),
        ("train.sft.pass_tokens", 0, "train.sft.pass_tokens: given 0"),
        ("train.sft.lora", {**LORA, "adapter": "kept"}, "train.sft.lora.adapter: given 'kept'; input should be 'keep'"),
        ("base.architecture.hidden_size", "x", "base.architecture.hidden_size: given 'x'; transformers wants int"),
        ("base.architecture.hidden_size", -4, "base.architecture.hidden_size: given -4; a size is at least 1"),
        ("base.architecture.num_hidden_layers", 0, "num_hidden_layers: given 0; a size is at least 1"),
        ("base.architecture.num_hidden_layers", True, "num_hidden_layers: given True; transformers wants int"),
        ("base.architecture.tie_word_embeddings", "no", "tie_word_embeddings: given 'no'; transformers wants bool"),
        ("promote.metric", "pass_at_16", "promote.metric (what evaluate measures): unknown metric 'pass_at_16'"),
        ("promote.metric", "accuracy_difficulty_4", "did you mean 'accuracy_difficulty_"),
        ("promote.metric", "acuracy", "did you mean 'accuracy'?"),
        ("prepare.options", {**OPTIONS, "numbers": 4, "largest": 60}, "make up to 36,335,565 puzzles"),
        ("critique.3", {}, "critique.3: given the int 3 as a name"),
        ("critique.truth", {"block": "verifier"}, "critique.truth: block verifier reads the truth"),
        ("iterations", {}, "iterations: given {}"),
        ("iterations.i02.previous", "i07", "iterations.i02.previous: unknown earlier iteration 'i07'"),
        ("iterations.i02.previous", "i02", "iterations.i02.previous: unknown earlier iteration 'i02'"),
        ("iterations.i02.judge", "i03", "iterations.i02.judge: unknown earlier iteration 'i03'"),
        ("iterations.i02.initial", 1, "iterations.i02.initial: given 1"),
        ("iterations.i02.sampel", {}, "iterations.i02: unknown key 'sampel'; did you mean 'sample'?"),
        ("iterations.i02.sample", None, "iterations.i02.sample: given None"),
        ("iterations.i02.sample", {"iid": {"n": 0}}, "iterations.i02: sample.iid.n: given 0"),
        ("iterations.../x", {}, ""),
        ("evaluations.i00", 3, "evaluations.i00: given 3"),
        ("evaluations.i00", {"samples": 0}, "evaluations.i00: evaluate.samples: given 0"),
        ("evaluations.i04", {}, "evaluations.i04: there is no such iteration"),
        ("iterations.i02.evaluate", {"samples": 2}, "overrides of evaluate stand in evaluations.i02"),
    ],
)
def test_refused_with_place_and_advice(params: dict[str, Any], path: str, value: Any, expected: str) -> None:
    if path == "iterations.../x":
        params["iterations"]["../x"] = params["iterations"]["i01"]
        assert "iterations.../x: is no iteration's key" in refusal(params)
        return
    if path == "critique.3":
        params["critique"][3] = value
    else:
        put(params, path, value)
    assert expected in refusal(params)


@pytest.mark.parametrize("key", [1, "i00", "one", "i1", "i02/.."])
def test_iteration_keys_that_make_no_stage_are_refused(params: dict[str, Any], key: Any) -> None:
    params["iterations"][key] = copy.deepcopy(params["iterations"]["i01"])
    assert f"iterations.{key}: " in refusal(params)


def test_every_key_of_a_row_is_wanted(params: dict[str, Any]) -> None:
    for name in [*schema.MODELS, *schema.OVERRIDDEN]:
        broken = copy.deepcopy(params)
        del broken["iterations"]["i03"][name]
        assert f"iterations.i03.{name}: is missing" in refusal(broken)


@pytest.mark.parametrize("key", schema.TOP)
def test_every_section_is_wanted(params: dict[str, Any], key: str) -> None:
    del params[key]
    assert f"{key}: is missing; every value stands in params.yaml" in refusal(params)


def test_one_message_lists_all_problems(params: dict[str, Any]) -> None:
    for path, value in {"sampel": {}, "seed": "x", "engine.threads": 0, "iterations.i02.judge": "i05"}.items():
        put(params, path, value)
    lines = refusal(params).splitlines()
    assert [line.split(":")[0] for line in lines] == ["seed", "engine.threads", "params.yaml", "iterations.i02.judge"]


def test_a_pretrained_model_that_is_none_is_refused(params: dict[str, Any], tmp_path: Path) -> None:
    params["base"]["pretrained"] = "./models/mine"
    (tmp_path / "tasks/families/countdown").mkdir(parents=True)
    (tmp_path / "tasks/families/countdown/corpus.py").touch()
    (tmp_path / "tasks/templates/benchmarks").mkdir(parents=True)
    whole = model_files(tmp_path / "whole")
    for file, expected in [
        (None, r"base\.pretrained: given '\./models/mine': there is no such folder; name a model's folder"),
        ("README.md", "mine is no model folder: it has no config.json"),
        ("config.json", r"mine is no model folder: it has no \*.safetensors"),
        ("model.safetensors", "mine has no tokenizer"),
        ("tokenizer.json", "its tokenizer has no chat template"),
    ]:
        if file:
            (tmp_path / "models" / "mine").mkdir(parents=True, exist_ok=True)
            content = (whole / file).read_bytes() if (whole / file).is_file() else b""
            (tmp_path / "models" / "mine" / file).write_bytes(content)
        with pytest.raises(BadInput, match=expected):
            problems.check(params, tmp_path)
    (tmp_path / "models" / "mine" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    problems.check(params, tmp_path)
    (tmp_path / "models" / "mine" / "config.json").write_text('{"model_type": "qwen33"}')
    with pytest.raises(BadInput, match=r"config.json: transformers has no .* 'qwen33'; did you mean qwen3"):
        problems.check(params, tmp_path)
    (tmp_path / "models" / "mine" / "pointer.json").write_text('{"foo": 1}')
    with pytest.raises(BadInput, match=r"pointer.json is no pointer to a model"):
        problems.check(params, tmp_path)


@pytest.mark.parametrize(
    ("critics", "filters", "expected"),
    [
        (
            {"judge": "judge_pointwise"},
            {"accepted": {"critic": "judge"}},
            "gives scores, but accepted needs verdicts; name a critic of block ",
        ),
        (
            {"nl": "nl_critique"},
            {"majority": {"critic": "nl", "at_least": 0.3}},
            "but majority needs votes; name a critic of block vote",
        ),
        (
            {"nl": "nl_critique"},
            {"pairs": pairs("most", "least", critic="nl")},
            "filter.pairs.chosen.critic: given 'nl', a nl_critique critic, which gives scores and verdicts, but pairs needs votes",
        ),
        ({"judge": "judge_pointwise"}, {"threshold": {"critic": "judge", "at_least": 0.3}}, None),
        (
            {"judge": "judge_pointwise"},
            {"pairs_preferred": {"critic": "judge", "min_margin": 0.0, "per_prompt": 1}},
            "but pairs_preferred needs comparisons; name a critic of block judge_pairwise or ",
        ),
        ({"vote": "vote"}, {"majority": {"critic": "vote", "at_least": 0.3}}, None),
        ({"vote": "vote"}, {"accepted": {"critic": "vote"}}, None),
    ],
)
def test_a_critic_must_say_what_a_filter_asks_for(
    params: dict[str, Any], critics: dict[str, str], filters: dict[str, Any], expected: str | None
) -> None:
    drawn = {"draws": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 8}
    if "vote" in critics:
        params = compose.compose("self_evolution", "sums")
    for name, block in critics.items():
        params["critique"][name] = {"block": block, **({} if block == "vote" else drawn)}
    del params["filter"]["accepted"]
    params["filter"] |= filters
    if expected is None:
        problems.check(params)
    else:
        assert expected in refusal(params)


def test_benchmarks_need_their_folder_and_lm_eval(params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit of a task file must be seen: the folder that evaluate depends on is one, and it is there."""
    params["evaluate"]["benchmark_files"] = "tasks/nowhere"
    put(params, "evaluations.i02", {"benchmark_files": "tasks/templates/benchmarks"})
    with pytest.raises(BadInput) as caught:
        problems.check(params, ROOT)
    assert "evaluate.benchmark_files: given 'tasks/nowhere'" in str(caught.value)
    assert "evaluations.i02.benchmark_files: given 'tasks/templates/benchmarks'; it is one folder for" in str(
        caught.value
    )
    put(params, "evaluations.i02", {})
    params["evaluate"] |= {"benchmark_files": "tasks/families", "benchmarks": {"own": BENCHMARK}}
    assert "tasks/families" in declared(graph(ROOT), params, "evaluate", "i02").deps
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"evaluate\.benchmarks: lm-eval is not installed; `pip install"):
        problems.check(params, ROOT)
    params["evaluate"]["benchmarks"] = None
    problems.check(params, ROOT)


def test_two_replays_add_up(params: dict[str, Any]) -> None:
    params["filter"]["replay"]["parts"] = ["solve", "critique", "refine"]
    params["filter"]["more"] = {"block": "replay", "parts": ["fact", "usage", "invent"]}
    problems.check(params)


def test_more_samples_measure_more(params: dict[str, Any]) -> None:
    params["promote"]["metric"] = "pass_at_16"
    params["evaluate"]["samples"] = 16
    problems.check(params)
    params["evaluations"]["i02"] = {"samples": 8}
    assert "promote.metric (what evaluate measures in i02): unknown metric 'pass_at_16'" in refusal(params)
    params = compose.compose("self_evolution")
    params["promote"]["metric"] = "refine_accuracy"
    params["evaluate"]["refine"] = None
    assert "unknown metric 'refine_accuracy'" in refusal(params)


def test_a_significance_wants_results_by_prompt_and_truth(params: dict[str, Any]) -> None:
    params["promote"]["significance"] = 0.05
    told = "promote.significance: given 0.05, but evaluate.probe_by_prompt is false"
    assert f"{told}, so nothing is kept of single probe prompts; set that to true" in refusal(params)
    params["evaluations"]["i01"] = {"probe_by_prompt": True}
    assert told in refusal(params)
    params["evaluate"]["probe_by_prompt"] = True
    params["evaluations"]["i01"] = {}
    problems.check(params)
    params["promote"]["metric"] = "pass_at_8"
    assert "promote.metric is pass_at_8; set metric to accuracy" in refusal(params)
    params["promote"] |= {"metric": "accuracy", "significance": None}
    put(params, "iterations.i02.promote", {"significance": 0.05})
    assert "given 0.05 for i02, but null for i01, which it is compared with" in refusal(params)
    unlabelled = compose.compose("lmsi", "text")
    unlabelled["prepare"]["options"]["answer_field"] = None
    unlabelled["evaluate"]["probe_by_prompt"] = True
    unlabelled["promote"]["significance"] = 0.05
    assert "these prompts have no answers, so nobody knows who is right" in refusal(unlabelled)


def test_blocks_that_a_family_has_no_skill_for() -> None:
    params = compose.compose("self_improving_transformers")
    params["critique"] = {"factored": {"block": "factored_critique", "max_new_tokens": 4}}
    told = "critique.factored: block factored_critique cannot work with family strings: it needs sub-questions, and"
    assert f"{told} strings has no critique skill; leave the block out" in refusal(params)


def test_pairs_for_dpo_must_come_from_somewhere() -> None:
    params = compose.compose("scpo")
    params["filter"] = compose.compose("lmsi")["filter"]
    for row in params["iterations"].values():
        row["filter"] = {}
    assert "train.dpo: dpo trains on pairs, and no block of filter makes any" in refusal(params)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nseed: 2\n", "line 2: key 'seed' is given twice"),
        ("sample: {iid: {n: 1, n: 2}}\n", "line 1: key 'n' is given twice"),
        ("sample: {iid: \n", "is not YAML"),
        ("- a\n", "given list; its top level is a mapping"),
        ("", "given NoneType"),
        ("a: !!python/object/apply:os.getcwd []\n", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_files_that_are_no_parameters(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(BadInput) as caught:
        load(tmp_path)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: [http://127.0.0.1:8000/v1]", 'a: ["http://127.0.0.1:8000/v1"]', "a:\n- http://127.0.0.1:8000/v1", "a: {b: http://x:1}",
        "a: &b [1]\nc: *b", "a: [1, 2", "%YAML 1.2\n---\na: 0o17\n", "a: yes\nb: 1_000\nc: 1e3\n", "a: 2026-11-26",
    ],
)  # fmt: skip
def test_what_dvc_reads_is_read_and_says_the_same(text: str) -> None:
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml

    try:
        expected = parse_yaml(text, "params.yaml")
    except YAMLFileCorruptedError:
        with pytest.raises(BadInput, match="is not YAML"):
            parse(text, "params.yaml")
        return
    assert parse(text, "params.yaml") == expected


def test_a_missing_file_and_other_encodings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="recipe use self_evolution"):
        load(tmp_path)
    (tmp_path / "dvc.yaml").write_text("")
    (tmp_path / "params.yaml").write_text("seed: 0")
    (tmp_path / "data/deep").mkdir(parents=True)
    with pytest.raises(BadInput, match=rf"commands are given in the repository's root; `cd {tmp_path}` first"):
        load(tmp_path / "data/deep")
    (tmp_path / "params.yaml").write_bytes("seed: é".encode("latin-1"))
    with pytest.raises(BadInput, match="UTF-8"):
        load(tmp_path)


def test_an_alias_that_contains_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("sample: &a {iid: *a}\n")
    with pytest.raises(BadInput, match="an alias contains itself"):
        problems.check(load(tmp_path))


def test_an_override_changes_its_own_stage_and_iteration_only(params: dict[str, Any]) -> None:
    before = {s: {k: sections.section(params, s, k) for k in sections.stage_keys(params, s)} for s in schema.STAGES}
    params["iterations"]["i02"]["train"] = {"sft": {"steps": 7}}
    after = {s: {k: sections.section(params, s, k) for k in sections.stage_keys(params, s)} for s in schema.STAGES}
    assert after["train"]["i02"] == {"sft": before["train"]["i02"]["sft"] | {"steps": 7}}
    after["train"]["i02"] = before["train"]["i02"]
    assert after == before


def test_null_leaves_a_block_out_and_stays_a_value_elsewhere(params: dict[str, Any]) -> None:
    params["iterations"]["i01"]["refine"] = {"revise": None}
    params["evaluations"]["i02"] = {"refine": None}
    problems.check(params)
    assert len(sections.options(params, "refine", "i02")) == len(sections.options(params, "refine", None)) == 1
    assert sections.section(params, "refine", "i01") == {}
    assert sections.section(params, "evaluate", "i02")["refine"] is None
    assert sections.section(params, "evaluate", "i00")["refine"] is not None


def test_null_in_a_section_is_a_slip(params: dict[str, Any]) -> None:
    params["filter"]["accepted"] = None
    assert refusal(params).startswith(
        "filter.accepted: given null; write {} for a block without options, or take the line out"
    )


def test_keys_rows_and_order(params: dict[str, Any]) -> None:
    params["iterations"] = dict(reversed(params["iterations"].items()))
    assert sections.stage_keys(params, "train") == ["i01", "i02", "i03"]
    assert sections.stage_keys(params, "evaluate") == ["i00", "i01", "i02", "i03"]
    assert sections.stage_keys(params, "base") == [None]
    assert sections.row(params, "i00") == dict.fromkeys(schema.MODELS, "i00")
    assert sections.row(params, "i03") == dict.fromkeys(schema.MODELS, "i02")
    with pytest.raises(UnknownName, match="did you mean 'i03'"):
        sections.row(params, "i33")
    with pytest.raises(UnknownName, match="did you mean 'sample'"):
        sections.stage_keys(params, "sampel")


def test_seeds_are_stable_and_apart(params: dict[str, Any]) -> None:
    seeds = {(s, k): sections.seed(params, s, k) for s in schema.STAGES for k in sections.stage_keys(params, s)}
    assert len(set(seeds.values())) == len(seeds) == 3 + 8 * 3 + 1
    assert all(0 <= value < 2**31 for value in seeds.values())
    assert sections.seed({"seed": 0}, "sample", "i01") == seeds["sample", "i01"]
    assert sections.seed({"seed": 1}, "sample", "i01") != seeds["sample", "i01"]


@pytest.mark.parametrize("function", [sections.merged])
def test_merging_replaces_all_but_mappings(function: Callable[[Any, Any], Any]) -> None:
    own = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert function(own, {"a": {"c": [3]}, "e": {}}) == {"a": {"b": 1, "c": [3]}, "d": 4, "e": {}}
    assert own == {"a": {"b": 1, "c": [1, 2]}, "d": 4}


def text_params(
    critique: dict[str, Any], filters: dict[str, Any], critics: dict[str, Any] | None = None
) -> dict[str, Any]:
    params = compose.compose("self_rewarding", "text")
    params["critique"] = {"judge": critique}
    params["filter"] = {
        name: entry if "chosen" in entry else {"critic": "judge", **entry} for name, entry in filters.items()
    }
    if critics:
        params["evaluate"] |= {"critics": critics, "best_of": None}
    return params


PAIRWISE = {"block": "judge_pairwise", "pairs": None, "draws": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 9}
PREFERRED = {"pairs_preferred": {"min_margin": 0.0, "per_prompt": 2}}


def test_judges_of_free_text_fit_what_they_are_used_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    problems.check(text_params(PAIRWISE, PREFERRED))
    problems.check(text_params({"block": "judge_pairwise_logprobs", "pairs": 3}, PREFERRED))
    problems.check(text_params(PAIRWISE, {"pairs": pairs(critic="judge")}))
    found = refusal(text_params(PAIRWISE, PREFERRED | {"accepted": {}}))
    assert "a judge_pairwise critic, which gives comparisons and scores, but accepted needs verdicts; name" in found
    found = refusal(text_params(PAIRWISE, PREFERRED, {"judge": PAIRWISE}))
    assert "evaluate.critics.judge: block judge_pairwise compares answers and judges none by itself" in found
    found = refusal(text_params({"block": "judge_checklist_logprobs", "criteria": []}, {"accepted": {}}))
    assert "critique.judge.criteria: given []" in found
    found = refusal(text_params({**PAIRWISE, "pair": 3}, PREFERRED))
    assert "unknown key 'pair'; did you mean 'pairs'" in found
    broken = shutil.copytree(family.TEMPLATES, tmp_path / "text")
    (broken / "checklist.j2").write_text("{{ question | fenced }}\n{{ respons | fenced }} {{ criterion }}\n")
    monkeypatch.setattr("tasks.families.text.TEMPLATES", broken)
    assert f"{broken / 'checklist.j2'}, line 2: unknown variable 'respons'" in refusal(text_params(PAIRWISE, PREFERRED))


def test_critics_that_read_scores_need_an_engine_that_tells_them() -> None:
    params = text_params({"block": "judge_pairwise_logprobs", "pairs": 3}, PREFERRED)
    params["engine"] |= {"name": "openai"}
    problems.check(params)
    params["engine"]["endpoint"]["protocol"] = "chat"
    found = refusal(params)
    assert "critique.judge: block judge_pairwise_logprobs reads log-probabilities of given text" in found
    assert "a block that ends in _structured" in found
    chosen = {"block": "judge_pairwise_structured", "pairs": 3, "draws": 1, "temperature": 0.0, "top_p": 1.0}
    params["critique"]["judge"] = chosen
    problems.check(params)
    params["engine"]["endpoint"]["protocol"] = "completions"
    params["critique"]["sure"] = {
        "block": "likelihood",
        "statistic": "logprob",
        "span": "all",
        "reduce": "mean",
        "minus": None,
    }
    problems.check(params)
    params["critique"]["sure"] = {
        "block": "likelihood",
        "statistic": "self_certainty",
        "span": "all",
        "reduce": "mean",
        "minus": None,
    }
    told = "critique.sure: block likelihood takes the probabilities of the whole vocabulary (statistic: self_cert"
    assert told in refusal(params)
    params["engine"]["name"] = "transformers"
    problems.check(params)


def test_near_copies_are_looked_for_in_free_text_only() -> None:
    params = compose.compose("self_evolution")
    params["synthesize"] = {
        "self_instruct": {"n": 9, "shots": 0, "attempts": 1, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 9}
    }
    params["synthesize"]["self_instruct"]["near_copy"] = None
    problems.check(params)
    params["synthesize"]["self_instruct"]["near_copy"] = 0.7
    told = "synthesize.self_instruct: block self_instruct cannot work with family countdown: it needs free text, and"
    assert f"{told} countdown has no free text to judge; set near_copy to null" in refusal(params)


def test_benchmarks_that_a_chat_server_cannot_be_asked(params: dict[str, Any], tmp_path: Path) -> None:
    put(params, "engine.name", "openai")
    put(params, "engine.endpoint.protocol", "chat")
    asked = {
        "tasks": ["facts", "facts_choice"],
        "fewshot": None,
        "limit": None,
        "chat_template": False,
        "max_new_tokens": 8,
    }
    put(params, "evaluate.benchmarks", {"own": asked})
    told = refusal(params)
    assert told.startswith(
        "evaluate.benchmarks.own.chat_template: given false, so questions are plain text, and engine."
    )
    assert len(told.splitlines()) == 1
    asked["chat_template"] = True
    problems.check(params)
    shutil.copytree(ROOT / "tasks/templates/benchmarks", tmp_path / "tasks/templates/benchmarks")
    with pytest.raises(BadInput) as caught:
        problems.check(params, tmp_path)
    scored = [line for line in str(caught.value).splitlines() if "scored" in line]
    assert len(scored) == 1
    assert scored[0].startswith(
        "evaluate.benchmarks.own: task facts_choice is scored by log-probabilities of given text, and engine.endpoint."
        "protocol is chat, which has no way to ask for them; use the protocol completions"
    )
    put(params, "engine.endpoint.protocol", "completions")
    with pytest.raises(BadInput) as caught:
        problems.check(params, tmp_path)
    assert "scored" not in str(caught.value)


@pytest.mark.parametrize("given", ["", "  "])
def test_a_model_without_a_name(params: dict[str, Any], tmp_path: Path, given: str) -> None:
    params["base"]["pretrained"] = given
    told = f"base.pretrained: given {given!r}; name a folder or a hub name (owner/name), or null to make a model here"
    assert refusal(params) == told
    with pytest.raises(BadInput) as caught:
        problems.check(params, tmp_path)
    assert [line for line in str(caught.value).splitlines() if line.startswith("base")] == [told]


RESPOND = {
    "block": "respond", "of": ["iid"], "template": "retry", "together": 1, "each": False, "per_prompt": None, "rounds": 1,
    "n": 1, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 9,
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("sample.more", RESPOND, None),
        ("sample.more", {**RESPOND, "template": "retri"}, "sample.more.template (what family sums can ask): unknown use 'retri'"),
        ("sample.more", {**RESPOND, "template": "answer"}, "sample.more.template: 'answer' shows no answer, and respond is about"),
        ("sample.more", {**RESPOND, "of": ["idd"]}, "sample.more.of (blocks of sample and refine): unknown source 'idd'"),
        ("sample.iid.template", "retry", "sample.iid.template: 'retry' shows an answer, and iid_k has none to show"),
        ("sample.iid.template", "hinted", "sample.iid.template: 'hinted' shows the right answer, but params.yaml says `labels: f"),
        ("sample.iid.model", "refrence", "sample.iid.model: unknown column of the row 'refrence'; did you mean 'reference'"),
        ("sample.iid.model", 3, "sample.iid.model: given 3; it is the name of a column"),
        ("critique.vote.model", "judge", "critique.vote.model: given 'judge', but block vote asks no model"),
        ("critique.agree", {"block": "both", "of": ["vote", "agree"]}, "critique: agree read one another in a circle"),
        ("critique.agree", {"block": "both", "of": ["vote", "vot"]}, "critique.agree.of: unknown critic 'vot'"),
        ("filter.rows.of", ["iid", "none"], "filter.rows.of (blocks of sample and refine): unknown source 'none'"),
        ("evaluate.critics.factored.model", "past", "evaluate.critics.factored: names another model, and evaluate asks the"),
        ("evaluate.answers", {"greedy": {"of": ["sample"], "pick": "most", "critic": None, "rank_power": None}}, "evaluate.answers.greedy: is the name"),
        ("evaluate.makers", {"more": {**RESPOND, "of": ["smple"]}}, "evaluate.makers.more.of: unknown source 'smple'; did you"),
        ("evaluate.makers", {"more": {**RESPOND, "of": ["sample"], "template": "retri"}}, "evaluate.makers.more.template (what"),
        ("evaluate.answers", {"a": {"of": ["smple"], "pick": "most", "critic": None, "rank_power": None}}, "evaluate.answers.a.of: unk"),
        ("evaluate.answers", {"a": {"of": ["sample"], "pick": "best", "critic": "fac", "rank_power": None}}, "evaluate.answers.a.critic: unknown critic"),
    ],
)  # fmt: skip
def test_makers_models_and_critics_of_critics(place: str, value: Any, expected: str | None) -> None:
    params = compose.compose("lmsi")
    put(params, place, value)
    if expected is None:
        problems.check(params)
    else:
        assert expected in refusal(params)


def test_votes_are_refused_where_many_answers_are_right() -> None:
    params = compose.compose("self_evolution")
    params["critique"]["vote"] = {}
    found = refusal(params)
    assert "critique.vote: block vote cannot work with family countdown: it needs unique answers" in found
    with pytest.raises(
        BadInput, match=r"recipe lmsi is not for family countdown: its critique needs vote, and a puzzle has many"
    ):
        compose.compose("lmsi", "countdown")
