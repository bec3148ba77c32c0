"""Every regular expression of the package takes linear time on its worst text: doubled text, doubled time."""

from __future__ import annotations

import ast
import gc
import importlib
import re
from functools import cache
from pathlib import Path
from time import process_time
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[2] / "genevolve_ray"
METHODS = ("search", "match", "fullmatch", "sub", "split", "findall", "finditer")
BOUNDED = {
    "records.leaks:_ENDS_SENTENCE": "reads the eight characters before a word",
    "models.adapters:_FACTOR": "reads the names of tensors in a local file, each by fullmatch",
    "atlas.lexicon:HEAD": "reads clauses of the embedded world, which are cut at their length",
}
"""Patterns whose texts are short by construction, with the reason."""
SIZES = 800, 6_400
GROWTH = 24.0
"""Eight times the text may take eight times the time; a quadratic pattern takes sixty-four times."""
SUSPECT = 0.0003
"""Seconds for the small text below which a quadratic pattern would be fast on the large one."""
HOPELESS = 0.03
"""Seconds for the small text above which the large one is not tried."""
NOTICED = 0.03
"""Seconds for the large text below which nothing is measured."""


def modules() -> list[str]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if "re.compile(" in path.read_text(encoding="utf-8"):
            found.append(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    return found


def inline(path: Path) -> list[tuple[str, str, int]]:
    """Return (method, pattern, flags) of calls such as `re.sub("...", ...)` whose pattern is written there."""
    calls = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        owner, pattern = node.func.value, node.args[0]
        if not (isinstance(owner, ast.Name) and owner.id == "re" and node.func.attr in METHODS):
            continue
        if isinstance(pattern, ast.Constant) and isinstance(pattern.value, str):
            flags = re.MULTILINE if "MULTILINE" in ast.unparse(node) else 0
            calls.append((node.func.attr, pattern.value, flags))
    return calls


@cache
def patterns() -> dict[str, tuple[re.Pattern[Any], tuple[str, ...]]]:
    """Return each pattern with the methods that its source calls on it."""
    found: dict[str, tuple[re.Pattern[Any], tuple[str, ...]]] = {}
    for name in modules():
        module, short = importlib.import_module(name), name.removeprefix("genevolve_ray.")
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        for attribute, value in vars(module).items():
            if isinstance(value, re.Pattern) and re.search(rf"^{attribute}\b.*= ?re\.compile", source, re.MULTILINE):
                used = tuple(m for m in METHODS if f"{attribute}.{m}(" in source)
                found[f"{short}:{attribute}"] = value, used or ("search",)
    for path in sorted(PACKAGE.rglob("*.py")):
        for number, (method, pattern, flags) in enumerate(inline(path)):
            key = f"{path.relative_to(PACKAGE).with_suffix('')}:{number}:{method}"
            found[key] = re.compile(pattern, flags), (method,)
    return found


SEEDS = """- — . , : ; ! ? / \\ " ' “ ” „ « » ‘ ’ ` < > [ ] { } ( ) | # * _ + = ~ % @ & $ ^ 0 1 9 a z A Z é 中 \t \x1b
    ab a1 a. .a a- -a -- a, 1, 1. ,. a' 'a \\" "\\ '\\ :/ // ./ ../ a/ /a a: :a => <a a> <t </ [/ [[ ]] {{ }} \x1b[ \x1b]
    name IMG_ IMG_1 IMG- first second reference image search result end www www. http:// https data: file:/ openai: a@
    <think> </think> <tool_call> <answer> ```json left right number cuda= 'a' "a" "a", '' "" , } ] lora_A .lora_A.
    base_model.model. picture of moon of motto of ## ##a -a -1 +1 1.5 1.5, true null faithfulness "faithfulness" :0""".split()
SEEDS += [
    " ",
    "\n",
    "\r",
    " a",
    "a ",
    "\n\n",
    " \n",
    "\n-",
    "- ",
    " -",
    ", ",
    '" ',
    "first ",
    "name ",
    "end of ",
    "a  b",
]


def texts(size: int, seed: str, binary: bool) -> list[Any]:
    """Return texts of one size that repeat a seed, with beginnings and ends that make a match nearly succeed."""
    body = (seed * (size // len(seed) + 1))[:size]
    made = [body, body + "\x00", '{"' + body, "<think>" + body + "!", "IMG_" + body + "x", "“" + body, "'" + body]
    return [text.encode("utf-8", "replace") for text in made] if binary else made


def seconds(pattern: re.Pattern[Any], method: str, text: Any) -> float:
    call = getattr(pattern, method)
    empty: Any = b"" if isinstance(text, bytes) else ""
    started = process_time()
    if method == "sub":
        call(empty, text)
    elif method == "finditer":
        sum(1 for _ in call(text))
    else:
        call(text)
    return process_time() - started


def slowest(name: str) -> tuple[float, float, str]:
    """Return the greatest growth of a pattern's time between the two sizes, with the time and the seed."""
    pattern, methods = patterns()[name]
    binary, worst = isinstance(pattern.pattern, bytes), (0.0, 0.0, "")
    for method in methods:
        for seed in SEEDS:
            for small, large in zip(texts(SIZES[0], seed, binary), texts(SIZES[1], seed, binary), strict=True):
                if seconds(pattern, method, small) < SUSPECT:
                    continue
                # Measured again, the least of several: a busy machine must not fail it.
                before = min(seconds(pattern, method, small) for _ in range(3))
                if before > HOPELESS:
                    return float("inf"), before, f"{method} {seed!r}"
                if before >= SUSPECT / 2 and (taken := seconds(pattern, method, large)) >= NOTICED:
                    taken = min(taken, seconds(pattern, method, large))
                    worst = max(worst, (taken / max(before, 1e-6), taken, f"{method} {seed!r}"))
                    if worst[0] > GROWTH:
                        return worst
    return worst


@pytest.mark.parametrize("name", sorted(patterns()))
def test_a_pattern_takes_linear_time(name: str) -> None:
    if name in BOUNDED:
        pytest.skip(BOUNDED[name])
    gc.disable()
    try:
        growth, taken, seed = slowest(name)
    finally:
        gc.enable()
    assert growth < GROWTH, f"{name}: {taken:.3f} s with {seed}, growth {growth:.0f}"


def test_the_sweep_notices_a_quadratic_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(patterns(), "quadratic", (re.compile(r"-{2,}(?=x)"), ("search",)))
    assert slowest("quadratic")[0] > GROWTH


def test_the_exceptions_exist() -> None:
    assert set(BOUNDED) <= set(patterns())
