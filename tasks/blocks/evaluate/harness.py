"""lm-eval (EleutherAI's lm-evaluation-harness) as a client of the engine. The only module that imports it.

lm-eval has models of its own; they are not used, so that a benchmark's requests are sharded, stored and counted like
all others, run on the engine that params.yaml names, and cost nothing when only the figures or another set changed.
lm-eval chooses questions and examples, writes the requests, and scores the replies.

Differences to lm-eval's own `hf` model: prompt and continuation are tokenised apart, as the model is asked to reply,
not together; a prompt that does not fit the model is an error, not cut off; replies are cut at the task's stop strings
after they were made. Rolling perplexity, images, code that is run, and reply prefixes under a chat template are
refused.

Examples are drawn with lm-eval's own seed, so that all iterations see the same ones.
"""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from tasks.blocks.evaluate.options import SCORED, SCORED_KINDS, Benchmark
from tasks.core.asking.model import Model
from tasks.core.engines.contract import Completion, Sampling
from tasks.core.errors import BadInput, StageFailed, unknown_name
from tasks.core.family import Messages
from tasks.core.seeds import derive

BOOTSTRAPS = 1000  # for the standard error of metrics that have no formula for it
SETTINGS = ("until", "max_gen_toks", "max_new_tokens", "max_tokens", "do_sample", "temperature", "top_p")


@dataclass(frozen=True)
class TaskSet:
    """Tasks with their data, and how they are measured."""

    name: str
    options: Benchmark
    loaded: Any  # lm-eval's tasks and groups

    def results(self, model: Model, seed: int) -> Mapping[str, Mapping[str, Any]]:
        """lm-eval's results: task or group -> {"metric,filter": value}."""
        client = Client(model, self, seed)
        before = os.environ.get("DISABLE_MULTIPROC")
        os.environ["DISABLE_MULTIPROC"] = "1"  # bootstrapping in processes of its own would copy the model's memory
        try:
            found: Any = evaluate(
                lm=client,
                task_dict=self.loaded,
                limit=self.options.limit,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=False,
                apply_chat_template=self.options.chat_template,
                fewshot_as_multiturn=self.options.chat_template,
            )
        finally:
            os.environ.pop("DISABLE_MULTIPROC")
            os.environ.update({} if before is None else {"DISABLE_MULTIPROC": before})
        results: Mapping[str, Mapping[str, Any]] = found["results"] | found.get("groups", {})
        return results


# --- loading -------------------------------------------------------------------------------------------------


