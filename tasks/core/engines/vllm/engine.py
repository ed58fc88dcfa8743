"""The `vllm` engine: continuous batching, paged attention and prefix caching, for GPUs; on CPU it runs too.

vLLM computes in processes of its own (`tasks.core.engines.vllm.process`), so closing the engine gives all its memory
back, and they end with this process even if it is killed. Tokens go in and out: the tokenizer, the ends of a reply and
the texts are those of the `transformers` engine (`tasks.core.engines.texts`).

Every draw is a request with a seed of its own, made of sampling seed, prompt and number of the draw as in
`tasks.core.engines.uniforms`, so which requests share a batch plays no part, up to the last bits of floating point.
The same options give the distribution of the `transformers` engine, not its draws; greedy replies are the same but
for ties. Choices become one of vLLM's grammars, which also allows ways to cut a text into tokens that its tokenizer does not
take. Log-probabilities are vLLM's `raw_logprobs`: of the model's own distribution, at temperature 1. A
temperature below 0.01 is raised to it by vLLM.

`take` serves another model of the same architecture without a new engine: a LoRA adapter by name on the weights that are
loaded, whole models by reading their weights into place. `rest` is vLLM's sleep mode of level 2 (`serving.vllm.sleep`, GPUs
only): weights and KV cache are dropped, the processes stay, and the next `take` reads weights into place.
"""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import torch
from safetensors import safe_open

from tasks.core import digests, engines
from tasks.core.engines import uniforms
from tasks.core.engines.contract import Completion, Sampling, Statistic, one_of
from tasks.core.engines.options import Vllm
from tasks.core.engines.texts import UNBOUNDED, Texts
from tasks.core.engines.vllm import process, worker
from tasks.core.errors import BadInput, StageFailed
from tasks.core.models import folders, tokenizers

log = logging.getLogger(__name__)

MEMORY = (
    "where memory is short, lower serving.vllm.longest, serving.vllm.memory_share (on a GPU that others use too) or "
    "engine.batch_size, or use a smaller model"
)
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
# Of config.json, what is no part of a model's shape: names, versions, and what this engine decides itself.
VOLATILE = (
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache"),
)
STOPPING = 30.0  # seconds that vLLM's processes have for their end
CHUNK = 2048  # tokens that one step takes at least, where prompts are not cut

Result = TypeVar("Result")


def load(folder: Path, precision: str, threads: int, batch_size: int, serving: Mapping[str, Any]) -> "VllmEngine":
    """The engine with the model of `folder`: a whole model, or a LoRA adapter (PEFT's layout) on one.

    Raises `BadInput` where vLLM is not installed or the folder holds no model, `StageFailed` where vLLM cannot
    start, which is most often for want of memory.
    """
    engines.check_installed("vllm")
    return VllmEngine(folder, precision, threads, batch_size, Vllm.model_validate(dict(serving)))


class Room(NamedTuple):
    """For adapters: the highest rank, 0 for none, and the linear layers that may have one."""

    rank: int
    layers: frozenset[str]


