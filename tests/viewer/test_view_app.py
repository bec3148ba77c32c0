"""The server of the site: whom it answers, what it sends with every answer, and what it never sends."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_helpers import HOSTILE, parsed
from PIL import Image
from starlette.testclient import TestClient
from store_helpers import CONFIG, make_group, take_step

from genevolve_ray.commands.view import pause_for, token_for
from genevolve_ray.evolution.status import RunStatus, StatusNote, utc_now
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.viewer.site.app import ServedLinks, create_app
from genevolve_ray.viewer.site.guard import COOKIE, is_loopback
from genevolve_ray.viewer.site.overview import RunHeadline, tiles
from genevolve_ray.viewer.site.rendering import render_home
from genevolve_ray.viewer.site.sources import RunSource, SourceFault, SourceKind, ViewSource, open_sources

TOKEN = "a-token-of-this-test"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.open(str(tmp_path / "demo"), CONFIG) as opened:
        take_step(opened, 1)
        yield opened


@pytest.fixture
def sources(store: RunStore, tmp_path: Path) -> Iterator[list[ViewSource]]:
    (tmp_path / "scratch").mkdir()
    opened = open_sources([store.root], tmp_path / "scratch")
    read_all(opened)
    yield opened
    for source in opened:
        source.close()


@pytest.fixture
def client(sources: list[ViewSource]) -> TestClient:
    return TestClient(create_app(sources), base_url="http://127.0.0.1:8000")


def read_all(sources: list[ViewSource]) -> None:
    for source in sources:
        while source.refresh():
            pass


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_single_source_is_shown_at_once(client: TestClient) -> None:
    page = client.get("/")
    assert page.url.path == "/demo/"
    assert "step 1 of 4" in " ".join(page.text.split())


@pytest.mark.parametrize("path", ["/demo/", "/demo/none", "/none/", "/static/site.css", "/demo/image/00"])
def test_every_answer_has_the_strict_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_reading_is_answered(client: TestClient, method: str) -> None:
    assert client.request(method, "/demo/").status_code == 405


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::1"])
def test_another_name_for_the_server_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/demo/", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8000", "LOCALHOST:80"])
def test_names_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/demo/", headers={"Host": host}).status_code == 200


def test_a_token_is_needed_once_and_then_its_cookie(sources: list[ViewSource]) -> None:
    client = TestClient(create_app(sources, TOKEN), base_url="http://gpu-1:8000")
    assert client.get("/demo/").status_code == 401
    assert client.get("/demo/?token=other").status_code == 401
    first = client.get(f"/demo/?token={TOKEN}&page=2", follow_redirects=False)
    assert first.headers["location"] == "/demo/?page=2"
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert cookie.startswith(f"{COOKIE}_8000=")
    assert TOKEN not in cookie
    assert client.get("/demo/").status_code == 200
    stranger = TestClient(create_app(sources, TOKEN), base_url="http://gpu-1:8000", cookies={f"{COOKIE}_8000": TOKEN})
    assert stranger.get("/static/site.css").status_code == 401


def test_viewers_on_two_ports_of_a_host_do_not_take_each_others_cookie(sources: list[ViewSource]) -> None:
    client = TestClient(create_app(sources, TOKEN), base_url="http://localhost:8000")
    assert client.get(f"/demo/?token={TOKEN}").status_code == 200
    other = TestClient(create_app(sources, "another"), base_url="http://localhost:8001", cookies=client.cookies)
    assert other.get("/demo/?token=another").status_code == 200
    client.cookies = other.cookies
    assert client.get("/demo/").status_code == 200
    assert other.get("/demo/").status_code == 200


def test_a_step_beyond_all_bounds_is_no_fault_of_the_server(client: TestClient) -> None:
    assert client.get("/demo/groups", params={"step": "9" * 20}).status_code == 400


def test_the_redirect_after_a_token_stays_on_this_server(sources: list[ViewSource]) -> None:
    client = TestClient(create_app(sources, TOKEN), base_url="http://gpu-1:8000")
    answer = client.get(f"//evil.example/?token={TOKEN}", follow_redirects=False)
    assert answer.headers["location"].startswith("/")
    assert not answer.headers["location"].startswith("//")


@pytest.mark.parametrize(
    "path",
    [
        "/demo/image/../../run.json",
        "/demo/image/%2e%2e%2frun.json",
        f"/demo/image/{'0' * 63}g",
        f"/demo/image/{'0' * 64}",
        f"/demo/image/{'0' * 64}?side=257",
        "/demo/overview/../../etc",
        "/static/..%2f..%2fpage.py",
        "/static/nothing.js",
        "/demo%00/",
    ],
)
def test_nothing_outside_of_the_pages_can_be_reached(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_picture_is_encoded_again_in_the_size_that_is_asked_for(client: TestClient, store: RunStore) -> None:
    data = png(640, 320) + b"<script>alert(1)</script>"
    ref = store.images.put(data, width=640, height=320)
    whole, small = (client.get(f"/demo/image/{ref.sha256}{query}") for query in ("", "?side=256"))
    assert b"script" not in whole.content + small.content
    assert Image.open(io.BytesIO(whole.content)).size == (640, 320)
    assert Image.open(io.BytesIO(small.content)).size == (256, 128)
    assert (whole.headers["content-type"], small.headers["content-type"]) == ("image/png", "image/jpeg")


def test_a_decompression_bomb_is_refused(client: TestClient, store: RunStore) -> None:
    ref = store.images.put(png(9000, 9000), width=9000, height=9000)
    answer = client.get(f"/demo/image/{ref.sha256}?side=96")
    assert answer.status_code == 415
    assert "9000 x 9000" in answer.text


def test_hostile_notes_and_names_are_text(store: RunStore, tmp_path: Path) -> None:
    status = RunStatus(
        updated=utc_now(), steps=4, phase=HOSTILE, total=2, notes=(StatusNote(time=HOSTILE, text=HOSTILE),)
    )
    Path(store.root, "status.json").write_text(status.model_dump_json())
    group = make_group(HOSTILE, 2)
    for trajectory in group.trajectories:
        trajectory.provenance = trajectory.provenance.model_copy(update={"engine": HOSTILE})
        trajectory.prompt = HOSTILE
    store.put_group(group, 1)
    (tmp_path / "scratch").mkdir()
    opened = open_sources([store.root], tmp_path / "scratch")
    opened[0].name = HOSTILE
    read_all(opened)
    page = TestClient(create_app(opened), base_url="http://localhost").get("/demo/").text
    assert page.count("<script") == 2
    assert "onerror=alert" not in page.replace("onerror=alert(2)&gt;", "")
    assert page.count("&lt;/script&gt;") >= 4
    opened[0].close()


def test_alarms_are_listed_with_their_words(store: RunStore, sources: list[ViewSource], client: TestClient) -> None:
    assert ">Alarms<" not in client.get("/demo/").text
    for step in (2, 3):
        raised = [{"name": "entropy", "text": f"The policy becomes deterministic. {HOSTILE}"}] if step == 2 else []
        groups = [make_group("a", step)]
        store.put_group(groups[0], step - 1)
        metrics = {"reward_mean": 0.5, "entropy": 0.1, "alarm_entropy": float(step == 2)}
        store.commit_step(step, groups, metrics, f"hash-{step}", loop={"alarms": raised})
    read_all(sources)
    page = parsed(client.get("/demo/").text)
    told = f"⚠ entropy step 2 The policy becomes deterministic. {HOSTILE}"
    assert told in page.words
    assert [kind for kind, _ in page.scripts] == ["text/javascript"] * 2
    assert page.count("title") == 2, "the page has its name, and the curve of the entropy one mark"


def test_a_followed_run_tells_its_changes(sources: list[ViewSource], store: RunStore) -> None:
    source = sources[0]
    assert isinstance(source, RunSource)
    before = source.revision
    Path(store.root, "status.json").write_text(RunStatus(phase="rollouts", updated=utc_now()).model_dump_json())
    source.refresh()
    after = source.revision
    take_step(store, 2)
    source.refresh()
    assert before < after < source.revision
    source.refresh()
    assert source.revision == source.revision


def test_a_run_is_running_silent_or_ended(client: TestClient, sources: list[ViewSource], store: RunStore) -> None:
    def told(**fields: object) -> str:
        Path(store.root, "status.json").write_text(RunStatus(steps=4, **fields).model_dump_json())  # type: ignore[arg-type]
        sources[0].refresh()
        return client.get("/demo/").text

    assert ">Running<" in told(updated=utc_now(), phase="learning")
    assert ">Silent<" in told(updated="2026-01-01T00:00:00+00:00", phase="learning")
    failed = told(updated=utc_now(), state="failed", error="no space left on the disk")
    assert ">Failed<" in failed
    assert "no space left on the disk" in failed
    Path(store.root, "status.json").write_text("half a fi")
    sources[0].refresh()
    assert ">No status<" in client.get("/demo/").text


@pytest.mark.parametrize(("host", "own"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)])
def test_only_loopback_needs_no_token(host: str, own: bool) -> None:
    assert is_loopback(host) is own


def test_a_path_without_anything_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SourceFault, match=r"nothing to show.*run\.json"):
        open_sources([str(tmp_path)], tmp_path)


def test_a_folder_of_runs_opens_each_under_a_name_of_its_own(store: RunStore, tmp_path: Path) -> None:
    for name in ("a b", "a-b", "A-b", "static"):
        RunStore.open(str(tmp_path / name), CONFIG).close()
    (tmp_path / "scratch").mkdir()
    opened = open_sources([str(tmp_path)], tmp_path / "scratch")
    assert [source.slug for source in opened] == ["A-b", "a-b-2", "a-b-3", "demo", "static-2"]
    home = TestClient(create_app(opened), base_url="http://localhost").get("/")
    assert home.text.count('class="card"') == 5
    for source in opened:
        source.close()


def test_secrets_of_an_address_are_not_shown() -> None:
    class Nothing(ViewSource):
        kind = SourceKind.JOB
        revision = 0

        def refresh(self) -> bool:
            raise StoreError(f"cannot open {self.given}")

        def __init__(self, given: str) -> None:
            super().__init__("name", given)
            self.given = given

    for given, told in (
        ("s3://AKIDEXAMPLE:very%2Fsecret@bucket/run?region=x", "bucket/run"),
        ("https://user:very-secret@host/", "host"),
        ("abfs://c@account/run?account_key=very-secret==", "account_key=***"),
    ):
        source = Nothing(given)
        source.look()
        page = render_home([source], ["/name/"], ServedLinks())
        assert told in page
        assert "secret" not in page + source.fault


def test_a_viewer_that_works_much_looks_less_often() -> None:
    assert [pause_for(spent) for spent in (0.0, 0.02, 3.0)] == [0.0, 2.0, 5.0]


def test_a_token_is_made_on_loopback_where_it_is_asked_for() -> None:
    assert token_for("127.0.0.1", asked=False) is None
    made = token_for("127.0.0.1", asked=True), token_for("0.0.0.0", asked=False)
    assert all(made) and made[0] != made[1]


def test_a_headline_has_its_note() -> None:
    head = RunHeadline("Running", "live", "", step=2, steps=4, phase="", done=0, total=0, outcomes="")
    rows = [{"reward_mean": 0.25}, {"reward_mean": 0.5, "seconds_step": 30.0}]
    found = {tile.label: (tile.value, tile.note) for tile in tiles({}, rows, head, 0.5)}
    assert found == {
        "Mean reward": ("0.500", "0.250 in step 1"),
        "Time of a step": ("30 s", "about 1 min 00 s to go"),
        "Cost": ("0.5", "in the currency of the prices"),
    }
