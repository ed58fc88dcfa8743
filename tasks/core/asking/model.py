"""What blocks ask: a `Model`. And what a model needs of the process it lives in: a `Host`.

Two kinds of model answer to the same calls. A `LocalModel` (`tasks.core.asking.local`) loads weights here and stores
replies in shards. An `EndpointModel` (`tasks.core.asking.endpoint`) asks a server and logs every reply by itself.
`tasks.core.asking.opener.Opener` is the host, and turns a pointer into the right kind.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tasks.core.asking.shards import Finished, Job
from tasks.core.asking.tally import Tally
from tasks.core.engines import server_renders
from tasks.core.engines.contract import Completion, Engine, Sampling, Statistic
from tasks.core.errors import BadInput
from tasks.core.family import Messages
from tasks.core.models.pointer import Pointer

Progress = Callable[[str, int, int], None]  # (what, done, total)


class Model(Protocol):
    """One model, ready to be asked. It is loaded, or its server reached, when a reply is wanted that is not stored."""

    pointer: Pointer
    folder: Path
    engine_options: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The digest of the model's content."""
        ...

    def generate(
        self, messages: Sequence[Messages | str], sampling: Sampling, what: str, about: Sequence[int] | None = None
    ) -> list[list[Completion]]:
        """`sampling.n` replies for each conversation (or text, see `render`), in order. Equal conversations are asked
        once and share their replies. `what` names the work in progress bars. `about`: the draw of the candidate that
        each conversation is about, so that judging more samples of a prompt leaves the shards of the first ones as they
        are."""
        ...

    def score(
        self,
        messages: Sequence[Messages | str],
        responses: Sequence[str],
        what: str,
        statistic: Statistic = "logprob",
    ) -> list[list[float]]:
        """The statistic (see `tasks.core.engines.contract`) at every token of each response, end of text included. Raises
        `BadInput` for one that the engine cannot give."""
        ...

    def render(self, messages: Sequence[Messages | str]) -> list[str]:
        """The text the model reads, for each conversation; a text as it stands."""
        ...

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has."""
        ...


class Host(Protocol):
    """Where models live: one opener of one process."""

    root: Path
    engine_options: Mapping[str, Any]
    scratch: Path
    serving: Mapping[str, Any]

    def map_shards(self, shards: Sequence[Job], finished: Finished) -> None:
        """Runs the shards that are not done, here or elsewhere."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """Tells how much of a piece of work is done."""
        ...

    def make_room(self, wanted: Any) -> Engine | None:
        """Closes engines so that one more fits. Or gives one that has taken the wanted model in place of its own."""
        ...

    def loaded(self, wanted: Any) -> Sequence[Any]:
        """The other models whose engines are loaded, the least recently opened first."""
        ...

    def reopener(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """A function, and its first arguments, that open a model in another process: then come pointer and identity."""
        ...


@dataclass
class Base:
    """What both kinds of model share."""

    pointer: Pointer
    folder: Path
    engine_options: Mapping[str, Any]
    scratch: Path
    host: Host
    tally: Tally = field(default_factory=Tally)
    _tokenizer: Any = None

    @property
    def digest(self) -> str:
        return self.pointer.digest

    def render(self, messages: Sequence[Messages | str]) -> list[str]:
        """The text the model reads: a conversation with the chat template and the opening of the reply, a text as it
        stands; for a server that renders messages itself, the messages as JSON."""
        from tasks.core.models import tokenizers

        if server_renders(self.engine_options):
            if any(isinstance(asked, str) for asked in messages):
                raise BadInput(
                    "engine.endpoint.protocol: a chat server takes messages and no plain text; use the protocol "
                    "completions, or a chat template (evaluate.benchmarks: chat_template: true)"
                )
            return [json.dumps(several, ensure_ascii=False, sort_keys=True) for several in messages]
        return [asked if isinstance(asked, str) else tokenizers.render(self.tokenizer, asked) for asked in messages]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has."""
        return [len(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    @property
    def tokenizer(self) -> Any:
        """The folder's own, loaded when it is first wanted."""
        if self._tokenizer is None:
            from tasks.core.models import tokenizers

            self._tokenizer = tokenizers.load_tokenizer(self.folder)
        return self._tokenizer

    def take_tally(self) -> Tally:
        """What was used since the last call, which starts the count anew."""
        taken, self.tally = self.tally, Tally(endpoint=self.tally.endpoint)
        return taken
