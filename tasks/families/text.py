r"""Text: the user's own prompts from files, with or without answers.

`prepare.options` (`tasks.families.text.options`) name the fields; `tasks.families.text.corpus` says which rows are used.
They are split by a hash of the prompt: held-out set, probe set, labelled rows (the corpus' part `solve`, completions as
the file gives them), and the rest is the unlabelled pool. An answer is a number (`extraction: numeric`: after GSM8K's `####`, in `\boxed{}`,
or the last number of the text) or the whole text without regard to case and spacing (`extraction: text`).

Templates are the files of `tasks/templates/text/` (`text_templates`: variables, checks, quoting); prepare
copies them beside its data, and the other stages render those copies. Replies are read by `text_replies`. A critique is
an additive score of five points (Self-Rewarding Language Models, Yuan and others 2024); two answers are compared as A and
B (Zheng and others 2023, in both orders), and a checklist is asked criterion by criterion (TICK, Cook and others 2024).
There are no sub-questions, hence no factored critic.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path

import polars as pl

from tasks.core import overlap
from tasks.core.errors import BadInput
from tasks.core.family import Choice, Guard, Invented, Messages, Question, SeedData, Verdict, by_fingerprint, user
from tasks.core.plain_text import simple
from tasks.families import text_replies, text_rows, text_templates
from tasks.families.text_fields import Row
from tasks.families.text_options import Options
from tasks.families.text_replies import POINTS
from tasks.families.text_templates import defused

TEMPLATES = Path(__file__).parent / "templates" / "text"
CODE = ("replies.py", "corpus.py", "templates.py")  # that decide what is asked and read
ACCEPTED = 4  # points from which the verdict is yes
INVENTED_WORDS = (3, 150)  # shortest and longest prompt that a model may write, as in Self-Instruct
INVENTED_CHARACTERS = 2000  # of such a prompt, at most
LONG, LONGER = 30, 60  # words of a prompt from which its difficulty is 2 and 3
NO_QUESTIONS = "text has no sub-questions"
UNUSABLE = {"factored_critique": NO_QUESTIONS}  # blocks that this family cannot work with, and why


@dataclass(frozen=True)
class Text:
    """The family (`tasks.core.family.Family`); `options` are the validated ones."""

    options: Options
    templates: Path = TEMPLATES
    name: str = "text"

    @property
    def has_truth(self) -> bool:
        return self.options.answer_field is not None

    @property
    def numeric(self) -> bool:
        return self.options.extraction == "numeric"

    # --- data ------------------------------------------------------------------------------------
    def build(self, rng: random.Random, root: str) -> SeedData:
        """The rows, split by hash; `rng` is not used. Raises `BadInput` for data that cannot work."""
        chosen = text_rows.select(self.options, Path(root) / self.options.path, lambda text: self.extract([], text))
        corpus = [
            {
                "part": "solve",
                "prompt": self._prompt(row.prompt, row.system),
                "completion": [{"role": "assistant", "content": row.answer}],
                "origin": _origin(row),
            }
            for row in chosen.labelled
        ]
        pool, probe, heldout = (
            [self._row(row) for row in part] for part in (chosen.pool, chosen.probe, chosen.heldout)
        )
        return SeedData(
            corpus,
            pool,
            probe,
            heldout,
            reserved=[
                {"fingerprint": text_rows.fingerprint(row.prompt), "words": _word_hashes(row.prompt)}
                for row in chosen.benchmarks
            ],
            dropped=[drop._asdict() for drop in chosen.dropped],
            counts=chosen.counts,
        )

    def _row(self, row: Row) -> dict:
        messages = self._prompt(row.prompt, row.system)
        answer = None if row.answer is None else self.extract(messages, row.answer)
        return {
            "messages": messages,
            "difficulty": _level(row.prompt.strip()),
            "answer": answer,
            "origin": _origin(row),
        }

    def traces(self, messages: Messages) -> list[int]:
        """Hashes of the question's words."""
        return _word_hashes(self.question(messages))

    def guard(self, reserved: pl.DataFrame) -> Guard:
        """Refuses equal prompts, near copies and shared passages, as `prepare.options` say."""
        near, passages = self.options.near_duplicates, self.options.decontaminate
        texts = overlap.Hashed()
        for hashes in reserved["words"].to_list():
            texts.extend(hashes)
        lookup = overlap.Lookup(
            texts,
            (near.threshold, near.shingle) if near else None,
            (passages.ngram, passages.shortest) if passages else None,
        )
        equal = by_fingerprint(self.fingerprint, reserved)

        def refuses(messages: Messages) -> str | None:
            why = equal(messages)
            if why is None:
                question = self.question(messages)
                why = "near copy of held out" if lookup.near(question) else None
                why = why or ("passage of held out" if lookup.shared(question) else None)
            return why

        return refuses

    def vocabulary(self) -> None:
        return None

    # --- prompts and answers -----------------------------------------------------------------------
    def _render(self, template: str, **values: object) -> str:
        return text_templates.render(self.templates, template, numeric=self.numeric, **values)

    def _prompt(self, question: str, system: str | None = None) -> Messages:
        given = system or self.options.system
        before = [{"role": "system", "content": given}] if given else []
        return before + user(self._render("answer.j2", question=question.strip()))

    @cached_property
    def _frame(self) -> tuple[str, str]:
        """What `answer.j2` puts before and after the question. Raises `BadInput` unless it shows it once."""
        mark = "\x00"
        pieces = self._render("answer.j2", question=mark).split(mark)
        if len(pieces) != 2:
            raise BadInput(f"{self.templates / 'answer.j2'} must contain {{{{ question }}}} exactly once")
        return pieces[0], pieces[1]

    def question(self, messages: Messages) -> str:
        """The question alone, without the template around it. Raises `BadInput` for another kind of prompt."""
        before, after = self._frame
        content = messages[-1]["content"] if messages else ""
        if len(content) < len(before) + len(after) or not (content.startswith(before) and content.endswith(after)):
            raise BadInput(f"{content[:80]!r} was not made by {self.templates / 'answer.j2'}; run prepare again")
        return content[len(before) : len(content) - len(after)]

    def extract(self, messages: Messages, response: str) -> str | None:
        return number_in(response) if self.numeric else " ".join(response.casefold().split()) or None

    def difficulty(self, messages: Messages) -> int:
        """By the question's length, all that a prompt shows: 1 below 30 words, 2 below 60, 3."""
        return _level(self.question(messages))

    def fingerprint(self, messages: Messages) -> str:
        return text_rows.fingerprint(self.question(messages))

    # --- critique and refinement -------------------------------------------------------------------
    def critique_messages(self, messages: Messages, response: str) -> Messages | None:
        return self._about("critique.j2", messages, response=response, brief=False)

    def parse_critique(self, messages: Messages, response: str, reply: str) -> Verdict:
        """A score of 0 to 5 points as `text_replies` reads it; accepted from 4. A bare number is none where the answer is
        a number too."""
        grammar = text_replies.points(bare=not self.numeric)
        points, why = text_replies.read(grammar, reply, _texts(messages, response))
        if points is None:
            return Verdict(False, why=why)
        return Verdict(True, int(points) >= ACCEPTED, int(points) / POINTS, reply.strip())

    def questions(self, messages: Messages, response: str) -> list[Question] | None:
        return None

    def assemble(self, messages: Messages, response: str, answers: Sequence[str]) -> Verdict:
        return Verdict(False, why=NO_QUESTIONS)

    def refine_messages(self, messages: Messages, response: str, critique: str) -> Messages | None:
        if not response.strip() or not critique.strip():
            return None
        return user(self._render("refine.j2", question=self.question(messages), response=response, critique=critique))

    # --- judges of free text -------------------------------------------------------------------------
    def points_messages(self, messages: Messages, response: str) -> Messages | None:
        return self._about("critique.j2", messages, response=response, brief=True)

    def points_replies(self) -> dict[str, float]:
        return {f"Score: {points}": points / POINTS for points in range(POINTS + 1)}

    def pair_messages(self, messages: Messages, first: str, second: str, brief: bool) -> Messages | None:
        return self._about("pairwise.j2", messages, first=first, second=second, brief=brief)

    def parse_pair(self, messages: Messages, first: str, second: str, reply: str) -> Choice:
        value, why = text_replies.read(text_replies.PREFERENCE, reply, _texts(messages, first, second))
        return Choice(None, why) if value is None else Choice({"a": 1.0, "b": 0.0}.get(value, 0.5))

    def pair_replies(self) -> tuple[str, str]:
        return "Winner: A", "Winner: B"

    def criterion_messages(self, messages: Messages, response: str, criterion: str, brief: bool) -> Messages | None:
        return self._about("checklist.j2", messages, response=response, criterion=criterion, brief=brief)

    def parse_criterion(self, messages: Messages, response: str, reply: str) -> Choice:
        value, why = text_replies.read(text_replies.YES_OR_NO, reply, _texts(messages, response))
        return Choice(None, why) if value is None else Choice(float(value == "yes"))

    def criterion_replies(self) -> tuple[str, str]:
        return "Met: yes", "Met: no"

    def _about(self, template: str, messages: Messages, **values: object) -> Messages | None:
        """The template about a prompt and responses to it; None where a response has no text."""
        if any(isinstance(value, str) and not value.strip() for value in values.values()):
            return None
        return user(self._render(template, question=self.question(messages), **values))

    # --- inventing -----------------------------------------------------------------------------------
    def invent_messages(self, examples: Sequence[Messages]) -> Messages:
        return user(self._render("invent.j2", examples=[self.question(messages) for messages in examples]))

    def parse_invented(self, reply: str) -> list[Invented]:
        """The prompts of a reply: one, or the entries of a numbered list; without labels such as `Question:`, bold print
        and a fence around them."""
        return [self._invented(text) for text in text_replies.prompts(reply)] or [Invented(None, "too short")]

    def _invented(self, text: str) -> Invented:
        words = len(text.split())
        if not INVENTED_WORDS[0] <= words <= INVENTED_WORDS[1] or len(text) > INVENTED_CHARACTERS:
            return Invented(None, "too short" if words < INVENTED_WORDS[0] else "too long")
        if re.search(r"####|\\boxed|```|\x00", text):
            return Invented(None, "holds an answer or a fence")
        return Invented(self._prompt(defused(text)))

    # --- truth -------------------------------------------------------------------------------------
    def verify(self, messages: Messages, answer: str | None, response: str) -> bool:
        """Equal canonical answers; False where there is no gold answer or none in the response."""
        return answer is not None and self.extract(messages, response) == self.extract(messages, answer)


