"""Guided re-draws on the site and in the report: apart from the group's own attempts, with the guide that they had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from page_helpers import HOSTILE, parsed
from site_run import REQUEST, client_of, links_of, open_run, speak, store_site_run
from starlette.testclient import TestClient

from genevolve_ray.viewer.data import ReportData, load_report_data
from genevolve_ray.viewer.report import render_report
from genevolve_ray.viewer.site import totals
from genevolve_ray.viewer.site.entries import REDRAWS, EntryFilter, group_address
from genevolve_ray.viewer.site.sources import RunSource

OWN, APART = group_address("train", 2, REQUEST), group_address(REDRAWS, 2, REQUEST)


@pytest.fixture
def folder(report_data: ReportData, tmp_path: Path) -> Path:
    return store_site_run(tmp_path / "run", report_data, redraws=2)


@pytest.fixture
def source(folder: Path, tmp_path: Path) -> Iterator[RunSource]:
    with open_run(folder, tmp_path / "index") as opened:
        yield opened


@pytest.fixture
def client(source: RunSource) -> TestClient:
    return client_of(source)


def test_they_are_a_set_of_their_own(source: RunSource) -> None:
    assert [m.sample for m in source.index.group(OWN).members] == [0, 1, 2]
    apart = source.index.group(APART)
    assert ([m.sample for m in apart.members], {m.trained for m in apart.members}) == ([3, 4], {2})
    assert source.index.search(EntryFilter(set="train")).total == 6
    assert source.index.choices()["set"][0] == "train" and REDRAWS in source.index.choices()["set"]
    with source.index.reading() as connection:
        assert {row.step for row in totals.versions(connection)} == {1, 2}
        counted = sum(row.tokens for row in totals.versions(connection) if row.step == 2)
    own = source.index.load_group(OWN).values()
    assert counted == sum(t.ledger.policy_tokens for t in own), "tokens that the learner's batch holds"


def test_the_page_of_a_group_shows_them_apart_with_their_guide(client: TestClient) -> None:
    page = parsed(client.get(f"/run/group/{OWN}").text)
    assert page.sections == ["samples", "redraws", "components", "recalled"]
    assert page.count("li", _class="sample-of guided") == 2
    assert "Experience card that the re-draws had as guide" in page.words and "search the facts first" in page.words
    assert len(page.rows("components")[0]) == 1 + 3, "the group's own samples alone"


def test_a_group_without_them_has_no_such_part(client: TestClient) -> None:
    first = client.get(f"/run/group/{group_address('train', 1, REQUEST)}").text
    assert "Re-draws with a guide" not in first and "badge guided" not in first


def test_their_own_page_leads_back_and_compares_nothing(client: TestClient) -> None:
    text = client.get(f"/run/group/{APART}").text
    page = parsed(text)
    assert page.sections == ["samples", "components", "recalled"]
    assert f"/run/group/{OWN}" in links_of(text, "group/")
    assert "Guide in the prompts of these attempts" in page.words
    assert "advantage" not in page.words and "Compare best and worst" not in page.words


def test_the_page_of_one_shows_the_guide_and_its_tokens_have_no_advantage(
    client: TestClient, source: RunSource
) -> None:
    address = source.index.group(APART).members[0].address
    page = parsed(client.get(f"/run/trajectory/{address}").text)
    assert "guide" in page.sections and "step 2, a guided re-draw beside its group" in page.words
    assert client.get(f"/run/tokens/{address}").status_code == 200


def test_the_list_marks_them(client: TestClient) -> None:
    page = parsed(client.get("/run/groups?set=redraws").text)
    assert page.count("li", _class="sample ") == 2, "none is the best or the worst of a group"
    assert "guided re-draws of step 2" in page.words and "1 group with a sample that fits" in page.words


def test_groups_of_an_earlier_round_than_their_step_have_their_cards_and_guides(
    report_data: ReportData, tmp_path: Path
) -> None:
    """Dynamic sampling and asynchronous runs train on groups that were leased in an earlier round."""
    run = store_site_run(tmp_path / "run", report_data, redraws=2, lag=1)
    first, second = (group_address("train", round_, REQUEST) for round_ in (0, 1))
    with open_run(run, tmp_path / "scratch") as opened:
        site = client_of(opened)
        taught = parsed(site.get(f"/run/group/{second}").text)
        assert taught.sections == ["samples", "redraws", "components", "recalled"]
        links = links_of(site.get(f"/run/group/{second}").text, "group/")
        assert f"/run/group/{first}" in links and all(site.get(link).status_code == 200 for link in links)
        guided = site.get(f"/run/group/{group_address(REDRAWS, 1, REQUEST)}").text
        assert "Guide in the prompts of these attempts" in guided and f"/run/group/{first}" in guided


def test_the_report_shows_those_of_the_last_step_with_their_guide(folder: Path) -> None:
    page = parsed(render_report(load_report_data(folder)))
    assert "redraws" in page.sections
    assert "guided sample 3" in page.words and "remembered bundle 0" in page.words
    assert "search the facts first" in page.words


def test_a_report_without_them_has_no_such_section(report_data: ReportData, tmp_path: Path) -> None:
    plain = store_site_run(tmp_path / "plain", report_data)
    assert "redraws" not in parsed(render_report(load_report_data(plain))).sections


def test_hostile_texts_stay_texts(report_data: ReportData, tmp_path: Path) -> None:
    run = store_site_run(
        tmp_path / "bad", report_data, lambda t: speak(t, HOSTILE), guidance=HOSTILE, redraws=2, request_id=HOSTILE
    )
    parsed(render_report(load_report_data(run))).assert_harmless()
    with open_run(run, tmp_path / "scratch") as opened:
        site = client_of(opened)
        plain = parsed(site.get("/bad/groups").text)
        for group in (group_address("train", 2, HOSTILE), group_address(REDRAWS, 2, HOSTILE)):
            page = parsed(site.get(f"/bad/group/{group}").text)
            assert "redraws" in page.sections or "guided" in page.words
            assert HOSTILE in page.text and page.count("img", src="x") == plain.count("img", src="x") == 0
            assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