def load(chosen: Mapping[str, Benchmark], root: Path, folder: Path, scores: bool = True) -> list[TaskSet]:
    """The tasks of every set, few-shot examples and seeds set as lm-eval's command line does. Raises `BadInput`."""
    for path in sorted(folder.rglob("*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # the reader's, and whatever an included file raises
            raise BadInput(f"{path} is no task of lm-eval: {error}") from error
    wanted = {name for benchmark in chosen.values() for name in benchmark.tasks}
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    if not wanted <= set(manager.all_tasks):  # lm-eval's own are thousands of files
        manager = TaskManager(include_path=str(folder))
    sets = []
    for name, benchmark in sorted(chosen.items()):
        where = f"evaluate.benchmarks.{name}"
        for task in benchmark.tasks:
            if task not in manager.all_tasks:
                raise unknown_name("task", task, _near(task, manager.all_tasks), where)
        try:
            loaded = manager.load(benchmark.tasks)
        except Exception as error:  # datasets', the hub's and lm-eval's own
            raise BadInput(f"{where}: its tasks cannot be loaded: {type(error).__name__}: {error}") from error
        for task, made in loaded["tasks"].items():
            if reason := next(_unsuitable(made, benchmark, root, folder, scores), None):
                raise BadInput(f"{where}: task {task} {reason}")
            shots = made.get_config("num_fewshot")
            if shots is None or (benchmark.fewshot is not None and shots != 0):
                made.set_config("num_fewshot", benchmark.fewshot or 0)
            made.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        sets.append(TaskSet(name, benchmark, loaded))
    return sets


def _near(name: str, known: Sequence[str]) -> list[str]:
    """What the message of an unknown name lists: thousands are no help."""
    return [other for other in known if other.startswith(name[:3])][:20] or list(known)[:20]


def _unsuitable(task: Any, benchmark: Benchmark, root: Path, folder: Path, scores: bool) -> Iterator[str]:
    """Why a task cannot be measured here."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        yield "measures perplexity over rolling windows, for which the engine has no request"
    if not scores and task.OUTPUT_TYPE in SCORED_KINDS:
        yield SCORED
    if getattr(task, "MULTIMODAL", False):
        yield "shows images or sounds; only text can be asked"
    if getattr(task, "UNSAFE_CODE", False):
        yield "runs code that the model writes; that is never done here"
    if benchmark.chat_template and task.get_config("gen_prefix"):
        yield "begins the model's reply (gen_prefix), which a chat template does not allow; set chat_template: false"
    settings = task.get_config("generation_kwargs") or {}
    if unknown := sorted(set(settings) - set(SETTINGS)):
        yield f"asks for {', '.join(unknown)} when it generates; the engine knows {', '.join(SETTINGS)}"
    for path in _paths(task):
        if path.exists() and not path.resolve().is_relative_to(folder.resolve()):
            yield (
                f"reads {path}, which is outside {os.path.relpath(folder, root)} (evaluate.benchmark_files): an edit of it "
                "would go unseen; move it there"
            )


def _paths(task: Any) -> Iterator[Path]:
    """The local files and folders that a task's configuration names as its data."""
    given = task.get_config("dataset_kwargs") or {}
    named: list[Any] = [task.get_config("dataset_path"), given.get("data_files"), given.get("data_dir")]
    while named:
        value = named.pop()
        if isinstance(value, Mapping):
            named.extend(value.values())
        elif isinstance(value, list | tuple):
            named.extend(value)
        elif isinstance(value, str):
            plain, *pattern = re.split(r"[*?\[]", value, maxsplit=1)
            yield Path(plain).parent if pattern and not plain.endswith("/") else Path(plain)


# --- asking --------------------------------------------------------------------------------------------------


class Client(LM):
    """lm-eval's model. Under a chat template a request's context is a conversation as JSON, else the text itself."""

    def __init__(self, model: Model, tasks: TaskSet, seed: int) -> None:
        super().__init__()
        self.model, self.options, self.what = model, tasks.options, f"benchmarks {tasks.name}"
        self.seed = derive(seed, "benchmarks")
        self.greedy = {name for name, task in tasks.loaded["tasks"].items() if _needs_greedy(task)}

    @property
    def tokenizer_name(self) -> str:
        return self.model.digest

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return json.dumps(chat_history)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Replies, cut at the first stop string. Equal requests for a sampled reply get different draws of it."""
        groups: dict[tuple[float, float, int], list[int]] = defaultdict(list)
        stops = []
        for index, request in enumerate(requests):
            given = normalize_gen_kwargs(request.args[1], self.options.max_new_tokens)
            stops.append([stop for stop in given["until"] if stop])
            settings = float(given.get("temperature", 0.0)), float(given.get("top_p", 1.0)), int(given["max_gen_toks"])
            groups[settings].append(index)
        texts = [""] * len(requests)
        for (temperature, top_p, longest), members in groups.items():
            contexts = [requests[index].args[0] for index in members]
            draws = max(Counter(contexts).values()) if temperature > 0 else 1
            sampling = Sampling(draws, temperature, top_p, longest, self.seed)
            replies = self.model.generate([self._asked(context) for context in contexts], sampling, self.what)
            seen: Counter[str] = Counter()
            _refuse_failed(replies, self.what)
            for index, context, several in zip(members, contexts, replies, strict=True):
                texts[index] = _cut(several[seen[context] % draws].text, stops[index])
                seen[context] += 1
        return texts

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation in nats, without the end of text; and whether greedy decoding gives it,
        which is only asked where a task's metric needs it (False elsewhere)."""
        contexts, continuations = [], []
        for request in requests:
            context, continuation = request.args
            if not self.options.chat_template:  # white space belongs to the word that follows
                kept = context.rstrip()
                context, continuation = kept, context[len(kept) :] + continuation
            contexts.append(self._asked(context))
            continuations.append(continuation)
        scores = self.model.score(contexts, continuations, self.what)
        groups: dict[int, list[int]] = defaultdict(list)
        for index, (request, score) in enumerate(zip(requests, scores, strict=True)):
            if request.task_name in self.greedy and len(score) > 1:
                groups[len(score) - 1].append(index)
        greedy = [False] * len(requests)
        for tokens, members in groups.items():
            sampling = Sampling(1, 0.0, 1.0, tokens, self.seed)
            replies = self.model.generate([contexts[index] for index in members], sampling, self.what)
            _refuse_failed(replies, self.what)
            for index, (reply,) in zip(members, replies, strict=True):
                greedy[index] = reply.text.strip() == continuations[index].strip()
        return [(sum(score[:-1]), same) for score, same in zip(scores, greedy, strict=True)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise StageFailed("benchmarks: rolling perplexity cannot be measured")

    def _asked(self, context: str) -> Messages | str:
        """What the engine is asked: a conversation, or a text that starts as the tokenizer starts one."""
        if self.options.chat_template and context:
            conversation: Messages = json.loads(context)
            return conversation
        start, alone = self._starts
        return start + context if context else alone

    @cached_property
    def _starts(self) -> tuple[str, str]:
        """The token that the tokenizer puts before a text, if any, and the one that stands for no text at all."""
        from tasks.core.models import tokenizers

        tokenizer = tokenizers.load_tokenizer(self.model.folder)
        adds = tokenizer.bos_token and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        return str(tokenizer.bos_token) if adds else "", str(tokenizer.bos_token or tokenizer.eos_token)


def _needs_greedy(task: Any) -> bool:
    """Whether a metric of the task asks if greedy decoding gives the continuation."""
    metrics = [entry["metric"] for entry in task.get_config("metric_list") or []]
    return task.OUTPUT_TYPE == "loglikelihood" or (task.OUTPUT_TYPE == "multiple_choice" and "exact_match" in metrics)


def _refuse_failed(replies: Sequence[Sequence[Completion]], what: str) -> None:
    """Raises `StageFailed` where an endpoint gave no reply: without some of its questions a benchmark is another."""
    failed = [reply for several in replies for reply in several if reply.failed]
    if failed:
        raise StageFailed(
            f"{what}: {len(failed)} requests got no reply ({failed[0].why}); run it again, for those only"
        )


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