def _level(question: str) -> int:
    words = len(question.split())
    return 1 if words < LONG else 2 if words < LONGER else 3


def _origin(row: Row) -> dict[str, str | int | None]:
    return {"file": row.file, "row": row.number, "id": row.id}


def _word_hashes(question: str) -> list[int]:
    return overlap.hashed([question])[0]


def _texts(messages: Messages, *responses: str) -> str:
    """Everything of others that a judge has before its eyes."""
    return "\n".join([*(message["content"] for message in messages), *responses])


# --- numbers ---------------------------------------------------------------------------------------
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    rf"(?<![\w./])(?P<fraction>-?[0-9]+/[0-9]+)(?![\w/])"
    rf"|(?:(?<![\w)\].])(?P<minus>-))?(?:\$\s?(?P<inner>-)?)?(?<![\w.])(?P<whole>{_DIGITS})?(?P<decimals>\.[0-9]+)?"
    r"(?:(?<=[0-9])[eE](?P<exponent>[+-]?[0-9]{1,2})(?![\w.]))?"
)
_ANSWER = re.compile(r"(?i)(?<!\w)answer(?:\s+is\s*:?|\s*[:=])(?!\s*(?:not|no)\b)([^\n]*)")
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")  # of LaTeX


def numbers(text: str) -> list[str]:
    """Canonical numbers in order: no thousands separators, signs of currency, powers of ten (1.5e3) or idle zeros; a
    fraction as written. Digits of all scripts count."""
    found = []
    for match in _NUMBER.finditer(simple(text).replace("−", "-").replace("\\$", "$").replace("{,}", ",")):
        if match["fraction"]:
            found.append(match["fraction"])
        elif match["whole"] or match["decimals"]:
            whole = (match["whole"] or "").replace(",", "").lstrip("0") or "0"
            decimals = (match["decimals"] or ".").rstrip("0")
            value = whole if decimals == "." else whole + decimals
            if match["exponent"]:
                value = format(Decimal(f"{value}e{match['exponent']}"), "f")
                value = value.rstrip("0").rstrip(".") if "." in value else value
            found.append(f"-{value}" if (match["minus"] or match["inner"]) and value != "0" else value)
    return found


