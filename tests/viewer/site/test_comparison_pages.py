from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from pathlib import Path

import pytest
from page_helpers import parsed
from site_run import addresses, client_of, open_run, store_site_run

from genevolve_ray.records.intervals import paired_interval
from genevolve_ray.records.published.rejections import DataError
from genevolve_ray.records.published.structured import StructuredTrajectory, ThinkStep, write_structured
from genevolve_ray.viewer.data import ReportData
from genevolve_ray.viewer.site.compare import MOST_PAIRS, MOST_WORDS, marked_words
from genevolve_ray.viewer.site.compare_runs import SEED, heldout_pairs, overlaid
from genevolve_ray.viewer.site.sources import RunSource, SourceKind, open_sources


@pytest.fixture
def source(report_data: ReportData, tmp_path: Path) -> Iterator[RunSource]:
    with open_run(store_site_run(tmp_path / "first", report_data), tmp_path / "index") as opened:
        yield opened


def test_words_that_only_one_program_has_are_marked() -> None:
    own, other = "Draw four moons in a row; red.", "Draw five moons; red."
    first, second = marked_words(own, other)
    assert first == (
        ("Draw", False),
        (" four", True),
        (" moons", False),
        (" in a row", True),
        ("; red.", False),
    )
    assert second == (("Draw", False), (" five", True), (" moons", False), ("; red.", False))
    assert marked_words("", other) == ((), ((other, False),))


@pytest.mark.parametrize("text", ["w " * (MOST_WORDS + 1), "the " * (isqrt(MOST_PAIRS) + 1)])
def test_long_and_degenerate_programs_are_shown_without_marks(text: str) -> None:
    assert marked_words(text, text) == (((text, False),), ((text, False),))


def test_marked_words_do_not_depend_on_color(source: RunSource) -> None:
    _, (first, second, *_) = addresses(source.index)
    page = client_of(source).get("/first/compare", params={"a": first, "b": second}).text
    marked = page.count('<mark class="only-here"><span class="unseen">only here: </span>')
    assert marked == page.count("only-here") > 0


def test_two_trajectories_stand_side_by_side(source: RunSource) -> None:
    _, (first, second, *_) = addresses(source.index)
    one, other = (source.index.entry(address) for address in (first, second))
    assert one.reward is not None and other.reward is not None
    link = f"http://testserver/first/trajectory/{second}#turn-2"
    page = parsed(client_of(source).get("/first/compare", params={"a": first, "b": link}).text)
    gap = f"{other.reward - one.reward:+.3f}".replace("-", "−")
    assert ["reward", f"{one.reward:.3f}", f"{other.reward:.3f}", gap] in page.rows("")
    assert page.count("details", _class="whole") == 2
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_requests_that_differ_are_told(source: RunSource) -> None:
    groups = source.index.groups().items
    training, held_out = (next(g for g in groups if (g.set == "train") == wanted) for wanted in (True, False))
    query = {"a": training.members[0].address, "b": held_out.members[0].address}
    assert "The two answered different requests." in client_of(source).get("/first/compare", params=query).text


def test_an_unknown_trajectory_is_named_beside_the_form(source: RunSource) -> None:
    _, (first, *_) = addresses(source.index)
    page = parsed(client_of(source).get("/first/compare", params={"a": first, "b": "nothing"}).text)
    assert "no trajectory has the address nothing" in page.words
    assert page.count("input", name="a", value=first) == 1


def test_two_runs_are_compared(source: RunSource, report_data: ReportData, tmp_path: Path) -> None:
    for trajectory in (*report_data.after, *report_data.before):
        if trajectory.reward is not None:
            trajectory.reward = trajectory.reward.model_copy(update={"total": trajectory.reward.total / 2})
    folder = store_site_run(tmp_path / "second", report_data, config={"learner": {"advantage": {"ddof": 0}}})
    with open_run(folder, tmp_path / "other-index") as other:
        rewards = [
            {e.request_id: e.reward for e in s.index.search().items if e.set == "heldout-final"}
            for s in (source, other)
        ]
        found = heldout_pairs(source.index, other.index)
        assert found is not None
        pairs = [(rewards[0][name], rewards[1][name]) for name in sorted(rewards[0]) if rewards[0][name] is not None]
        gain = paired_interval(
            [a for a, _ in pairs if a is not None], [b for _, b in pairs if b is not None], seed=SEED
        )
        assert (found[0], found[3]) == (len(pairs), gain)
        client = client_of(source, other)
        page = parsed(client.get("/first/runs?with=second").text)
        assert f"{gain.mean:+.3f}".replace("-", "−") in page.words
        assert ["learner.advantage.ddof", "1", "0"] in page.rows("settings")
        assert page.count("figure", _class="plot") == 1
        assert client.get("/first/runs?with=first").status_code == 404
        assert '<option value="second">' in client.get("/first/runs").text


def test_curves_of_runs_of_other_lengths_share_their_steps() -> None:
    (figure,) = overlaid(
        ("one", "two"), ([{"step": 1, "reward_mean": 0.5}], [{"step": s, "reward_mean": 0.1} for s in (1, 2)])
    )
    drawing = figure.drawing
    assert [(key.name, key.last) for key in drawing.keys] == [("one", "0.5"), ("two", "0.1")]
    assert drawing.readings.heads == ("step 1", "step 2")
    assert drawing.readings.values == ((0, ("0.5", "")), (1, ("0.1", "0.1")))


def test_a_trajectory_file_is_a_source_of_its_own(tmp_path: Path) -> None:
    structured = StructuredTrajectory(
        case_id="case-7",
        user_prompt="Show the moon.",
        gen_prompt="The first reference image.",
        steps=(ThinkStep(content="I need the moon.", action="search"),),
    )
    path = write_structured(structured, tmp_path / "trajectory_structured.json")
    (source,) = open_sources([str(path)], tmp_path)
    assert source.kind is SourceKind.STRUCTURED
    page = parsed(client_of(source).get("/trajectory_structured/").text)
    assert page.sections == ["request", "steps", "program"]
    assert "I need the moon." in page.words and page.count("mark", _class="ordinal") == 1
    before = source.revision
    write_structured(structured.model_copy(update={"user_prompt": "Show two moons."}), path)
    source.refresh()
    assert source.revision == before + 1
    assert "Show two moons." in client_of(source).get("/trajectory_structured/").text


def test_a_broken_trajectory_file_is_an_error_that_names_its_field(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"steps": []}')
    with pytest.raises(DataError, match=r"other\.json: case_id: Field required"):
        open_sources([str(path)], tmp_path)
