"""Text: the user's own prompts from files, with or without answers.

`prepare.options` (`tasks.families.text.options`) name the fields; `tasks.families.text.intake` says which rows are used.
They are split by a hash of the prompt: held-out set, probe set, labelled rows (the corpus' part `solve`, completions as
the file gives them), and the rest is the unlabelled pool. An answer is a number or another short value (`extraction:
numeric`, as `tasks.families.text.answers` finds it) or the whole text without regard to case and spacing (`extraction:
text`). Thoughts (`<think>`) are part of neither.

Templates are the files of `tasks/templates/text/` (`templates`: variables, checks, quoting); prepare
copies them beside its data, and the other stages render those copies. Replies are read by `replies`. A critique is
an additive score of five points (Self-Rewarding Language Models, Yuan and others 2024); two answers are compared as A and
B (Zheng and others 2023, in both orders), and a checklist is asked criterion by criterion (TICK, Cook and others 2024).
There are no sub-questions, hence no factored critic.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from tasks.core.errors import BadInput
from tasks.core.family import (
    REVISE,
    Choice,
    Guard,
    Invented,
    Messages,
    Parts,
    Question,
    Verdict,
    asked,
    by_fingerprint,
    user,
)
from tasks.families.text import intake, overlap, replies, templates
from tasks.families.text.answers import number_in
from tasks.families.text.options import Options
from tasks.families.text.plain import said
from tasks.families.text.replies import POINTS
from tasks.families.text.templates import defused

NO_QUESTIONS = "text has no sub-questions"
TEMPLATES = Path(__file__).parents[2] / "templates" / "text"
ACCEPTED = 4  # points from which the verdict is yes
INVENTED_WORDS = (3, 150)  # shortest and longest prompt that a model may write, as in Self-Instruct
INVENTED_CHARACTERS = 2000  # of such a prompt, at most
LONG, LONGER = 30, 60  # words of a prompt from which its difficulty is 2 and 3


@dataclass(frozen=True)
class Text:
    """The family (`tasks.core.family.Family`); `options` are the validated ones."""

    options: Options
    templates: Path = TEMPLATES
    name: str = "text"
    unique_answers: bool = True

    @property
    def has_truth(self) -> bool:
        return self.options.answer_field is not None

    @property
    def numeric(self) -> bool:
        return self.options.extraction == "numeric"

    # --- data ------------------------------------------------------------------------------------
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
        return templates.render(self.templates, template, numeric=self.numeric, **values)

    def prompt(self, question: str, system: str | None = None) -> Messages:
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
        return number_in(response) if self.numeric else " ".join(said(response).casefold().split()) or None

    def difficulty(self, messages: Messages) -> int:
        """By the question's length, all that a prompt shows: 1 below 30 words, 2 below 60, 3."""
        return level(self.question(messages))

    def fingerprint(self, messages: Messages) -> str:
        return intake.fingerprint(self.question(messages))

    # --- critique and refinement -------------------------------------------------------------------
    def critique_messages(self, messages: Messages, response: str) -> Messages | None:
        return self._about("critique.j2", messages, response=response, brief=False)

    def parse_critique(self, messages: Messages, response: str, reply: str) -> Verdict:
        """A score of 0 to 5 points as `replies` reads it; accepted from 4. A bare number is none where the answer is
        a number too."""
        grammar = replies.points(bare=not self.numeric)
        points, why = replies.read(grammar, reply, _texts(messages, response))
        if points is None:
            return Verdict(False, why=why)
        return Verdict(True, int(points) >= ACCEPTED, int(points) / POINTS, said(reply).strip())

    def questions(self, messages: Messages, response: str) -> list[Question] | None:
        return None

    def assemble(self, messages: Messages, response: str, asked: Sequence[Question], answers: Sequence[str]) -> Verdict:
        return Verdict(False, why=NO_QUESTIONS)

    def refine_messages(self, messages: Messages, response: str, critique: str) -> Messages | None:
        if not response.strip() or not critique.strip():
            return None
        return user(self._render("refine.j2", question=self.question(messages), response=response, critique=critique))

    def ask(self, use: str, parts: Parts) -> Messages | None:
        """The template USE.j2, with `question`, and `answers`, `critique` and `gold` where it shows them."""
        if use in ("answer", "revise"):
            return asked(self, use, parts, {})
        shown = templates.shown(self.templates, use)
        given = {"answers": parts.answers, "critique": parts.critique, "gold": parts.gold}
        if any(not given[name] or not all(map(str.strip, parts.answers)) for name in shown):
            return None
        return user(self._render(f"{use}.j2", question=self.question(parts.question), **{n: given[n] for n in shown}))

    def shows(self, use: str) -> frozenset[str]:
        if use == "answer":
            return frozenset()
        return REVISE if use == "revise" else frozenset(templates.shown(self.templates, use))

    def gold(self, messages: Messages, answer: str | None) -> str | None:
        return answer

    # --- judges of free text -------------------------------------------------------------------------
    def points_messages(self, messages: Messages, response: str) -> Messages | None:
        return self._about("critique.j2", messages, response=response, brief=True)

    def points_replies(self) -> dict[str, float]:
        return {f"Score: {points}": points / POINTS for points in range(POINTS + 1)}

    def pair_messages(self, messages: Messages, first: str, second: str, brief: bool) -> Messages | None:
        return self._about("pairwise.j2", messages, first=first, second=second, brief=brief)

    def parse_pair(self, messages: Messages, first: str, second: str, reply: str) -> Choice:
        value, why = replies.read(replies.PREFERENCE, reply, _texts(messages, first, second))
        return Choice(None, why) if value is None else Choice({"a": 1.0, "b": 0.0}.get(value, 0.5))

    def pair_replies(self) -> tuple[str, str]:
        return "Winner: A", "Winner: B"

    def criterion_messages(self, messages: Messages, response: str, criterion: str, brief: bool) -> Messages | None:
        return self._about("checklist.j2", messages, response=response, criterion=criterion, brief=brief)

    def parse_criterion(self, messages: Messages, response: str, reply: str) -> Choice:
        value, why = replies.read(replies.YES_OR_NO, reply, _texts(messages, response))
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
        return [self._invented(text) for text in replies.prompts(reply)] or [Invented(None, "too short")]

    def _invented(self, text: str) -> Invented:
        words = len(text.split())
        if not INVENTED_WORDS[0] <= words <= INVENTED_WORDS[1] or len(text) > INVENTED_CHARACTERS:
            return Invented(None, "too short" if words < INVENTED_WORDS[0] else "too long")
        if re.search(r"####|\\boxed|```|\x00", text):
            return Invented(None, "holds an answer or a fence")
        return Invented(self.prompt(defused(text)))

    # --- truth -------------------------------------------------------------------------------------
    def verify(self, messages: Messages, answer: str | None, response: str) -> bool:
        """Equal canonical answers; False where there is no gold answer or none in the response."""
        return answer is not None and self.extract(messages, response) == self.extract(messages, answer)


def level(question: str) -> int:
    words = len(question.split())
    return 1 if words < LONG else 2 if words < LONGER else 3


def _word_hashes(question: str) -> list[int]:
    return overlap.hashed([question])[0]


def _texts(messages: Messages, *responses: str) -> str:
    """Everything of others that a judge has before its eyes."""
    return "\n".join([*(message["content"] for message in messages), *responses])