def number_in(text: str) -> str | None:
    r"""The answer: after the last `####`, else in the last `\boxed{}`, else the first number after the last "answer is" or
    "answer:" (and after the last equals sign in that line), else the last number; None without one. A marked answer with digits that is not a single number (a fraction
    in LaTeX) stays as its text without spaces."""
    text = simple(text)
    marked = re.findall(r"####([^\n]*)", text)
    piece = marked[-1] if marked else _boxed(text)
    if piece is None:
        told = [found for line in _ANSWER.findall(text) if (found := numbers(line.rpartition("=")[2]))]
        found = told[-1][:1] if told else numbers(text)
        return found[-1] if found else None
    inside = _boxed(piece)
    piece = _WORDS.sub(r" \1 ", piece if inside is None else inside)
    found = numbers(piece)
    if len(found) == 1 and "\\" not in piece.replace("\\$", "").replace("\\%", ""):
        return found[0]
    return re.sub(r"(?<![0-9]) | (?![0-9])", "", " ".join(piece.split())).rstrip(".") if found else None


def _boxed(text: str) -> str | None:
    r"""What the last complete `\boxed{...}` holds; braces inside it are balanced."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for place in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : place]
    return None


# --- making it -------------------------------------------------------------------------------------
def create(options: Options, templates: Path | None = None) -> Text:
    """The family, with its own templates or with copies of them in a folder. Raises `BadInput` for own templates that
    cannot work (copies were checked before they were made); reads no data."""
    text_rows.check_options(options)
    if templates is None:
        text_templates.check(TEMPLATES)
    family = Text(options, templates or TEMPLATES)
    family.question(family._prompt("A question"))
    return family


def parts(options: Options) -> list[str]:
    """The parts of the corpus: none without labelled rows."""
    return ["solve"] if options.labelled else []


def difficulties(options: Options) -> list[int]:
    """All that `difficulty` can give."""
    return [1, 2, 3]


def check_inputs(family: Text, root: str) -> dict[int, int] | None:
    """How many prompts of each difficulty the pool will have. Refuses what `prepare` would refuse; of data that is too
    large to be read before any work, as far as the first rows of the files show it, and gives None."""
    path = Path(root) / family.options.path
    if not text_rows.is_small(family.options, path):
        text_rows.sample(family.options, path)
        return None
    chosen = text_rows.select(family.options, path, lambda text: family.extract([], text))
    return dict(Counter(_level(row.prompt) for row in chosen.pool))
