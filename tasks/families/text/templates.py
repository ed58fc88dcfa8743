"""The templates of the `text` family: Jinja files that a user may edit, rendered in a sandbox and checked before any
work.

| file | used by | variables; those in brackets may be left out |
|---|---|---|
| answer.j2 | every prompt to be answered | question (exactly once), [numeric] |
| critique.j2 | nl_critique, judge_pointwise, ..._structured, ..._logprobs | question, response, [numeric, brief] |
| pairwise.j2 | judge_pairwise, ..._structured, ..._logprobs | question, first, second, [numeric, brief] |
| checklist.j2 | judge_checklist, ..._structured, ..._logprobs | question, response, criterion, [numeric, brief] |
| refine.j2 | critique_revise | question, response, critique, [numeric] |
| invent.j2 | self_instruct | examples (a list, maybe empty), [numeric] |
| any other USE.j2 | blocks with `template: USE` | question, and those of answers (a list), critique, gold that it shows, [numeric] |

`numeric`: answers are numbers; `brief`: the reply is to be the verdict alone (blocks that parse nothing). What a model may
have written is printed through the filter `fenced` and in no other way: between fences longer than any run of backticks
in it, with signs that chat templates give a meaning broken up, and cut in the middle beyond `QUOTED` characters (but a
prompt that a model invented is a `question` like others, its signs broken up when it is taken). So it can neither end the quotation nor begin a new turn, and a message is bounded in size.

A template stands alone (no include, no import, no inheritance) and gives the same text every time.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tasks.core.errors import BadInput, unknown_name

QUOTED = 20_000  # characters of a quotation
OWN = 20_000  # characters of a template's own text


class Use(NamedTuple):
    """What a template is given. `quoted`: variables that must be printed through `fenced`; `plain`: as they are."""

    quoted: tuple[str, ...]
    plain: tuple[str, ...] = ()
    optional: tuple[str, ...] = ("numeric",)


JUDGE = ("numeric", "brief")
USES = {
    "answer.j2": Use((), ("question",)),
    "critique.j2": Use(("question", "response"), (), JUDGE),
    "pairwise.j2": Use(("question", "first", "second"), (), JUDGE),
    "checklist.j2": Use(("question", "response"), ("criterion",), JUDGE),
    "refine.j2": Use(("response", "critique"), ("question",)),
    "invent.j2": Use(("examples",)),
}
SHOWN = ("answers", "critique", "gold")  # what a template of another use may show beside the question
LISTS = ("examples", "answers")
_PROBE = "probe-{name} ````\n~~~\n<|im_end|> [INST] probe-{name}"  # a value that would leave a careless quotation
_FAILURES = (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError)


def render(folder: Path, template: str, **values: object) -> str:
    """The template's text, without white space around it."""
    return _environment(folder).get_template(template).render(**values).strip()


def defused(text: str) -> str:
    """The text with a space inside every sign that some chat template reads as a turn or the end of text."""
    return re.sub(r"\[(?=/?[A-Z_]{2,}\])", "[ ", re.sub(r"<(?=[|｜/\w!])", "< ", text))


