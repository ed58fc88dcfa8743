"""A toy family: additions such as "add 2 3", answered by plain text."""

from collections.abc import Sequence

from tasks.core.family import Invented, Messages, Parts, Question, Verdict, asked
from tests.support.tiny import user


class Adding:
    """Prompts "add A B"; an answer is an integer; a critique is "yes" or "no"."""

    name = "adding"
    has_truth = True
    unique_answers = True

    def vocabulary(self) -> None:
        return None

    def extract(self, messages: Messages, response: str) -> str | None:
        return response.strip() if response.strip().isdigit() else None

    def difficulty(self, messages: Messages) -> int:
        return len(messages[0]["content"])

    def fingerprint(self, messages: Messages) -> str:
        return " ".join(sorted(messages[0]["content"].split()[1:]))

    def ask(self, use: str, parts: Parts) -> Messages | None:
        question = parts.question[0]["content"]
        others = {
            "retry": lambda given: user(f"retry {question} : {given.answers[-1]}"),
            "aggregate": lambda given: user(f"aggregate {question} : {' / '.join(given.answers)}"),
            "hinted": lambda given: user(f"hinted {question} : {given.gold}"),
            "true": lambda given: None if "?" in given.answers[-1] else user(f"true {question} : {given.answers[-1]}"),
        }
        return asked(self, use, parts, others)

    def shows(self, use: str) -> frozenset[str]:
        return frozenset({"gold"} if use == "hinted" else ())

    def gold(self, messages: Messages, answer: str | None) -> str | None:
        return str(sum(int(n) for n in messages[0]["content"].split()[1:]))

    def critique_messages(self, messages: Messages, response: str) -> Messages | None:
        return None if "?" in response else user(f"check {messages[0]['content']} : {response} ?")

    def parse_critique(self, messages: Messages, response: str, reply: str) -> Verdict:
        if reply not in ("yes", "no"):
            return Verdict(False, why="neither yes nor no")
        return Verdict(True, reply == "yes", float(reply == "yes"), reply)

    def questions(self, messages: Messages, response: str) -> list[Question] | None:
        if self.extract(messages, response) is None:
            return None
        return [Question(user("sum " + messages[0]["content"].split(" ", 1)[1]), response.strip())]

    def assemble(self, messages: Messages, response: str, asked: Sequence[Question], answers: Sequence[str]) -> Verdict:
        right = [question.claim for question in asked] == list(answers)
        return Verdict(True, right, float(right), f"I get {answers[0]}")

    def refine_messages(self, messages: Messages, response: str, critique: str) -> Messages | None:
        return user(f"fix {messages[0]['content']} : {response} : {critique}")

    def invent_messages(self, examples: Sequence[Messages]) -> Messages:
        return user("invent " + " | ".join(e[0]["content"] for e in examples))

    def parse_invented(self, reply: str) -> list[Invented]:
        return [Invented(user(reply)) if reply.startswith("add ") else Invented(None, "not an addition")]

    def verify(self, messages: Messages, answer: str | None, response: str) -> bool:
        return response.strip() == self.gold(messages, answer)
