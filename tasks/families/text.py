r"""Text: the user's own prompts from files, with or without answers.

`prepare.options` (`tasks.families.text_options`) name the fields; `tasks.families.text_rows` says which rows are used.
They are split by a hash of the prompt: held-out set, probe set, labelled rows (the corpus' part `solve`, completions as
the file gives them), and the rest is the unlabelled pool. An answer is a number (`extraction: numeric`: after GSM8K's `####`, in `\boxed{}`,
or the last number of the text) or the whole text without regard to case and spacing (`extraction: text`).

Templates are the files of `tasks/families/templates/text/`; prepare copies them beside its data, and the other stages
render those copies. Text that a model wrote is quoted between
fences longer than any run of backticks in it, and signs that chat templates give a meaning are broken up,
so it can neither end the quotation nor begin a new turn. A critique is an additive score of five points
(Self-Rewarding Language Models, Yuan and others 2024); there are no sub-questions, hence no factored critic.
"""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import jinja2
import polars as pl

from tasks.core import overlap
from tasks.core.errors import BadInput
from tasks.core.family import Guard, Invented, Messages, Question, SeedData, Verdict, by_fingerprint
from tasks.families import text_rows
from tasks.families.text_options import Options
from tasks.families.text_rows import Row

TEMPLATES = Path(__file__).parent / "templates" / "text"
POINTS = 5
ACCEPTED = 4  # points from which the verdict is yes
INVENTED_WORDS = (3, 150)  # shortest and longest prompt that a model may write, as in Self-Instruct
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
        return _environment(self.templates).get_template(template).render(numeric=self.numeric, **values).strip()

    def _prompt(self, question: str, system: str | None = None) -> Messages:
        given = system or self.options.system
        before = [{"role": "system", "content": given}] if given else []
        return before + _user(self._render("answer.j2", question=question.strip()))

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
        if not response.strip():
            return None
        return _user(self._render("critique.j2", question=self.question(messages), response=response))

    def parse_critique(self, messages: Messages, response: str, reply: str) -> Verdict:
        """A line `Score: 0` to `Score: 5`, the only score stated outside quotations, and none that the candidate or its
        prompt states too, because the judge may be repeating that one; accepted from 4."""
        scores = [line.strip() for line in _unquoted(reply).split("\n") if _STATED.search(_plain(line))]
        if len(scores) != 1:
            return Verdict(False, why="no line 'Score: POINTS'" if not scores else "several lines with a score")
        match = _SCORE.fullmatch(scores[0])
        if match is None:
            return Verdict(False, why="the score is not a whole number from 0 to 5")
        judged = _plain("\n".join([*(message["content"] for message in messages), response]))
        if match.group(1) in _PLANTED.findall(judged):
            return Verdict(False, why="the candidate or its prompt contains the same score")
        points = int(match.group(1))
        return Verdict(True, points >= ACCEPTED, points / POINTS, reply.strip())

    def questions(self, messages: Messages, response: str) -> list[Question] | None:
        return None

    def assemble(self, messages: Messages, response: str, answers: Sequence[str]) -> Verdict:
        return Verdict(False, why=NO_QUESTIONS)

    def refine_messages(self, messages: Messages, response: str, critique: str) -> Messages | None:
        if not response.strip() or not critique.strip():
            return None
        return _user(self._render("refine.j2", question=self.question(messages), response=response, critique=critique))

    # --- inventing -----------------------------------------------------------------------------------
    def invent_messages(self, examples: Sequence[Messages]) -> Messages:
        return _user(self._render("invent.j2", examples=[self.question(messages) for messages in examples]))

    def parse_invented(self, reply: str) -> Invented:
        """The reply as a prompt, without a leading `Problem:` or `Prompt:`."""
        question = re.sub(r"(?i)\A(?:problem|prompt)\s*:", "", reply.strip()).strip()
        words = len(question.split())
        if not INVENTED_WORDS[0] <= words <= INVENTED_WORDS[1]:
            return Invented(None, "too short" if words < INVENTED_WORDS[0] else "too long")
        if re.search(r"####|\\boxed|```|\x00", question):
            return Invented(None, "holds an answer or a fence")
        return Invented(self._prompt(_defused(question)))

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


