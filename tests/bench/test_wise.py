"""WISE on synthetic files: id ranges, weights, what is missing, and the judge's lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genevolve_ray.bench.wise import (
    CATEGORIES,
    Edition,
    LegacyScore,
    VerifiedScore,
    WisePrompt,
    WiseScore,
    category_ids,
    read_prompts,
    read_scores,
    summarise_wise,
    write_scores,
)
from genevolve_ray.bench.wise_judge import FailedJudgement, JudgementFault, judge_text, parse_judgement, rubric
from genevolve_ray.records.published.rejections import DataError, RejectionReason, RejectionReport

RANGES = {
    "legacy": {"culture": (1, 400), "time": (401, 567), "space": (568, 700)}
    | {"biology": (701, 800), "physics": (801, 900), "chemistry": (901, 1000)},
    "verified": {"culture": (1, 400), "time": (401, 520), "space": (521, 640)}
    | {"biology": (641, 760), "physics": (761, 880), "chemistry": (881, 1000)},
}
WEIGHTS = {"legacy": [0.4, 0.167, 0.133, 0.1, 0.1, 0.1], "verified": [0.4] + [0.12] * 5}
PROMPT = WisePrompt(prompt_id=3, prompt="the {{explanation}} flower", explanation="a carnation", subcategory="Festival")
EDITIONS = list(Edition)


def made(edition: Edition, prompt_id: int, rng: np.random.Generator) -> WiseScore:
    if edition is Edition.VERIFIED:
        return VerifiedScore(prompt_id=prompt_id, subcategory="s", score=int(rng.integers(2)))
    c, r, a = (int(n) for n in rng.integers(3, size=3))
    return LegacyScore(prompt_id=prompt_id, subcategory="s", consistency=c, realism=r, aesthetic_quality=a)


def value(line: dict[str, Any]) -> float:
    """Return the score of an emitted line, written again from the definition."""
    if "score" in line:
        return line["score"]
    return (0.7 * line["consistency"] + 0.2 * line["realism"] + 0.1 * line["aesthetic_quality"]) / 2


@pytest.mark.parametrize("edition", EDITIONS)
def test_every_id_is_in_the_category_of_its_range(edition: Edition) -> None:
    ranges = RANGES[edition.value]
    assert {n: (category_ids(n, edition)[0], category_ids(n, edition)[-1]) for n in CATEGORIES} == ranges
    assert sorted(i for name in CATEGORIES for i in category_ids(name, edition)) == list(range(1, 1001))


@pytest.mark.parametrize("edition", EDITIONS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), left_out=st.floats(0, 0.9))
def test_scores_of_a_file_are_those_of_its_lines(
    edition: Edition, seed: int, left_out: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("wise") / "scores.jsonl"
    write_scores(path, [made(edition, i, rng) for i in range(1, 1001) if rng.random() >= left_out])
    lines = {line["prompt_id"]: line for line in map(json.loads, path.read_text().splitlines())}
    summary = summarise_wise(read_scores([path], edition, RejectionReport()), edition, samples=0)

    overall: list[float | None] = []
    zeros = []
    for name, (low, high) in RANGES[edition.value].items():
        known = [value(lines[i]) for i in range(low, high + 1) if i in lines]
        overall.append(sum(known) / len(known) if known else None)
        zeros.append(sum(known) / (high - low + 1))
        category = summary.categories[name]
        assert (category.count, category.denominator) == (len(known), high - low + 1)
        assert category.mean == (pytest.approx(overall[-1]) if known else None)
        assert category.mean_missing_zero == pytest.approx(zeros[-1])
    weights = WEIGHTS[edition.value]
    assert summary.missing_ids == tuple(i for i in range(1, 1001) if i not in lines)
    assert summary.overall_missing_zero == pytest.approx(sum(w * z for w, z in zip(weights, zeros, strict=True)))
    if None in overall:
        assert summary.overall is None
    else:
        assert summary.overall == pytest.approx(sum(w * (m or 0) for w, m in zip(weights, overall, strict=True)))


@pytest.mark.parametrize(
    ("edition", "keys"),
    [
        (Edition.LEGACY, ["prompt_id", "Subcategory", "consistency", "realism", "aesthetic_quality"]),
        (Edition.VERIFIED, ["prompt_id", "Subcategory", "score"]),
    ],
)
def test_lines_have_the_published_keys_in_the_order_of_ids(edition: Edition, keys: list[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = write_scores(tmp_path / "s.jsonl", [made(edition, i, rng) for i in (9, 2, 30)])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [list(line) for line in lines] == [keys] * 3 and [line["prompt_id"] for line in lines] == [2, 9, 30]


def test_a_category_without_any_score_leaves_no_overall_score() -> None:
    scores = [made(Edition.LEGACY, i, np.random.default_rng(i)) for i in range(1, 901)]
    summary = summarise_wise(scores, Edition.LEGACY, samples=50)
    assert summary.categories["chemistry"].mean is None and summary.overall is None and summary.interval is None
    assert summary.overall_missing_zero > 0 and summary.missing_ids == tuple(range(901, 1001))


def test_the_interval_holds_the_score() -> None:
    scores = [made(Edition.LEGACY, i, np.random.default_rng(i)) for i in range(1, 1001)]
    summary = summarise_wise(scores, Edition.LEGACY, samples=500)
    assert summary.interval is not None and summary.interval.low < (summary.overall or 0) < summary.interval.high
    assert summary.interval.high - summary.interval.low < 0.06


def test_a_score_of_the_other_edition_or_of_one_id_twice_is_an_error() -> None:
    one = VerifiedScore(prompt_id=1, score=1)
    with pytest.raises(ValueError, match="legacy"):
        summarise_wise([one], Edition.LEGACY)
    with pytest.raises(ValueError, match="twice"):
        summarise_wise([one, one], Edition.VERIFIED)


def test_a_subcategory_counts_its_prompts() -> None:
    prompts = [WisePrompt(prompt_id=i, prompt="p", explanation="e", subcategory="Plants") for i in (701, 702)]
    score = LegacyScore(prompt_id=701, subcategory="Plants", consistency=2, realism=2, aesthetic_quality=2)
    found = summarise_wise([score], Edition.LEGACY, prompts, samples=0).subcategories["Plants"]
    assert (found.mean, found.mean_missing_zero, found.count, found.denominator) == (1.0, 0.5, 1, 2)


def test_a_marked_failure_is_missing_and_not_a_score(tmp_path: Path) -> None:
    """Published files mark a judgement that failed with a grade out of range."""
    path = tmp_path / "s.jsonl"
    rows = [
        {"prompt_id": i, "consistency": c, "realism": 1, "aesthetic_quality": 1}
        for i, c in ((1, 999), (2, 2), (3, None))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = RejectionReport()
    scores = read_scores([path], Edition.LEGACY, report)
    assert [score.prompt_id for score in scores] == [2] and report.rejected == {RejectionReason.BAD_FIELD: 2}


def test_prompts_are_read_from_the_users_arrays(tmp_path: Path) -> None:
    good = {"Prompt": "p", "Explanation": "e", "Category": "c", "Subcategory": "s"}
    first, second = tmp_path / "culture.json", tmp_path / "science.json"
    first.write_text(json.dumps([good | {"prompt_id": 2}, good | {"prompt_id": "1"}, good | {"prompt_id": 1001}]))
    second.write_text(json.dumps([good | {"prompt_id": 2}, good, good | {"prompt_id": 3, "Prompt": " "}]))
    report = RejectionReport()
    prompts = read_prompts([first, second], report)
    assert [(p.prompt_id, p.picture, p.subcategory) for p in prompts] == [(1, "1.png", "s"), (2, "2.png", "s")]
    assert report.rejected == {
        RejectionReason.BAD_FIELD: 1,
        RejectionReason.DUPLICATE_ID: 1,
        RejectionReason.MISSING_ID: 1,
        RejectionReason.MISSING_REQUEST: 1,
    }


def test_files_without_prompts_are_told(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    path.write_text("[]")
    with pytest.raises(DataError, match=r"none\.json"):
        read_prompts([path], RejectionReport())


@pytest.mark.parametrize("edition", EDITIONS)
def test_the_rubric_takes_prompt_and_explanation_once(edition: Edition) -> None:
    """What stands in the prompt opens no further place."""
    text = judge_text(PROMPT, rubric(edition))
    assert text.count("the {{explanation}} flower") == 1 and text.count("a carnation") == 1


def test_a_users_rubric_replaces_ours(tmp_path: Path) -> None:
    path = tmp_path / "own.md"
    path.write_text("look at {{prompt}}")
    assert judge_text(PROMPT, rubric(Edition.LEGACY, path)) == "look at the {{explanation}} flower"
    path.write_text("look")
    with pytest.raises(DataError, match="prompt"):
        rubric(Edition.LEGACY, path)
    with pytest.raises(DataError, match="absent"):
        rubric(Edition.LEGACY, tmp_path / "absent.md")


@pytest.mark.parametrize(
    "answer",
    [
        "Consistency: 2\nRealism: 1\nAesthetic Quality: 0",
        "**Consistency:** 2\n- Realism : 1 \r\n## AESTHETIC QUALITY: **0**\n",
        "<think>Consistency: 0</think>\nHere you are.\n\nConsistency: 2\n\nRealism: 1\n\nAesthetic Quality: 0\nDone.",
    ],
)
def test_the_three_lines_are_read(answer: str) -> None:
    found = parse_judgement(answer, PROMPT, Edition.LEGACY)
    assert found == LegacyScore(prompt_id=3, subcategory="Festival", consistency=2, realism=1, aesthetic_quality=0)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("", JudgementFault.EMPTY),
        ("<think>hm</think>", JudgementFault.EMPTY),
        ("Consistency: 2\nRealism: 1", JudgementFault.MISSING_LINE),
        ("Consistency: 2, Realism: 1, Aesthetic Quality: 0", JudgementFault.BAD_GRADE),
        ("Consistency: 2\nConsistency: 1\nRealism: 1\nAesthetic Quality: 0", JudgementFault.REPEATED_LINE),
        ("Consistency: 3\nRealism: 1\nAesthetic Quality: 0", JudgementFault.BAD_GRADE),
        ("Consistency: 1.5\nRealism: 1\nAesthetic Quality: 0", JudgementFault.BAD_GRADE),
        ("Consistency: -1\nRealism: 1\nAesthetic Quality: 0", JudgementFault.BAD_GRADE),
        ("Consistency: ٢\nRealism: 1\nAesthetic Quality: 0", JudgementFault.BAD_GRADE),
        ("Consistency:\nRealism: 1\nAesthetic Quality: 0", JudgementFault.BAD_GRADE),
    ],
)
def test_an_answer_that_is_no_judgement_is_a_failure_and_not_zero(answer: str, fault: JudgementFault) -> None:
    found = parse_judgement(answer, PROMPT, Edition.LEGACY)
    assert isinstance(found, FailedJudgement) and found.fault is fault


@pytest.mark.parametrize(
    "answer",
    [
        "2\n1\n0",
        "2.0\n1.0\n0\n",
        "Consistency: 2/2\nRealism: 1 / 2\nAesthetic Quality: 0.0",
        "1. Consistency: 2\n2. Realism: 1\n3. **Aesthetic Quality**: 0",
        "1) Consistency: 2;\n2) Realism: 1;\n3) Aesthetic Quality: 0;",
        '"Consistency: 2",\n"Realism: 1",\n"Aesthetic Quality: 0"',
        "\u2022 Consistency: 2\n\u2022 Realism: 1\n\u2022 Aesthetic Quality: 0",
    ],
)
def test_the_three_grades_are_read_in_other_notations(answer: str) -> None:
    found = parse_judgement(answer, PROMPT, Edition.LEGACY)
    assert found == LegacyScore(prompt_id=3, subcategory="Festival", consistency=2, realism=1, aesthetic_quality=0)


@pytest.mark.parametrize(
    "answer", ["2\n1", "2\n1\n3", "2\n1\n0\n1", "Consistency: 2/3\nRealism: 1\nAesthetic Quality: 0"]
)
def test_grades_of_another_number_or_scale_are_a_failure(answer: str) -> None:
    assert isinstance(parse_judgement(answer, PROMPT, Edition.LEGACY), FailedJudgement)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Score: 1", 1),
        ("score: **0**", 0),
        ("1", 1),
        ("<think>0?</think>\n0\n", 0),
        ("Score: 1.0", 1),
        ("Score: 0/1", 0),
        ("**Score**: 1/1", 1),
        ("Score = 1", 1),
        ("Score 1", 1),
        ("**Score** 0", 0),
        ("Score\uff1a1", 1),
        ("Score: 1.", 1),
        ("Score: 1 out of 1", 1),
        ("`Score: 1`", 1),
        ('"Score: 0"', 0),
        ("```\nScore: 1\n```", 1),
    ],
)
def test_the_verified_line_is_read(answer: str, score: int) -> None:
    found = parse_judgement(answer, PROMPT, Edition.VERIFIED)
    assert found == VerifiedScore(prompt_id=3, subcategory="Festival", score=score)


@pytest.mark.parametrize(
    "answer", ["Score: 2", "2", "1 0", "Score: 0.5", "Score: yes", "Score: 2/2", "Score: 1/2", "Score: 10"]
)
def test_the_verified_line_is_read_strictly(answer: str) -> None:
    assert isinstance(parse_judgement(answer, PROMPT, Edition.VERIFIED), FailedJudgement)


@given(answer=st.text(max_size=60) | st.text(st.sampled_from(list("Score: 01\n*Consitency")), max_size=60))
def test_any_answer_is_a_score_or_a_failure(answer: str) -> None:
    for edition in EDITIONS:
        assert isinstance(parse_judgement(answer, PROMPT, edition), LegacyScore | VerifiedScore | FailedJudgement)
