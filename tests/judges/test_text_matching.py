"""Readings of wanted texts: edit distance, words over lines and blocks, and the best assignment, against brute force."""

from __future__ import annotations

import random
from itertools import permutations, product

import pytest

from genevolve_ray.judges.text_matching import Match, ReadText, in_reading_order, match_texts


def at(text: str, x: float = 0, y: float = 0) -> ReadText:
    """A line of 20 pixels in height, 10 a character."""
    return ReadText(text=text, box=(x, y, x + 10 * len(text), y + 20))


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
        [match] = match_texts([text], [at(" ".join(words))])
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
        found = match_texts(texts, [at(" ".join(words))])
        assert sum(match.likeness for match in found) == pytest.approx(max(sums))


def test_a_text_that_is_wanted_twice_must_be_there_twice() -> None:
    once = match_texts(["OPEN", "OPEN"], [at("OPEN")])
    assert sorted(match.likeness for match in once) == [0, 1]
    many = match_texts(["OPEN"] * 30, [at("OPEN", y=100 * i) for i in range(30)])
    assert all(match.exact for match in many)


def test_words_over_lines_are_one_text_and_signs_beside_each_other_are_two() -> None:
    read = [at("GRAND", 0, 0), at("EXIT", 300, 4), at("OPENING", 0, 25), at("ONLY", 300, 30)]
    for order in permutations(read):
        assert [one.text for one in in_reading_order(order)] == ["GRAND", "OPENING", "EXIT", "ONLY"]
    found = match_texts(["Grand Opening", "exit only"], read)
    assert found == [Match("Grand Opening", "GRAND OPENING", 1.0, True), Match("exit only", "EXIT ONLY", 1.0, True)]


def test_words_of_one_line_are_read_from_the_left() -> None:
    read = [at("LATE", 130, 3), at("OPEN", 0, 0), at("TILL", 60, -4)]
    assert [one.text for one in in_reading_order(read)] == ["OPEN", "TILL", "LATE"]


def test_other_words_do_not_count_and_letters_of_the_same_word_do() -> None:
    assert match_texts(["CAFE"], [at("MY CAFE HERE")])[0].exact
    assert match_texts(["ART"], [at("START")])[0].likeness == pytest.approx(1 - 2 / 5)


def test_spaces_and_forms_of_a_letter_never_count_and_case_as_configured() -> None:
    assert match_texts(["SOL RIM"], [at("S OLRIM")])[0].exact
    assert match_texts(["caf\u00e9 ２"], [at("cafe\u0301 2")])[0].exact
    assert match_texts(["Open"], [at("OPEN")], ignore_case=False)[0].likeness == pytest.approx(1 / 4)


def test_scripts_without_spaces_are_read_inside_a_line() -> None:
    [match] = match_texts(["你好"], [at("我说你好吗")])
    assert (match.read, match.exact) == ("你好", True)


def test_nothing_read_or_nothing_alike_is_no_reading() -> None:
    assert match_texts(["A"], []) == match_texts(["A"], [at("zz")]) == [Match("A")]
    assert match_texts([], [at("zz")]) == []
