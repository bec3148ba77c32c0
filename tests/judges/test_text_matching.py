"""Readings of wanted texts: edit distance, words over lines and blocks, and the best assignment, against brute force."""

from __future__ import annotations

import random
from itertools import permutations, product

import pytest

from genevolve_ray.judges import text_matching
from genevolve_ray.judges.text_matching import Match, ReadText, in_reading_order, match_texts


def at(text: str, x: float = 0, y: float = 0) -> ReadText:
    """A line of 20 pixels in height, 10 a character."""
    return ReadText(text=text, box=(x, y, x + 10 * len(text), y + 20))


def matches(texts: list[str], read: list[ReadText], *, ignore_case: bool = True) -> list[Match]:
    found = match_texts(texts, read, ignore_case=ignore_case)
    assert not (found.cut or found.greedy)
    return found.matches


def distance(one: str, other: str) -> int:
    """The edit distance by its definition."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def likeness(text: str, words: list[str], first: int, last: int) -> float:
    read = "".join(words[first : last + 1])
    return 1 - distance(text, read) / max(len(text), len(read))


def test_the_likeness_is_that_of_the_best_run_of_words() -> None:
    draw = random.Random(7)
    for _ in range(60):
        words = ["".join(draw.choices("abc", k=draw.randint(1, 4))) for _ in range(draw.randint(1, 7))]
        text = "".join(draw.choices("abc", k=draw.randint(1, 9)))
        runs = [(i, j) for i in range(len(words)) for j in range(i, len(words))]
        [match] = matches([text], [at(" ".join(words))])
        allowed = [(i, j) for i, j in runs if len("".join(words[i : j + 1])) <= 2 * len(text)]
        best = max((likeness(text, words, *run) for run in allowed), default=0)
        assert match.likeness == pytest.approx(best)
        assert match.exact == (best == 1)


def test_no_word_serves_two_texts_and_the_sum_is_the_greatest() -> None:
    draw = random.Random(3)
    for _ in range(25):
        words = ["".join(draw.choices("ab", k=draw.randint(1, 3))) for _ in range(4)]
        texts = ["".join(draw.choices("ab", k=6)) for _ in range(3)]  # So long that every run is allowed.
        runs = [None, *((i, j) for i in range(4) for j in range(i, 4))]
        sums = [0.0]
        for chosen in product(runs, repeat=3):
            taken = [k for run in chosen if run for k in range(run[0], run[1] + 1)]
            if len(taken) == len(set(taken)):
                sums.append(sum(likeness(text, words, *run) for text, run in zip(texts, chosen, strict=True) if run))
        found = matches(texts, [at(" ".join(words))])
        assert sum(match.likeness for match in found) == pytest.approx(max(sums))


def test_a_text_that_is_wanted_twice_must_be_there_twice() -> None:
    once = matches(["OPEN", "OPEN"], [at("OPEN")])
    assert sorted(match.likeness for match in once) == [0, 1]
    many = matches(["OPEN"] * 30, [at("OPEN", y=100 * i) for i in range(30)])
    assert all(match.exact for match in many)


def test_words_over_lines_are_one_text_and_signs_beside_each_other_are_two() -> None:
    read = [at("GRAND", 0, 0), at("EXIT", 300, 4), at("OPENING", 0, 25), at("ONLY", 300, 30)]
    for order in permutations(read):
        assert [one.text for one in in_reading_order(order)] == ["GRAND", "OPENING", "EXIT", "ONLY"]
    found = matches(["Grand Opening", "exit only"], read)
    assert found == [Match("Grand Opening", "GRAND OPENING", 1.0, True), Match("exit only", "EXIT ONLY", 1.0, True)]


def test_words_of_one_line_are_read_from_the_left() -> None:
    read = [at("LATE", 130, 3), at("OPEN", 0, 0), at("TILL", 60, -4)]
    assert [one.text for one in in_reading_order(read)] == ["OPEN", "TILL", "LATE"]


def test_other_words_do_not_count_and_letters_of_the_same_word_do() -> None:
    assert matches(["CAFE"], [at("MY CAFE HERE")])[0].exact
    assert matches(["ART"], [at("START")])[0].likeness == pytest.approx(1 - 2 / 5)


def test_spaces_and_forms_of_a_letter_never_count_and_case_as_configured() -> None:
    assert matches(["SOL RIM"], [at("S OLRIM")])[0].exact
    assert matches(["caf\u00e9 ２"], [at("cafe\u0301 2")])[0].exact
    assert matches(["Open"], [at("OPEN")], ignore_case=False)[0].likeness == pytest.approx(1 / 4)


def test_scripts_without_spaces_are_read_inside_a_line() -> None:
    [match] = matches(["你好"], [at("我说你好吗")])
    assert (match.read, match.exact) == ("你好", True)


def test_nothing_read_or_nothing_alike_is_no_reading() -> None:
    assert matches(["A"], []) == matches(["A"], [at("zz")]) == [Match("A")]
    assert matches([], [at("zz")]) == []


def test_no_more_texts_and_characters_than_the_bounds_are_compared() -> None:
    page = [at("a" * 300)]
    whole, longer = match_texts(["a" * 300], page), match_texts(["a" * 1500], page)
    assert (whole.cut, longer.cut) == (False, True)
    assert longer.matches == [Match("a" * 1500, "a" * 300, 1.0, True)]
    many = match_texts(["a"] * 51, page)
    assert (len(many.matches), many.cut) == (50, True)
    together = match_texts(["b" * 300] * 5, page)
    assert (len(together.matches), together.cut) == (4, True)


def test_no_more_of_a_picture_than_the_bounds_is_compared() -> None:
    words, pieces = [at("a " * 1000 + "sign")], [at("-", y=100 * i) for i in range(1000)] + [at("sign", y=1e6)]
    assert match_texts(["sign"], pieces[1:]).matches[0].exact
    for read in (words, pieces):
        found = match_texts(["sign"], read)
        assert found.cut and not found.matches[0].exact


def test_texts_are_assigned_one_by_one_where_the_best_assignment_takes_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts, read = ["abcd", "abx"], [at("ab cd")]
    # 1/2 + 2/3 is more than the 1 of both words for "abcd" alone, which is the likest reading.
    best = match_texts(texts, read)
    assert [match.read for match in best.matches] == ["cd", "ab"] and not best.greedy
    monkeypatch.setattr(text_matching, "_SOLVER_S", 0.0)
    found = match_texts(texts, read)
    assert [match.read for match in found.matches] == ["ab cd", ""] and found.greedy
