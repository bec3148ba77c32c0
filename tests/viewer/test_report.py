from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest
from large_pictures import with_large_pictures
from page_helpers import HOSTILE, Page, parsed

from genevolve_ray.agent.wire import image_block
from genevolve_ray.records.components import Artefact, Component, OpenVerdict
from genevolve_ray.records.experience import Use
from genevolve_ray.records.trajectory import Outcome
from genevolve_ray.records.verdict import Reward, SufficiencyBin
from genevolve_ray.viewer.data import ReportData
from genevolve_ray.viewer.gallery import MAX_PREVIEW, THUMB_SIDE
from genevolve_ray.viewer.report import render_report, write_report

SECTIONS = ["headlines", "curves", "experience", "heldout", "gallery", "attempts", "configuration", "provenance"]


def read(data: ReportData) -> Page:
    return parsed(render_report(data))


def test_a_finished_run_has_every_section(report_data: ReportData) -> None:
    page = read(report_data)
    assert page.sections == SECTIONS
    assert page.count("article", _class="card") == len(report_data.requests)
    links = {a["href"] for t, a in page.tags if t == "a"}
    assert links == {f"#{s}" for s in SECTIONS[1:]}


def test_headlines_show_the_comparison_with_its_interval(report_data: ReportData) -> None:
    report_data.summary |= {
        "heldout_reward_sft": 0.5,
        "heldout_reward_final": 0.625,
        "heldout_gain_interval": [0.1, 0.15],
    }
    text = " ".join(read(report_data).text.split())
    assert "Held-out reward0.500 → 0.625mean over 9 requests" in text
    assert "Paired gain+0.12595% interval +0.100 to +0.150" in text
    assert "Parity, worst step1.6e-6limit 1e-4" in text
    assert "Time9 min 57 ssetup 2 min 11 s, evolve 6 min 52 s" in text


def test_whole_trajectories_can_be_opened(report_data: ReportData) -> None:
    page = read(report_data)
    trajectory = report_data.after[0]
    assert report_data.experience is not None
    bundles = len(report_data.experience.bundles)
    assert page.count("details") == len(report_data.requests) + len(report_data.training) + bundles
    assert trajectory.verdict is not None
    for text in (trajectory.turns[0].observation, trajectory.verdict.rationale, trajectory.images["IMG_001"].title):
        assert text in page.text
    assert json.dumps({"name": trajectory.turns[0].tool, "arguments": trajectory.turns[0].arguments}) in page.text
    kinds = {a["class"] for t, a in page.tags if t == "div" and (a.get("class") or "").startswith("block")}
    assert {"block think", "block tool_call", "block answer", "block observation"} <= kinds


def test_what_the_policy_saw_is_shown_at_each_search(report_data: ReportData) -> None:
    blind = read(report_data)
    assert blind.count("div", _class="hits seen") == 0 and "seen by the policy" not in blind.text
    seeing = report_data.after[0]
    first, second, third = sorted(seeing.images)
    for name, change in {first: {"shown": seeing.images[first].image}, second: {"unseen": HOSTILE}}.items():
        seeing.images[name] = seeing.images[name].model_copy(update=change)
    place = next(i for i, turn in enumerate(seeing.turns) if turn.tool == "image_search")
    block = image_block("q", [(name, seeing.images[name], "") for name in (first, second, third)], ("title",), 200)
    seeing.turns[place] = seeing.turns[place].model_copy(update={"observation": block})
    page = read(report_data)
    page.assert_harmless()
    assert page.count("div", _class="hits seen") == 1
    title, others = seeing.images[first].title, [seeing.images[name].title for name in (second, third)]
    assert f"seen by the policy {first} · used128 × 128 px{title} {second}not shown: " in page.words
    assert f"found, not seen by the policy {second}{others[0]} {third}{others[1]} " in page.words
    shown = seeing.images[first].image.sha256[:16]
    [place] = [a for tag, a in page.tags if tag == "img" and a.get("data-picture") == f"{shown}-{THUMB_SIDE}"]
    assert place["alt"] == f"{first}, used: {title}"


def test_hostile_text_stays_text(report_data: ReportData) -> None:
    spoiled = report_data.after[0]
    spoiled.turns[0] = spoiled.turns[0].model_copy(
        update={"text": f"<think>{HOSTILE}</think>{HOSTILE}", "observation": HOSTILE, "tool": HOSTILE}
    )
    spoiled.images["IMG_001"] = spoiled.images["IMG_001"].model_copy(update={"title": HOSTILE})
    assert spoiled.verdict is not None
    spoiled.verdict = spoiled.verdict.model_copy(update={"rationale": HOSTILE})
    request = report_data.requests[0].model_copy(update={"prompt": HOSTILE, "id": HOSTILE, "category": HOSTILE})
    for side in (report_data.before, report_data.after):
        side[0].key = side[0].key.model_copy(update={"request_id": HOSTILE})
    report_data.requests[0] = request
    report_data.config["note"] = HOSTILE
    report_data.run["command"] = HOSTILE
    page = read(dataclasses.replace(report_data, name=HOSTILE))
    page.assert_harmless()
    # It is shown where it stood, as plain characters: name twice (title, heading), think, stray text, tool, ...
    assert page.text.count(HOSTILE) >= 8


