from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from page_helpers import parsed
from site_run import REQUEST, addresses, client_of, links_of, open_run, store_site_run, truth_of
from starlette.testclient import TestClient

from genevolve_ray.learning.advantage import group_advantages
from genevolve_ray.records.published.structured import parse_structured, structured_of
from genevolve_ray.viewer.data import ReportData
from genevolve_ray.viewer.site.entries import group_address
from genevolve_ray.viewer.site.sources import RunSource


@pytest.fixture
def source(report_data: ReportData, tmp_path: Path) -> Iterator[RunSource]:
    with open_run(store_site_run(tmp_path / "run", report_data), tmp_path / "index") as opened:
        yield opened


@pytest.fixture
def client(source: RunSource) -> TestClient:
    return client_of(source)


def test_the_list_shows_every_sample_with_its_reward(client: TestClient, source: RunSource) -> None:
    page = parsed(client.get("/run/groups").text)
    (first, second, *_), trajectories = addresses(source.index)
    group = source.index.group(first)
    assert group.best is not None and group.worst is not None
    hrefs = [a["href"] for t, a in page.tags if t == "a"]
    assert f"/run/group/{first}" in hrefs and f"/run/group/{second}" in hrefs
    assert {f"/run/trajectory/{a}" for a in trajectories} <= set(hrefs)
    assert f"{group.best:.3f}best" in page.words and f"{group.worst:.3f}worst" in page.words


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ("set=train", lambda e: e.set == "train"),
        ("step=2&set=train", lambda e: e.set == "train" and e.step == 2),
        ("outcome=policy_failure", lambda e: e.outcome.value == "policy_failure"),
        ("tool=query_knowledge", lambda e: "query_knowledge" in e.tools),
        ("low=0.7", lambda e: e.reward is not None and e.reward >= 0.7),
        ("high=0.2", lambda e: e.reward is not None and e.reward <= 0.2),
        ("text=lantern+velloran", lambda e: "Velloran lantern" in e.prompt),
    ],
)
def test_a_filter_keeps_groups_with_a_sample_that_fits(client: TestClient, source: RunSource, query: str, fits) -> None:  # type: ignore[no-untyped-def]
    wanted = {g.address for g in source.index.groups().items if any(map(fits, g.members))}
    answer = client.get(f"/run/groups?{query}")
    assert {link.rsplit("/", 1)[1] for link in links_of(answer.text, "group/")} == wanted
    assert f"{len(wanted)} group{'' if len(wanted) == 1 else 's'} with a sample that fits" in parsed(answer.text).words


def test_a_filter_stays_in_its_form(client: TestClient) -> None:
    page = parsed(client.get("/run/groups?text=moon&low=0.5&tool=search&order=best").text)
    assert page.count("input", name="text", value="moon") == page.count("input", name="low", value="0.5") == 1
    chosen = [a["value"] for t, a in page.tags if t == "option" and "selected" in a]
    assert chosen == ["search", "best"]


def test_a_filter_that_cannot_be_used_is_named(client: TestClient) -> None:
    answer = client.get("/run/groups?outcome=fine")
    assert answer.status_code == 400 and "outcome=&#39;fine&#39; cannot be used" in answer.text


def test_a_group_has_its_samples_components_and_advantages(client: TestClient, source: RunSource) -> None:
    (first, *_), _ = addresses(source.index)
    group = source.index.group(first)
    page = parsed(client.get(f"/run/group/{first}").text)
    rewards = [m.reward for m in group.members if m.reward is not None]
    for value in group_advantages(rewards).values:
        assert f"advantage {value:+.3f}".replace("-", "−") in page.words
    table = page.rows("components")
    assert table[0][0] == "component" and len(table[0]) == 1 + len(group.members)
    assert table[-1] == ["reward", *(f"{reward:.3f}" for reward in rewards)]
    assert {row[0] for row in table} >= {"faithfulness", "visual correctness", "KScore", "sufficiency"}
    assert "This run kept no ground truth of the request." in page.words


def test_a_group_of_training_shows_the_truth_that_its_step_kept(
    client: TestClient, source: RunSource, report_data: ReportData
) -> None:
    (_, second, *_), trajectories = addresses(source.index)
    for page in (f"/run/group/{second}", f"/run/trajectory/{trajectories[3]}"):
        assert f"/run/image/{truth_of(report_data).sha256}" in client.get(page).text


def test_a_group_shows_the_card_from_it_and_where_it_was_recalled(client: TestClient, source: RunSource) -> None:
    (first, second, *_), _ = addresses(source.index)
    wrote, taught = (client.get(f"/run/group/{address}").text for address in (first, second))
    assert "Experience card from this group" in wrote and "search the facts first" in wrote
    assert f'<a href="/run/group/{second}">step 2' in wrote
    assert "Experience card that taught this group" in taught and f'<a href="/run/group/{first}"' in taught
    assert group_address("train", 2, REQUEST) == second


def test_a_held_out_group_shows_its_truth(client: TestClient, source: RunSource, report_data: ReportData) -> None:
    group = next(g for g in source.index.groups().items if g.set == "heldout-final")
    request = next(r for r in report_data.requests if r.id == group.request_id)
    assert request.truth_image is not None
    assert f"/run/image/{request.truth_image.sha256}" in client.get(f"/run/group/{group.address}").text


def test_a_trajectory_has_its_story_and_its_place(client: TestClient, source: RunSource) -> None:
    _, (first, second, *_) = addresses(source.index)
    page = parsed(client.get(f"/run/trajectory/{first}").text)
    assert page.sections == ["request", "turns", "program", "picture", "verdict", "tokens", "compare"]
    assert "step 1, trained on in step 1 · sample 0" in page.words
    links = [a.get("href") for t, a in page.tags if t == "a"]
    assert f"/run/trajectory/{second}" in links and f"/run/tokens/{first}" in links
    full = [str(a["href"]) for t, a in page.tags if a.get("class") == "zoom"]
    assert full and all(client.get(link).headers["content-type"] == "image/png" for link in full)


def test_a_trajectory_downloads_in_the_form_of_the_authors(client: TestClient, source: RunSource) -> None:
    _, (first, *_) = addresses(source.index)
    answer = client.get(f"/run/structured/{first}")
    assert 'filename="trajectory_structured.json"' in answer.headers["content-disposition"]
    assert parse_structured(answer.content, "answer") == structured_of(source.index.load(first))


@pytest.mark.parametrize("page", ["group/step-9-0000000000000000", "trajectory/x", "tokens/x", "structured/x"])
def test_an_unknown_address_is_not_found(client: TestClient, page: str) -> None:
    answer = client.get(f"/run/{page}")
    assert answer.status_code == 404 and "Nothing here" in answer.text