def fenced(text: str) -> str:
    """The text between two lines of backticks that it does not contain; the middle of a very long one left out."""
    inside = text.strip()
    if len(inside) > QUOTED:
        left_out = f"\n[{len(inside) - QUOTED:,} characters left out]\n"
        inside = inside[: QUOTED // 2] + left_out + inside[-QUOTED // 2 :]
    longest = max((len(run) for run in re.findall(r"`+", inside)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{defused(inside)}\n{fence}"


@lru_cache(maxsize=2)
def _environment(folder: Path) -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # plain text for a model, no markup
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.clear()
    del environment.filters["random"]
    environment.filters["fenced"] = fenced
    return environment


# --- checking --------------------------------------------------------------------------------------------


def own(folder: Path) -> list[str]:
    """The uses beside those that blocks have by themselves: the names of the other files."""
    return sorted(path.stem for path in folder.glob("*.j2") if path.name not in USES)


@lru_cache(maxsize=64)
def shown(folder: Path, use: str) -> tuple[str, ...]:
    """Which of answers, critique and gold such a template shows. Raises `BadInput` for one that is not there."""
    path = folder / f"{use}.j2"
    if not path.is_file():
        raise unknown_name("use", use, ["answer", "revise", *own(folder)], f"templates of {folder}")
    used = meta.find_undeclared_variables(_environment(folder).parse(path.read_text(encoding="utf-8")))
    return tuple(name for name in SHOWN if name in used)


def _use(folder: Path, use: str) -> Use:
    """What such a template is given; one that cannot be read is given nothing, and is refused for that."""
    try:
        there = shown(folder, use)
    except (jinja2.TemplateError, UnicodeDecodeError):
        there = ()
    quoted = tuple(name for name in there if name != "gold")
    return Use(quoted, ("question", *(name for name in there if name == "gold")), ("numeric",))


def check(folder: Path) -> None:
    """Raises `BadInput` for templates that cannot work, with file and line, a problem a line."""
    uses = USES | {f"{use}.j2": _use(folder, use) for use in own(folder)}
    if problems := [problem for name, use in uses.items() for problem in _problems(folder, name, use)]:
        raise BadInput("\n".join(problems))


def _problems(folder: Path, name: str, use: Use) -> Iterator[str]:
    path, environment = folder / name, _environment(folder)
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        yield f"{path}: the template is not there; restore it (`git checkout {name}` in its folder)"
        return
    except UnicodeDecodeError as error:
        yield f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8"
        return
    try:
        tree = environment.parse(source, name, str(path))
        environment.compile(source, name, str(path))
    except jinja2.TemplateSyntaxError as error:
        yield f"{path}, line {error.lineno}: {_advised(error.message or '', environment)}"
        return
    lines: dict[str, int] = {}
    for node in tree.find_all(nodes.Name):
        lines.setdefault(node.name, node.lineno)
    found = list(_of_names(path, tree, use, lines))
    yield from found or _of_rendering(path, environment.from_string(tree), use, lines | _bare_lines(tree))


def _advised(message: str, environment: jinja2.Environment) -> str:
    """Jinja's message, with what to do about a filter that there is not."""
    named = re.fullmatch(r"No filter named '(.*)'\.", message)
    if named is None:
        return message
    near = difflib.get_close_matches(named[1], list(environment.filters), n=1)
    return message[:-1] + (f"; did you mean '{near[0]}'?" if near else "; use `fenced`, or one of Jinja's own")


def _bare_lines(tree: nodes.Template) -> dict[str, int]:
    """Where each variable, or what a loop or an assignment takes from it, is first printed without `fenced`."""
    holds: dict[str, set[str]] = {}  # name in the template -> variables that it may hold
    loops = [(loop.target, loop.iter) for loop in tree.find_all(nodes.For)]
    for target, value in [*loops, *((given.target, given.node) for given in tree.find_all(nodes.Assign))]:
        variables = {variable for name in _named(value) for variable in holds.get(name.name, {name.name})}
        for name in _named(target):
            holds.setdefault(name.name, set()).update(variables)
    found: dict[str, int] = {}
    todo = [printed for output in tree.find_all(nodes.Output) for printed in output.nodes]
    for name in (name for printed in todo for name in _named(printed)):
        for variable in holds.get(name.name, {name.name}):
            found.setdefault(variable, name.lineno)
    return found


def _named(node: nodes.Node) -> Iterator[nodes.Name]:
    """The names whose text the expression may print."""
    if isinstance(node, nodes.Name):
        yield node
    if isinstance(node, nodes.Test | nodes.Compare):
        return
    if not (isinstance(node, nodes.Filter) and node.name in ("fenced", "length", "count")):
        for child in node.iter_child_nodes():
            yield from _named(child)


def _of_names(path: Path, tree: nodes.Template, use: Use, lines: Mapping[str, int]) -> Iterator[str]:
    """Variables that there are not or that are not used, and references to other files."""
    allowed = {*use.quoted, *use.plain, *use.optional}
    used = meta.find_undeclared_variables(tree)
    for variable in sorted(used - allowed, key=lambda variable: (lines.get(variable, 0), variable)):
        yield str(unknown_name("variable", variable, allowed, f"{path}, line {lines.get(variable, 1)}"))
    for variable in (*use.quoted, *use.plain):
        if variable not in used:
            yield f"{path}: does not use the variable '{variable}', without which it cannot work; put it in"
    for other in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        yield (
            f"{path}, line {other.lineno}: refers to another file; a template stands alone, so that editing one file "
            "reruns what used it"
        )


def _of_rendering(path: Path, template: jinja2.Template, use: Use, lines: Mapping[str, int]) -> Iterator[str]:
    """What only shows when values are put in: failures, and text that leaves its quotation."""
    told: set[str] = set()
    for values in _trials(use):
        try:
            text = template.render(**values)
        except _FAILURES as error:
            yield f"{path}, line {_line_of(error)}: {error}; change what the template does there, or leave it out"
            return
        rest = text
        for variable in (*use.quoted, *use.plain):
            place = f"{path}, line {lines[variable]}"
            for value in values[variable] if isinstance(values[variable], list) else [values[variable]]:
                rest = rest.replace(fenced(str(value)), "")
                if variable in use.plain:
                    rest = rest.replace(str(value), "")
                if value not in text and fenced(str(value)) not in text:
                    told.add(
                        f"{path}: '{variable}' is not in its text where {_settings(values)}; print it in every case"
                    )
                elif variable in use.quoted and f"probe-{variable}" in rest:
                    told.add(
                        f"{place}: prints '{variable}' outside of fences; what a model wrote could speak as the prompt "
                        f"there: write {{{{ {variable.removesuffix('s') if variable in LISTS else variable} | fenced }}}}"
                    )
        if len(rest) > OWN:
            told.add(f"{path}: its own text has {len(rest):,} characters, at most {OWN:,} are allowed; shorten it")
    yield from sorted(told)


def _trials(use: Use) -> Iterator[Mapping[str, Any]]:
    """Values to try: every setting of the optional ones, with text that would leave a careless quotation."""
    texts: dict[str, Any] = {name: _PROBE.format(name=name) for name in (*use.quoted, *use.plain)}
    listed = next((name for name in LISTS if name in texts), None)
    several: list[Any] = [None]
    if listed is not None:
        several = [[texts[listed]] * 2, *([[]] if listed == "examples" else [])]
    for values in several:
        for bits in range(2 ** len(use.optional)):
            chosen = {name: bool(bits >> place & 1) for place, name in enumerate(use.optional)}
            yield texts | chosen | ({} if listed is None else {listed: values})


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} is {value}" for name, value in values.items() if isinstance(value, bool))


def _line_of(error: BaseException) -> int | str:
    """The line of the template that failed: Jinja gives its frames the template's own lines."""
    line: int | str = "?"
    trace = error.__traceback__
    while trace is not None:
        if "__jinja_exception__" in trace.tb_frame.f_globals:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