def _user(content: str) -> Messages:
    return [{"role": "user", "content": content}]


# --- numbers ---------------------------------------------------------------------------------------
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    rf"(?<![\w./])(?P<fraction>-?[0-9]+/[0-9]+)(?![\w/])"
    rf"|(?:(?<![\w)\].])(?P<minus>-))?(?:\$\s?(?P<inner>-)?)?(?<![\w.])(?P<whole>{_DIGITS})?(?P<decimals>\.[0-9]+)?"
)


def numbers(text: str) -> list[str]:
    """Canonical numbers in order: no thousands separators, signs of currency or idle zeros; a fraction as written."""
    found = []
    for match in _NUMBER.finditer(text.replace("−", "-").replace("\\$", "$").replace("{,}", ",")):
        if match["fraction"]:
            found.append(match["fraction"])
        elif match["whole"] or match["decimals"]:
            whole = (match["whole"] or "").replace(",", "").lstrip("0") or "0"
            decimals = (match["decimals"] or ".").rstrip("0")
            value = whole if decimals == "." else whole + decimals
            found.append(f"-{value}" if (match["minus"] or match["inner"]) and value != "0" else value)
    return found


def number_in(text: str) -> str | None:
    r"""The answer: after the last `####`, else in the last `\boxed{}`, else the last number; None without one.
    A marked answer with digits that is not a single number (a fraction in LaTeX) stays as its text without spaces."""
    marked = re.findall(r"####([^\n]*)", text)
    piece = marked[-1] if marked else _boxed(text)
    if piece is None:
        found = numbers(text)
        return found[-1] if found else None
    found = numbers(piece)
    if len(found) == 1 and "\\" not in piece.replace("\\$", "").replace("\\%", ""):
        return found[0]
    return "".join(piece.split()).rstrip(".") if found else None


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


# --- scores ----------------------------------------------------------------------------------------
_SCORE = re.compile(r"(?ia)\**score:\**[ \t]*([0-5])(?:[ \t]*/[ \t]*5)?\**\.?")  # what is read, as it stands
_STATED = re.compile(r"(?i)(?<![^\W_])score[\W_]{0,8}?[:=\d]")  # what counts as stating one, in plain text
_PLANTED = re.compile(r"(?i)score[\W_]{0,4}[:=][\W_]{0,4}0*([0-9]+)")


def _plain(text: str) -> str:
    """Look-alike forms as ordinary ones, digits of all scripts as 0 to 9, and nothing invisible."""
    if text.isascii():
        return text
    shown = (c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in shown)


# --- quoting ---------------------------------------------------------------------------------------
def _defused(text: str) -> str:
    """The text with a space inside every sign that some chat template reads as a turn or the end of text."""
    return re.sub(r"\[(?=/?[A-Z_]{2,}\])", "[ ", re.sub(r"<(?=[|｜/\w!])", "< ", text))


def fenced(text: str) -> str:
    """The text between two lines of backticks that it does not contain."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{_defused(text.strip())}\n{fence}"


def _unquoted(reply: str) -> str:
    """The reply without fenced blocks (an open one reaches to the end) and without lines that begin with `>`."""
    kept, fence = [], ""
    for line in reply.splitlines():
        opening = re.match(r"\s*(`{3,}|~{3,})", line)
        if fence:
            if opening and opening[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif opening:
            fence = opening[1]
        elif not line.lstrip().startswith(">"):
            kept.append(line)
    return "\n".join(kept)


@lru_cache(maxsize=2)
def _environment(templates: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # plain text for a model, no markup
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fenced"] = fenced
    return environment


def create(options: Options, templates: Path = TEMPLATES) -> Text:
    """The family. Raises `BadInput` for a template that does not show the question once; reads no data."""
    text_rows.check_options(options)
    family = Text(options, templates)
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