def test_experience_shows_pairs_with_their_card(report_data: ReportData) -> None:
    page = read(report_data)
    assert page.count("article", _class="lesson") == 2
    assert "31 bundles written; 32 lessons: 20 from a request's own bundle of the same step, 12 from" in page.words
    assert "The page shows 2: those recalled most often" in page.words
    assert "bundle 1 · written in step 2 · test-77-00001 · best minus worst +0.500" in page.words
    assert "Searchsearch the facts firstAvoiddo not use the fan picture" in page.words


def test_experience_shows_where_a_bundle_was_recalled_and_what_it_moved(report_data: ReportData) -> None:
    page = read(report_data)
    rows = page.rows("experience")
    assert ["step 1", "test-77-00000", "1.00", "own"] in rows
    assert ["step 5", "train-0", "0.90", "remembered"] in rows
    assert "and 5 more" in page.words  # 13 retrievals, 8 of them listed.
    assert [
        "+4.000",
        "… w54 w55 w56 w57 w58 w59 w0 w1 w2 w3 w4 w5 w6 w7 w8…",
        "think · step 1 · sample 1 +1",
    ] in rows
    assert ["+0.500", "token 70", "step 1 · sample 9"] in rows, "an attempt that is not kept has no text"
    assert page.count("tr", _class="bad") == 2 * 2
    assert page.count("tr", _class="good") == 2


def test_without_a_tokenizer_tokens_are_told_by_position(report_data: ReportData) -> None:
    assert report_data.experience is not None
    report_data.experience.decode = None
    assert ["+4.000", "token 62", "think · step 1 · sample 1 +1"] in read(report_data).rows("experience")


def test_components_of_further_judges_are_a_table_with_their_reward(report_data: ReportData) -> None:
    attempt = report_data.training[0]
    marks = (Artefact(kind="text", label=HOSTILE),)
    found = Component(value=7, high=10, rationale=HOSTILE, artefacts=marks)
    attempt.verdicts = {"ocr": OpenVerdict(components={"overlap": found}, judge="ocr/1", rationale="seven words")}
    attempt.reward = Reward(
        total=0.0, image=0, text=0, parts={"ocr.overlap": 0.7}, closed="ocr.overlap", normalised=-1.5
    )
    html = render_report(report_data)
    for said in ("<th>ocr</th>", "<td>overlap</td>", "0 to 10", "seven words", "0 for the gate ocr.overlap"):
        assert said in html
    assert "ocr.overlap 0.700" in html and HOSTILE not in html


def test_a_verdict_of_one_grade_is_shown_without_checks(report_data: ReportData) -> None:
    assert report_data.experience is not None
    best = report_data.experience.bundles[0].best
    assert best is not None and best.verdict is not None
    changes = {"text": SufficiencyBin(score=0.25), "text_rationale": "the second lantern is missing"}
    best.verdict = best.verdict.model_copy(update=changes)
    text = read(report_data).text
    assert "the second lantern is missing" in text
    assert "program 0.25" in " ".join(text.split())


def test_hostile_experience_stays_text(report_data: ReportData) -> None:
    run = report_data.experience
    assert run is not None
    bundle = run.bundles[0]
    texts = ("trigger", "summary", "request_id")
    hostile = bundle.experience.model_copy(update=dict.fromkeys(texts, HOSTILE))
    bundle.experience = hostile.guided({"search_strategy": (HOSTILE,)})
    bundle.uses = [Use(step=1, request_id=HOSTILE, similarity=1.0, own=True)]
    assert bundle.best is not None
    bundle.best.turns[0] = bundle.best.turns[0].model_copy(update={"tool": HOSTILE, "arguments": {"query": HOSTILE}})
    bundle.best.prompt = HOSTILE
    run.decode = lambda ids: HOSTILE[: len(ids)]
    page = read(report_data)
    page.assert_harmless()
    assert page.text.count(HOSTILE) >= 8


def test_the_page_loads_nothing_and_runs_only_its_own_scripts(report_data: ReportData) -> None:
    page = read(report_data)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    for kind, body in page.scripts:
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert (f"'sha256-{digest}'" in policy) == (kind == "text/javascript")
    style = re.search(r"<style>(.*?)</style>", render_report(report_data), re.DOTALL)
    assert style is not None and "url(" not in style.group(1) and "@import" not in style.group(1)


def test_the_file_appears_whole_in_a_new_folder(report_data: ReportData, tmp_path: Path) -> None:
    out = write_report(dataclasses.replace(report_data, requests=[]), tmp_path / "deep" / "report.html")
    assert out.read_text().rstrip().endswith("</html>")
    assert list(out.parent.iterdir()) == [out]


