from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from page_helpers import HOSTILE, Page, parsed

from genevolve_ray.records.components import Component, OpenVerdict
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.trajectory import Trajectory, TurnKind
from genevolve_ray.records.verdict import Reward, RewardConfig
from genevolve_ray.viewer.data import ReportData
from genevolve_ray.viewer.site.story import ordinal_pieces, reward_formula, tell
from genevolve_ray.viewer.trajectory_page import write_trajectory_page


@pytest.fixture
def trajectory(report_data: ReportData) -> Trajectory:
    """One judged attempt that took a reference."""
    return next(t for t in report_data.after if t.verdict is not None and t.turns[0].tool == "query_knowledge")


def read(trajectory: Trajectory, data: ReportData, folder: Path, truth: ImageRef | None = None) -> Page:
    path = write_trajectory_page(trajectory, data.load_image, folder / "page.html", truth=truth)
    return parsed(path.read_text(encoding="utf-8"))


def test_the_story_runs_from_the_request_to_the_verdict(
    trajectory: Trajectory, report_data: ReportData, tmp_path: Path
) -> None:
    page = read(trajectory, report_data, tmp_path, truth=report_data.requests[0].truth_image)
    assert page.sections == ["request", "turns", "program", "picture", "verdict"]
    assert page.count("li", _class="candidate taken") == 2 and page.count("li", _class="candidate") == 2
    said = [trajectory.prompt, "read a skill", "searched for pictures", "answered with the program", "Gazetteer"]
    places = [page.words.index(words) for words in (*said[:3], said[3])]
    assert places == sorted(places)
    assert trajectory.verdict is not None and trajectory.verdict.rationale in page.text
    assert all(turn.observation.strip() in page.text for turn in trajectory.turns)


def test_the_page_stands_alone(trajectory: Trajectory, report_data: ReportData, tmp_path: Path) -> None:
    page = read(trajectory, report_data, tmp_path)
    page.assert_loads_nothing()
    assert [kind for kind, _ in page.scripts] == ["text/javascript"]
    policy = next(str(a["content"]) for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and len(re.findall("'sha256-", policy)) == 1
    links = [str(a["href"]) for t, a in page.tags if t == "a"]
    assert [link for link in links if link[0] != "#"] == [
        next(x for x in links if x.startswith("data:application/json"))
    ]


def test_a_missing_picture_leaves_a_blank(trajectory: Trajectory, report_data: ReportData, tmp_path: Path) -> None:
    def gone(ref: ImageRef) -> bytes:
        raise FileNotFoundError(ref.sha256)

    page = read(trajectory, dataclasses.replace(report_data, load_image=gone), tmp_path)
    assert page.count("img") == 0 and page.text.count("no picture") == 5


def test_a_reward_is_a_sum_only_with_the_settings_that_give_it(trajectory: Trajectory) -> None:
    trajectory.reward = Reward(total=0.675, image=0.9, text=0.5, cost=0.025)
    unknown = reward_formula(trajectory)
    fitting = reward_formula(trajectory, RewardConfig())
    other = reward_formula(trajectory, RewardConfig(image_weight=0.9))
    assert unknown is not None and fitting is not None and other is not None
    assert [weight for weight, _, _ in fitting.terms] == [0.5, 0.5]
    assert unknown.terms == other.terms == ((None, "picture", 0.9), (None, "program", 0.5))


def test_open_rewards_have_the_weights_of_their_components(trajectory: Trajectory) -> None:
    trajectory.reward = Reward(total=0.4, image=0.0, text=0.0, parts={"ocr.text": 0.4})
    formula = reward_formula(trajectory, RewardConfig(components={"ocr.text": 2.0}))
    assert formula is not None and (formula.terms, formula.how) == (((2.0, "ocr.text", 0.4),), "weighted sum")


def test_every_component_of_every_judge_is_told(trajectory: Trajectory) -> None:
    trajectory.verdicts["ocr"] = OpenVerdict(components={"text": Component(value=3, low=0, high=4)}, judge="ocr-1")
    main, ocr = tell(trajectory).judgments
    assert {m.name for m in main.measures} >= {"faithfulness", "visual_correctness", "aesthetics", "sufficiency"}
    assert len(main.checks) == 4
    assert [(m.name, m.scaled) for m in ocr.measures] == [("text", 0.75)]


def test_ordinals_are_cut_out_of_the_prompt() -> None:
    pieces = ordinal_pieces("Draw the First  reference image, not the second one.")
    assert pieces == (("Draw the ", ""), ("First  reference image", "first"), (", not the second one.", ""))


def test_a_broken_turn_shows_its_error(trajectory: Trajectory) -> None:
    broken = trajectory.turns[0].model_copy(update={"kind": TurnKind.FORMAT_ERROR, "tool": "", "error": HOSTILE})
    trajectory.turns[0] = broken
    scene = tell(trajectory).scenes[0]
    assert (scene.kind, scene.call, scene.turn.error) == ("broken", "", HOSTILE)
