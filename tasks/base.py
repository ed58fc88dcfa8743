"""base: the model that the loop starts from, built and trained on the seed corpus, or a pretrained one.

Reads `data/tasks/family.json` (vocabulary) and `data/tasks/corpus.parquet` (table SFT). Writes
  data/i00/candidate/       the model; with `pretrained`, a `pointer.json` to it and nothing else, or, where its chat template
                            is changed, `base.json` (the same) and the tokenizer with the changed one
  data/i00/pointer.json     {path, digest} of what i01 may start from; policy.json says the same with a reason
  data/i00/{prompts,invented}.parquet, data/i00/dataset/   tables without rows: i01 extends them

`pretrained` is a folder, relative to the repository or absolute, or the hub name of a model (fetched once if the local
Hugging Face cache has it not); whole, or a LoRA adapter. It is used as it is, and costs its hash and nothing else.
`chat_template` is the name of a file in tasks/templates/chat: `plain`, or one of your own; null takes the tokenizer's
own template, and refuses a model that has none. `chat_template_options` sets variables of the template's own
(`{enable_thinking: false}`); they are written into it, and so hold for every model of the loop.

Without `pretrained` a tokenizer is made (the family's words, or a byte-level BPE of `tokenizer.vocabulary_size` tokens
trained on the corpus), a model of `architecture` is initialised from the seed, and `sft` trains it as
tasks/blocks/train says.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field, JsonValue

from tasks import families
from tasks.blocks.train.job import Job, use_threads
from tasks.blocks.train.sft import sft
from tasks.core import digests, tables
from tasks.core.block import Options, validate
from tasks.core.catalog import BASE
from tasks.core.context import Context
from tasks.core.errors import BadInput, EmptyDataset
from tasks.core.models import architectures, chat, folders, hub, tokenizers, weights
from tasks.core.models.pointer import Pointer
from tasks.core.training.options import SftOptions

EMPTY = {  # tables that i01 extends
    "prompts": tables.PROMPTS, "invented": tables.INVENTED, "sft": tables.SFT, "pairs": tables.PAIRS, "dropped": tables.DROPPED,
}  # fmt: skip


class TokenizerOptions(Options):
    """For families without a vocabulary of their own. The 256 bytes and the role tokens are part of the size."""

    vocabulary_size: int = Field(ge=300)  # of families without words of their own; 256 bytes and the roles included


class BaseOptions(Options):
    """The `base` section. `architecture`: `model_type` and any key of its transformers configuration."""

    pretrained: str | None  # a folder or a hub name; null: a model is made and trained here
    chat_template: str | None  # plain, or a file in tasks/templates/chat; null: the model's own
    chat_template_options: dict[str, JsonValue]  # values of the template's variables
    tokenizer: TokenizerOptions  # of a model that is made here
    architecture: dict[str, Any]  # likewise: model_type and any key of its transformers configuration
    sft: SftOptions  # how that model is trained on the seed corpus


def parse(section: Mapping[str, Any]) -> BaseOptions:
    """The section, checked. Raises `BadInput`; `UnknownName` for an unknown architecture or key of it."""
    options: BaseOptions = validate(BaseOptions, section, "base")
    if options.pretrained is not None and not options.pretrained.strip():
        raise BadInput(
            f"base.pretrained: given {options.pretrained!r}; name a folder or a hub name (owner/name), or null to make a model here"
        )
    if options.pretrained is None:
        architectures.check(options.architecture, "base.architecture")
    tokenizers.check_options(options.chat_template_options)
    if options.chat_template is not None:
        tokenizers.with_options(tokenizers.chat_template(options.chat_template), options.chat_template_options)
    if options.sft.lora is not None and options.sft.lora.adapter == "keep":
        raise BadInput(
            "base.sft.lora.adapter: given 'keep', but the model below the adapter is made here and kept nowhere; use merge"
        )
    return options


def run(context: Context) -> None:
    if context.options.pretrained is not None:
        pointer, reason = _pretrained(context), "pretrained model, used as it is"
    else:
        pointer = Pointer(context.where("candidate", BASE), folders.digest(_trained(context)))
        reason = "base model, trained on the seed corpus"
    policy = {
        "path": pointer.path,
        "digest": pointer.digest,
        "promoted": True,
        "reason": reason,
        "gate_metric": None,
        "candidate_score": None,
        "previous_score": None,
    }
    context.save("policy", policy, BASE)
    context.point(pointer, BASE)
    for name, schema in EMPTY.items():
        context.save(name, tables.empty(schema), BASE)
    context.save("dataset_card", tables.dataset_card({"sft": 0, "pairs": 0, "dropped": 0}), BASE)


def _pretrained(context: Context) -> Pointer:
    """Checks the pretrained model and points at it."""
    name, template = context.options.pretrained, context.options.chat_template
    changed = "chat_template" if template is not None else "chat_template_options"
    if not (context.root / Path(name).expanduser()).is_dir() and hub.NAME.fullmatch(name):
        hub.fetch(name)
    source = folders.resolve(context.root, Pointer(name, ""))
    folders.validate_folder(source, template is None)
    weights.check_loads(source)
    if template is None:
        tokenizer = folders.parts(source).tokenizer
        made = context.load("family")["options"]
        chat.check_system(chat.of_folder(tokenizer) or "", chat.tokens(tokenizer), made, f"{name}: its chat template")
    pointer = Pointer(name, folders.digest(source, context.scratch / digests.KNOWN))
    if template is None and not context.options.chat_template_options:
        folders.write_pointer(context.folder("candidate", BASE), pointer)
        return pointer
    if folders.is_part(source):
        nothing = "null" if template is not None else "{}"
        raise BadInput(f"base.{changed}: {name} is an adapter, whose template is trained in; give {nothing}")
    place = context.folder("candidate", BASE)
    folders.write_pointer(place, pointer, folders.BASE)
    tokenizer = tokenizers.stored_tokenizer(source)
    _set_template(tokenizer, context.options)
    if tokenizer.eos_token is None:
        raise BadInput(f"base.{changed}: the tokenizer of {name} has no end token (eos_token), so no reply could end")
    tokenizer.save_pretrained(place)
    weights.write_ends(tokenizer, source, place)
    return Pointer(context.where("candidate", BASE), folders.digest(place))


def _set_template(tokenizer: Any, options: BaseOptions) -> bool:
    """Gives the tokenizer the chat template and the values of its variables; whether there was anything to change."""
    if options.chat_template is not None:
        tokenizer.chat_template = tokenizers.chat_template(options.chat_template)
    if options.chat_template_options:
        own = tokenizer.get_chat_template()
        tokenizer.chat_template = tokenizers.with_options(own, options.chat_template_options)
    changed = options.chat_template is not None or bool(options.chat_template_options)
    if changed:
        tokenizers.end_as_templated(tokenizer)
    return changed


def _trained(context: Context) -> Path:
    """Builds a model, trains it on the corpus and writes it; its folder."""
    options, corpus = context.options, context.load("corpus")
    if corpus.is_empty():
        raise EmptyDataset(
            "base: the seed corpus has no rows, so a model cannot be trained from nothing; give base.pretrained a "
            "model, or let the family make a corpus (prepare.options)"
        )
    vocabulary = families.read(context).vocabulary()
    use_threads(options.sft.threads)
    tokenizer = tokenizers.make_tokenizer(vocabulary, _texts(corpus), options.tokenizer.vocabulary_size)
    template = tokenizer.chat_template if _set_template(tokenizer, options) else None
    known = digests.of_value([options.architecture, tokenizer.get_vocab(), template, context.seed])
    initial = context.scratch / "training" / f"initial-{known}"
    weights.build(options.architecture, tokenizer, context.seed, initial)
    job = Job(
        initial=initial,
        reference=initial,
        sft=corpus,
        pairs=tables.empty(tables.PAIRS),
        output=context.folder("candidate", BASE),
        scratch=context.scratch,
        seed=context.seed,
        progress=context.progress,
        apart=context.apart,
        section="base.sft",
    )
    trained = sft(job, options.sft)
    shutil.rmtree(initial)
    context.curves.extend(dict(entry) for entry in trained.curve)
    context.log(corpus=corpus.height, vocabulary=len(tokenizer), **trained.figures)
    context.spend(**trained.spent)
    return job.output


def _texts(corpus: pl.DataFrame) -> Iterator[str]:
    """Contents of all messages, in the order of the rows' ids."""
    for prompt, completion in corpus.sort("row_id").select("prompt", "completion").iter_rows():
        yield from (message["content"] for message in [*prompt, *completion])
