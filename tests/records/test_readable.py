from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.agent import wire
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import ImageHit, QueryResult, TextHit
from genevolve_ray.records.readable import found_results, turn_parts, without_response_tags

words = st.text(st.characters(codec="utf-8"), max_size=20)
PIXEL = ImageRef(sha256="0" * 64, width=1, height=1)


@given(st.lists(st.tuples(words, st.lists(st.tuples(words, words, words), max_size=3)), max_size=3))
def test_text_results_are_read_as_the_policy_read_them(asked: list[tuple[str, list[tuple[str, str, str]]]]) -> None:
    results = [
        QueryResult(query=query, hits=tuple(TextHit(title=t, url=u, snippet=s) for t, u, s in hits))
        for query, hits in asked
    ]
    block = wire.wrap(wire.text_block(results, ("title", "url", "snippet"), 80))
    found = found_results(block)
    assert [f.query for f in found] == [wire.one_line(query, 80) for query, _ in asked]
    assert [[h.id for h in f.hits] for f in found] == [[str(n + 1) for n in range(len(hits))] for _, hits in asked]
    for one, (_, hits) in zip(found, asked, strict=True):
        assert [h.fields["title"] for h in one.hits] == [wire.foreign_line(t, 80) for t, _, _ in hits]
        assert [h.fields["snippet"] for h in one.hits] == [wire.foreign_line(s, 80) for _, _, s in hits]


def test_failed_queries_have_their_reason() -> None:
    block = wire.text_block([QueryResult(query="a]: b", error="quota")], ("title",), 80)
    assert [(f.error, f.hits, f.pictures) for f in found_results(block)] == [("b]: quota", (), False)]
    picture = wire.image_error("q", "refused", 80)
    assert [(f.query, f.error, f.pictures) for f in found_results(picture)] == [("q", "refused", True)]


def test_pictures_outside_a_block_are_found_too() -> None:
    hit = ImageHit(title="a tower", url="u", image=PIXEL)
    lines = ["Two views.", *wire.image_lines([("IMG_001", hit, "")], ("title", "url"), 80)]
    (found,) = found_results("\n".join(lines))
    assert (found.query, found.pictures, found.hits[0].id) == ("", True, "IMG_001")
    assert found.hits[0].fields == {"title": "a tower", "url": "u"}


def test_plain_text_holds_no_results() -> None:
    assert found_results("# Counting\n1. Say the number: three.\n  then: place it") == []


def test_a_title_stands_in_for_by_the_first_field() -> None:
    (found,) = found_results("--- search result for [q] ---\n1. snippet: three moons\n--- end of search result ---")
    assert found.hits[0].title == "three moons"


def test_parts_keep_their_whole_text() -> None:
    assert turn_parts(f"<think>{'x' * 20_000}</think>")[0] == ("think", "x" * 20_000)


def test_the_tags_around_an_observation_are_left_out() -> None:
    assert without_response_tags(wire.wrap("body\n") + "\nFinal step.") == "body\n\nFinal step."
