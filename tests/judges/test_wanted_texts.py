"""Texts that a picture should show: quotation marks of several languages, and lists of a source."""

from __future__ import annotations

from typing import Any

import pytest

from genevolve_ray.errors import InfraFailure
from genevolve_ray.judges.wanted_texts import quoted_texts, wanted_texts
from genevolve_ray.records.request import EvalType, Request


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a sign 'SOL RIM' and \"OPEN\"", ["SOL RIM", "OPEN"]),
        ("say 'Don't stop' now", ["Don't stop"]),
        ("it’s the writer’s ‘It’s on’ sign", ["It’s on"]),
        ("“He said ‘hi’ twice”", ["He said ‘hi’ twice"]),
        ("ein Schild „Grüß Gott“ und »Bäcker«", ["Grüß Gott", "Bäcker"]),
        ("un panneau « Boulangerie »", ["Boulangerie"]),
        ("napis „Witaj” i ”Hej”", ["Witaj", "Hej"]),
        ('写着"你好"的牌子和‘再见’', ["你好", "再见"]),
        ("「営業中」と『終了』", ["営業中", "終了"]),
        ('"A" once and "A" again', ["A"]),
    ],
)
def test_the_text_between_marks_is_wanted(prompt: str, found: list[str]) -> None:
    assert quoted_texts(prompt) == found


@pytest.mark.parametrize(
    "prompt",
    [
        "the dogs' bowl and the cats' toy",
        "don't, won't",
        'a 5" pipe and a 7" tube',
        "rock 'n' roll of the '90s, the boys' way",
        "“open for ever and never closed",
        "a '' and \"\" and “ ”",
        'over "two\nlines"',
        f'"{"long " * 80}"',
    ],
)
def test_apostrophes_and_marks_without_a_partner_quote_nothing(prompt: str) -> None:
    assert quoted_texts(prompt) == []


def test_a_source_may_name_the_texts() -> None:
    def asked(**meta: Any) -> Request:
        return Request(id="r-3", prompt='a sign "NO"', eval_type=EvalType.QUALITY, meta=meta)

    assert wanted_texts(asked(texts=["YES", " ", "YES"]), "meta.texts") == ["YES", "YES"]
    assert wanted_texts(asked(scene={"sign": "YES"}), "meta.scene.sign") == ["YES"]
    assert wanted_texts(asked(scene="flat"), "meta.scene.sign") == []
    assert wanted_texts(asked(), "quoted") == ["NO"]
    for wrong in (3, ["YES", None], {"a": "YES"}):
        with pytest.raises(InfraFailure, match=r"meta.texts of request r-3 must be a text or a list of texts, got "):
            wanted_texts(asked(texts=wrong), "meta.texts")