class VllmEngine:
    """A model served by vLLM. See `tasks.core.engines.contract.Engine` and `Taking` for the contract."""

    def __init__(self, folder: Path, precision: str, threads: int, batch_size: int, serving: Vllm) -> None:
        parts = _parts(folder)
        self.room = _room(parts.adapter)
        self.shape = _shape(parts.weights)
        self.names = 0  # of adapters: one that was served before under the same path may have changed
        self.texts = _texts(folder, parts.weights)
        self.longest = min(serving.longest or UNBOUNDED, self.texts.positions)
        options = _options(parts, precision, batch_size, serving, self.longest, self.room)
        self.llm, self.watcher = _start(options, threads, serving)
        self.longest = min(self.longest, int(self.llm.model_config.max_model_len) - 1)
        self.sleeps, self.resting = bool(options.get("enable_sleep_mode")), False
        self._serve(parts)

    def take(self, folder: Path) -> bool:
        """Serves the model of `folder` from now on. False where that wants an engine of its own: another architecture,
        or an adapter of a higher rank or on other layers than there is room for.

        Raises `BadInput` for a folder without a model, `StageFailed` if vLLM cannot read the weights.
        """
        parts = _parts(folder)
        room = _room(parts.adapter)
        if _shape(parts.weights) != self.shape or room.rank > self.room.rank or not room.layers <= self.room.layers:
            return False
        self.texts = _texts(folder, parts.weights)
        if self.resting:
            self._working(lambda: self.llm.wake_up(tags=["weights"]))
            self._read(parts.weights)
            self._working(lambda: self.llm.wake_up(tags=["kv_cache"]))
            self.resting = False
        elif _state(parts.weights) != self.weights:
            self._read(parts.weights)
            if not self._working(self.llm.reset_prefix_cache):
                return False  # what is cached is the other model's
        self._serve(parts)
        return True

    def rest(self) -> bool:
        """Gives the memory of weights and KV cache back until the next `take`. False where vLLM cannot sleep: without
        a GPU, or with `serving.vllm.sleep: false`."""
        if self.sleeps and not self.resting:
            self._working(lambda: self.llm.sleep(level=2))
            self.resting = True
        return self.resting

    def _read(self, weights: Path) -> None:
        path = str(weights.resolve())
        self._working(lambda: self.llm.collective_rpc("reload_weights", kwargs={"weights_path": path}))

    def generate(self, prompts: Sequence[str], sampling: Sampling, first_draw: int = 0) -> list[list[Completion]]:
        """`sampling.n` completions per prompt, numbered from `first_draw`.

        Raises `BadInput` for a prompt that is empty or does not fit, `StageFailed` if the model computes something that
        is no number, or vLLM's processes end. A row also ends, with `length`, where the positions end.
        """
        unique = list(dict.fromkeys(prompts))
        tokens = self.texts.prompts(unique)
        room = [min(sampling.max_new_tokens, self.texts.positions - len(ids)) for ids in tokens]
        self._fits([len(ids) + new for ids, new in zip(tokens, room, strict=True)])
        count = 1 if sampling.temperature == 0 else sampling.n  # greedy draws are all the same
        keys = uniforms.row_keys(sampling.seed, unique, range(first_draw, first_draw + count))
        found = self._ask(
            [ids for ids in tokens for _ in range(count)],
            [
                self._sampled(sampling, new, int(key) >> 1)  # vLLM's seeds have a sign
                for new, several in zip(room, keys, strict=True)
                for key in several
            ],
        )
        new_tokens = [list(output.outputs[0].token_ids) for output in found]
        texts = self.texts.replies(new_tokens)
        if sampling.choices:
            texts = [one_of(sampling.choices, text) or text for text in texts]
        rows = []
        for index, (output, new, text) in enumerate(zip(found, new_tokens, texts, strict=True)):
            logprob = _number(output.outputs[0].cumulative_logprob)
            reason = "stop" if self.texts.ended(new) else "length"
            rows.append(Completion(text, len(tokens[index // count]), len(new), logprob, reason))
        replies = {
            prompt: rows[start : start + count] * (sampling.n // count)
            for prompt, start in zip(unique, range(0, len(rows), count), strict=True)
        }
        return [replies[prompt] for prompt in prompts]

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], statistic: Statistic = "logprob"
    ) -> list[list[float]]:
        """The statistic at each token of each response and at the end of text; all but log-probabilities are computed by
        what is added to vLLM's workers (`tasks.core.engines.vllm.worker`).

        Raises `BadInput` for texts that do not fit the model, `StageFailed` if it computes something that is no number.
        """
        asked, joined = self.texts.pairs(prompts, responses)
        self._fits([len(ids) - 1 for ids in joined])
        # The end is not read, for want of a position where a response fills them all: it is what is generated.
        end = self._params(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, logprobs=0, allowed_token_ids=self.texts.ends[:1]
        )
        with self._telling(statistic):
            found = self._ask([ids[:-1] for ids in joined], [end] * len(joined))
        scores = []
        for prompt, output in zip(asked, found, strict=True):
            told = output.prompt_logprobs
            values = [told.logprobs[start] for start in told.start_indices[len(prompt) :]]
            scores.append([_number(value) for value in (*values, output.outputs[0].cumulative_logprob)])
        return scores

    def close(self) -> None:
        """Ends vLLM's processes, and so gives all their memory back; the engine cannot be used afterwards."""
        process.unwatch(self.watcher)
        self.llm.llm_engine.engine_core.shutdown(STOPPING)
        del self.llm

    def _serve(self, parts: folders.Parts) -> None:
        from vllm.lora.request import LoRARequest

        self.weights, self.adapter = _state(parts.weights), None
        if parts.adapter is not None:
            self.names += 1
            self.adapter = LoRARequest(str(self.names), self.names, str(parts.adapter.resolve()))

    @contextlib.contextmanager
    def _telling(self, statistic: Statistic) -> Iterator[None]:
        """While what vLLM tells as log-probabilities is the statistic."""
        if statistic == "logprob":
            yield
            return
        self._working(lambda: self.llm.collective_rpc("tell_statistic", args=(statistic,)))
        try:
            yield
        finally:
            self._working(lambda: self.llm.collective_rpc("tell_statistic", args=("logprob",)))

    def _sampled(self, sampling: Sampling, room: int, seed: int) -> Any:
        from vllm.sampling_params import StructuredOutputsParams

        choices = list(sampling.choices)
        return self._params(
            structured_outputs=StructuredOutputsParams(choice=choices) if choices else None,
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.temperature else 1.0,
            max_tokens=room,
            seed=seed,
            logprobs=0,
            ignore_eos=True,
            stop_token_ids=self.texts.ends,
        )

    def _params(self, **options: Any) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.FINAL_ONLY
        try:
            return SamplingParams(detokenize=False, flat_logprobs=True, output_kind=kind, **options)
        except _errors() as error:
            raise BadInput(
                f"vLLM takes no such options: {error}; change them, or use engine.name: transformers"
            ) from error

    def _ask(self, tokens: Sequence[list[int]], params: Sequence[Any]) -> list[Any]:
        asked = [{"prompt_token_ids": ids} for ids in tokens]
        if not asked:
            return []
        return list(
            self._working(lambda: self.llm.generate(asked, list(params), use_tqdm=False, lora_request=self.adapter))
        )

    def _working(self, call: Callable[[], Result]) -> Result:
        """What the call gives. Raises `StageFailed` where vLLM's processes have ended or refuse it."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return call()
        except EngineDeadError as error:
            raise StageFailed(
                "vLLM's engine process ended while it worked; the first error that it printed above says why. Where it "
                f"printed none, it was killed: {MEMORY}"
            ) from error
        except _errors() as error:
            raise StageFailed(f"vLLM refused a request: {error}") from error

    def _fits(self, lengths: Sequence[int]) -> None:
        """Raises `BadInput` where `serving.vllm.longest`, which must change no reply, would cut one off."""
        longest = max(lengths, default=0)
        if longest > self.longest:
            raise BadInput(
                f"serving.vllm.longest: given {self.longest}, but a prompt and its longest reply have {longest} tokens; "
                "raise it, or ask for shorter replies (max_new_tokens)"
            )


def _options(
    parts: folders.Parts, precision: str, batch_size: int, serving: Vllm, longest: int, room: Room
) -> dict[str, Any]:
    """What `vllm.LLM` is called with. Raises `StageFailed` where memory cannot suffice."""
    options: dict[str, Any] = {
        "model": str(parts.weights.resolve()),
        "tokenizer": str(parts.tokenizer.resolve()),
        "dtype": precision,
        "seed": 0,
        "max_num_seqs": batch_size,
        "enforce_eager": serving.eager,
        "gpu_memory_utilization": serving.memory_share,
        "enable_prefix_caching": True,
        "logprobs_mode": "raw_logprobs",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "worker_extension_cls": f"{worker.__name__}.{worker.Telling.__name__}",
    }
    if longest < UNBOUNDED:
        options["max_model_len"] = longest + 1  # vLLM always generates a token, also after what is only scored
    if room.rank:
        options |= {"enable_lora": True, "max_lora_rank": room.rank, "max_loras": 1}
        options["lora_target_modules"] = sorted(room.layers)  # not the head too: scores fail with an adapter on it
    if torch.cuda.is_available():
        options["enable_sleep_mode"] = serving.sleep
        if batch_size > 4 * CHUNK:
            options["max_num_batched_tokens"] = batch_size
        return options
    # vLLM cannot rewind a CPU's random generator, so a prompt is read in one step there.
    tokens = max(CHUNK, batch_size, options.get("max_model_len", 0))
    options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": tokens}
    free = psutil.virtual_memory().available / 2**30
    if free < serving.cpu_cache_gib:
        raise StageFailed(
            f"serving.vllm.cpu_cache_gib: given {serving.cpu_cache_gib}, but {free:.1f} GiB of memory are free; lower "
            "it, or end what else uses memory"
        )
    return options


def _start(options: Mapping[str, Any], threads: int, serving: Vllm) -> tuple[Any, Any]:
    """A `vllm.LLM`, and who ends its processes with this one. Raises `StageFailed` where it cannot be."""
    before, began = process.children(), time.perf_counter()
    try:
        with process.environment(threads, serving.cpu_cache_gib, serving.eager):
            from vllm import LLM

            llm: Any = LLM(**options)
    except _errors() as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise StageFailed(f"vLLM could not start with {options['model']}: {' '.join(lines[:3])}; {MEMORY}") from error
    log.info("engine vllm: started in %.0f s", time.perf_counter() - began)
    return llm, process.watch(sorted(process.children() - before))


def _parts(folder: Path) -> folders.Parts:
    """What the model in `folder` is made of. Raises `BadInput` where there is none."""
    if not folders.is_part(folder) and not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: no model there (no config.json); give a folder that save_pretrained wrote")
    return folders.parts(folder)


def _adapter(folder: Path) -> Any:
    try:
        return json.loads((folder / folders.ADAPTER).read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{folder / folders.ADAPTER} is no JSON: {error}") from error


def _room(adapter: Path | None) -> Room:
    """What the adapter needs. Raises `BadInput` for one that vLLM does not serve."""
    if adapter is None:
        return Room(0, frozenset())
    rank = _adapter(adapter).get("r")
    if not isinstance(rank, int) or not 1 <= rank <= RANKS[-1]:
        raise BadInput(
            f"{adapter / folders.ADAPTER}: given rank {rank!r}; vLLM serves LoRA adapters of rank 1 to {RANKS[-1]}"
        )
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise BadInput(f"{adapter} is no adapter: it has no {weights.name}; other weight formats are not loaded")
    with safe_open(weights, "pt") as file:
        names = list(file.keys())
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in names if ".lora_" in name}
    return Room(next(room for room in RANKS if room >= rank), frozenset(layers))


def _shape(weights: Path) -> str:
    """What must be the same for weights to be read into place: the configuration without names and versions."""
    config = folders.read_config(weights)
    return digests.of_value({key: value for key, value in config.items() if key not in VOLATILE})


def _state(weights: Path) -> list[Any]:
    """Which files the weights are, and when they were written."""
    files = [(path, path.stat()) for path in sorted(weights.resolve().glob("*.safetensors"))]
    return [[str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns] for path, found in files]


def _texts(folder: Path, weights: Path) -> Texts:
    """Raises `BadInput` for a configuration or tokenizer that transformers cannot load."""
    from transformers import AutoConfig, GenerationConfig

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(weights, **options)
        written = (weights / "generation_config.json").is_file()
        settings = GenerationConfig.from_pretrained(weights) if written else config
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{weights}: no model that transformers can load: {error}") from error
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return Texts(tokenizers.plain_tokenizer(folder), getattr(settings, "eos_token_id", None), positions)


def _errors() -> tuple[type[Exception], ...]:
    """What vLLM raises; its own errors are no built-in ones."""
    from vllm.exceptions import VLLMError

    return VLLMError, RuntimeError, ValueError, OSError


def _number(logprob: float) -> float:
    """Rounded to 4 decimals. Raises `StageFailed` for what is no number."""
    if not math.isfinite(logprob):
        raise StageFailed(
            "the model's logits are not finite numbers (NaN or infinity): its weights are broken, "
            "which a learning rate too high often does; train it again or use another model"
        )
    return round(float(logprob), 4) + 0.0
