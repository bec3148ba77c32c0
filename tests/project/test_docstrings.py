"""Docstrings: no question words, and an imperative verb first in public classes and functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "genevolve_ray"
QUESTIONS = {"what", "why", "where", "which", "how", "who", "whose", "whom", "when", "whether", "whatever", "whoever"}

# Verbs that may begin a docstring. Add a verb when it is missing; the third person ("Returns") is not the imperative.
VERBS = frozenset(
    """
    abort accept account accumulate acquire act adapt add adjust admit advance aggregate align allocate allow annotate
    answer append apply arrange ask assemble assert assign attach await back balance ban batch begin bind block bound
    break broadcast buffer build bundle cache call cancel cap carry catch change charge check choose clamp clean clear
    clip close coerce collate collect combine come commit compact compare complete compose compress compute configure
    confirm connect consume contain continue control convert copy correct count cover crawl create crop cut deal decide
    declare decode decompress decrypt defer define delegate delete deliver demand deny derive describe detach detect
    determine diagnose differentiate digest discard disconnect dispatch distill distinguish distribute divide do
    download drain draw drop dump embed emit empty enable encode encrypt end enforce enqueue ensure enter enumerate
    estimate evaluate evict evolve examine exchange exclude execute exempt exit expand expect expire explain export
    expose express extend extract fail feed fetch fill filter find finish fit fix flag flatten flush fold follow force
    forget form format forward free freeze fuse gather generate get give grade grant group grow guard halve handle hash
    hide hold identify ignore implement import include increase indicate infer inform initialize inject insert inspect
    install interpret invert invoke issue iterate join judge keep kill lay lease leave let limit link list listen load
    locate lock log look loop lose lower make manage map mark mask match measure meet merge move name negate normalize
    note notify number observe obtain offer open order organize own pack pad pair parse pass patch pause perform pick
    pin place plan play plot point poll pool pop prefer prepare present preserve prevent print probe process produce
    project promise propagate protect provide prune publish pull push put query queue quote raise rank re-raise read
    rebuild recall receive recognize recompute record recover redact reduce refer refresh refuse register reject
    release reload remember remove rename render repair repeat replace replay reply report represent reproduce request
    require rescale reserve reset resize resolve respond restart restore restrict resume retrieve retry return reuse
    reverse revoke rewrite roll round route run sample satisfy save say scale scan schedule score scrape search seal
    see seed select send separate serialize serve set shard share shift show shuffle shut sign signal simulate skip
    sleep slice smooth solve sort spawn specify split spread stack stage stand start state stop store stream strip
    submit substitute subtract sum summarize supply support swap switch synchronize take teach tell terminate test tie
    tile time tokenize total touch trace track train transfer transform translate transpose treat trim truncate trust
    try turn type unfold unlock unpack update upload use validate verify view visit wait walk warm warn watch weigh
    withdraw work wrap write yield zip become bring fine-tune hand have hear learn lend persist post
    """.split()
)


class Offender(NamedTuple):
    """Name a docstring and its fault."""

    path: str
    line: int
    name: str
    fault: str


def first_word(docstring: str) -> str:
    """Return the first word in lower case, without quotes and stops; "" for a code span."""
    word = docstring.split(maxsplit=1)[0] if docstring.split() else ""
    return "" if word.startswith("`") else re.sub(r"[^a-z-]", "", word.lower())


def fault_of(docstring: str, kind: str) -> str:
    """Return the fault of a docstring of a module, a class, a function or a property; "" for none."""
    word = first_word(docstring)
    if word in QUESTIONS:
        return f"begins with {word!r}"
    noun = docstring.split()[1:2] == ["of"]  # "State of a run" is a noun phrase, although "state" may be a verb.
    if kind in ("class", "function") and (word not in VERBS or noun):
        return f"begins with {word!r}, not with a verb in the imperative"
    return ""


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(names & {"property", "cached_property", "setter"})


def _public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[ast.AST, str, str]]:
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _public(node.body, prefix)
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        name = f"{prefix}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield node, name, "class"
            yield from _public(node.body, f"{name}.")
        else:
            yield node, name, "property" if _is_property(node) else "function"


def offenders_of(path: Path, base: Path) -> list[Offender]:
    """Return the docstrings of a file that break a rule; a public name without a docstring is ruff's business."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named: list[tuple[ast.AST, str, str]] = [(tree, "module", "module"), *_public(tree.body)]
    where = path.relative_to(base).as_posix()
    return [
        Offender(where, getattr(node, "lineno", 1), name, fault)
        for node, name, kind in named
        if (text := ast.get_docstring(node)) and (fault := fault_of(text, kind))  # type: ignore[arg-type]
    ]


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_docstrings_begin_with_a_verb_and_ask_no_question(path: Path) -> None:
    assert [f"{at.line} {at.name}: {at.fault}" for at in offenders_of(path, PACKAGE)] == []


@pytest.mark.parametrize(
    ("docstring", "kind", "passes"),
    [
        ("Return a picture.", "function", True),
        ("Re-raise an error.", "function", True),
        ("Returns a picture.", "function", False),
        ("A picture.", "function", False),
        ("What a picture is.", "class", False),
        ("The picture.", "class", False),
        ("Hold a picture.", "class", True),
        ("State of a picture.", "class", False),
        ("The picture.", "property", True),
        ("Whether it is a picture.", "property", False),
        ("Pictures and their hashes.", "module", True),
        ("How pictures are read.", "module", False),
        ("`genevolve`: the command line.", "module", True),
    ],
)
def test_the_checker_knows_the_rules(docstring: str, kind: str, passes: bool) -> None:
    assert (fault_of(docstring, kind) == "") is passes