def test_a_run_with_nothing_but_a_name_still_gets_a_page() -> None:
    page = read(ReportData(name="bare"))
    assert page.sections == []
    assert "bare" in page.text


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ({"metrics": []}, {"curves"}),
        ({"summary": {}}, set()),
        ({"before": []}, {"gallery"}),
        ({"requests": [], "summary": {}}, {"gallery", "heldout"}),
        ({"training": []}, {"attempts"}),
        ({"experience": None}, {"experience"}),
        ({"config": {}}, {"configuration"}),
    ],
)
def test_what_is_missing_is_left_out(report_data: ReportData, missing: dict[str, object], gone: set[str]) -> None:
    page = read(dataclasses.replace(report_data, **missing))  # type: ignore[arg-type]
    assert page.sections == [s for s in SECTIONS if s not in gone]
    assert not [a["href"] for t, a in page.tags if t == "a" and str(a["href"])[1:] in gone]


def test_a_run_without_heldout_evaluation_reports_its_training(report_data: ReportData) -> None:
    page = read(dataclasses.replace(report_data, requests=[], before=[], after=[], summary={}, experience=None))
    text = " ".join(page.text.split())
    assert page.sections == ["headlines", "curves", "attempts", "configuration", "provenance"]
    assert "Training reward" in text and "Held-out reward" not in text


def test_missing_keys_and_broken_numbers_hide_their_figures(report_data: ReportData) -> None:
    rows = [{"step": i, "reward_mean": float("nan") if i == 1 else 0.5, "entropy": None} for i in range(4)]
    page = read(dataclasses.replace(report_data, metrics=rows, summary={"parity_max": "n/a", "seconds": 3}))
    plots = {a["id"] for t, a in page.tags if t == "figure" and (a.get("class") or "").startswith("plot")}
    assert plots == {"plot-reward", "plot-heldout"}
    assert "NaN" not in "".join(body for _, body in page.scripts if '"places"' in body)


def test_a_lost_picture_leaves_a_blank(report_data: ReportData) -> None:
    def lost(ref: object) -> bytes:
        raise FileNotFoundError("gone")

    page = read(dataclasses.replace(report_data, load_image=lost))
    assert page.count("img") == 0
    lessons = 2 * 2  # Two bundles with a pair each.
    assert page.count("div", _class="blank") == 3 * len(report_data.requests) + len(report_data.training) + lessons


def test_an_attempt_without_a_reward_is_counted_and_not_compared(report_data: ReportData) -> None:
    report_data.after[0].outcome = Outcome.INFRA_FAILURE
    report_data.after[0].reward = None
    page = read(report_data)
    assert page.count("article", _class="card") == len(report_data.requests) - 1
    assert f"1 of {len(report_data.after)}" in page.text


def test_half_surrogates_do_not_stop_the_file(report_data: ReportData, tmp_path: Path) -> None:
    report_data.after[0].turns[0] = (
        report_data.after[0].turns[0].model_copy(update={"observation": "broken \ud800 text"})
    )
    assert "broken ? text" in write_report(report_data, tmp_path / "report.html").read_text()


def test_the_same_run_gives_the_same_page(report_data: ReportData) -> None:
    assert render_report(report_data) == render_report(report_data)


def test_a_report_of_large_pictures_has_a_bounded_size(
    report_data: ReportData, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = with_large_pictures(report_data, side=400)
    small = len(render_report(report_data))
    budget = 150_000  # A few of the pictures.
    monkeypatch.setattr("genevolve_ray.viewer.gallery.FULL_BUDGET", budget)
    html = render_report(data)
    page = parsed(html)
    held = json.loads([body for kind, body in page.scripts if kind == "application/json"][-1])
    full = {key: uri for key, uri in held.items() if "-" not in key}
    assert full and sum(map(len, full.values())) <= budget
    previews = page.count("img") + len(held)
    assert len(html) < small + budget + previews * 4 / 3 * MAX_PREVIEW
    wanted = {a["data-full"] for tag, a in page.tags if tag == "button" and a.get("data-full")}
    assert set(full) < wanted


def test_alarms_are_listed_by_the_steps_in_which_they_were_raised(report_data: ReportData) -> None:
    for row in report_data.metrics:
        row |= {"alarm_tool_use": float(row["step"] in (2, 3)), "alarm_entropy": float(row["step"] >= 7)}
    report_data.alarm_texts = {(2, "tool_use"): HOSTILE, (3, "tool_use"): "of another step"}
    page = read(report_data)
    page.assert_harmless()
    assert page.sections[:2] == ["headlines", "alarms"]
    assert f"⚠ tool use step 2 to 3 {' '.join(HOSTILE.split())}" in page.words
    assert "⚠ entropy since step 7, still raised This run does not keep what the alarm said." in page.words
    assert "of another step" not in page.words
    marks = [a["aria-label"] for _, a in page.tags if "alarm: " in str(a.get("aria-label"))]
    assert [str(label).rpartition("; ")[2] for label in marks] == ["alarm: entropy, step 7", "alarm: tool use, step 2"]


def test_a_run_without_alarms_has_no_list_of_them(report_data: ReportData) -> None:
    assert "alarms" not in read(report_data).sections
