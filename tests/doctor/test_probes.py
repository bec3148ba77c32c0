"""--deep: services on the loopback are asked once, and money is spent only when told to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from doctor_services import AskedServer, dead_url

from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.machine import Check, Status
from genevolve_ray.doctor.run import examine

Filled = Callable[..., RunConfig]
PAID = {"POST /v1/chat/completions", "POST /search", "POST /v1/embeddings"}


def answers(config: RunConfig, tmp_path: Path, *, spend: bool = False) -> dict[str, Check]:
    """Findings of the services by the key of their settings."""
    checks = examine(config, tmp_path / "run", deep=True, spend=spend)
    return {check.detail.split(",")[0]: check for check in checks if check.name == "answers"}


def test_free_questions_come_first_and_alone(filled: Filled, server: AskedServer, tmp_path: Path) -> None:
    found = answers(filled(), tmp_path)
    assert {key: check.status for key, check in found.items()} == {
        "tools.config.serper": Status.NOTE,
        "renderer.config": Status.NOTE,
        "judge.config.kscore": Status.OK,
        "summariser.config": Status.OK,
    }
    assert "one query, which may cost money" in found["tools.config.serper"].remedy
    assert not server.asked() & PAID


def test_spending_asks_each_service_for_a_little_of_its_work(
    filled: Filled, server: AskedServer, tmp_path: Path
) -> None:
    config = filled("summariser.config.model=reader")
    found = answers(config, tmp_path, spend=True)
    assert {check.status for key, check in found.items() if key != "renderer.config"} == {Status.OK}
    assert server.body("POST /search") == {"q": "lighthouse", "num": 10}
    bodies = [body for call, _, body in server.calls if call == "POST /v1/chat/completions"]
    assert {(body["model"], body["max_tokens"], body["temperature"]) for body in bodies} == {
        ("seer", 1, 0),
        ("reader", 1, 0),
    }


def test_the_token_goes_where_it_should(filled: Filled, server: AskedServer, tmp_path: Path) -> None:
    answers(filled(), tmp_path, spend=True)
    sent = {call: headers for call, headers, _ in server.calls}
    assert sent["POST /search"]["X-API-KEY"] == "never-to-be-shown"
    assert sent["GET /v1/models"]["Authorization"] == "Bearer never-to-be-shown"


def test_an_embedding_endpoint_is_asked_too(filled: Filled, server: AskedServer, tmp_path: Path) -> None:
    embedder = f"experience.embedder={{kind: endpoint, endpoint: {{url: {server.url}/v1, model: seer}}}}"
    found = answers(filled(embedder), tmp_path, spend=True)
    assert found["experience.embedder.endpoint"].status is Status.OK
    assert server.body("POST /v1/embeddings") == {"model": "seer", "input": ["yes"]}


def searching(tools: str) -> RunConfig:
    return load_config("atlas", [f"tools={tools}", "profile.min_image_searches=0"])


PROBE = "search?q=lighthouse&format=json&categories=general"


def test_an_instance_of_searxng_is_asked_a_query_which_is_free(server: AskedServer, tmp_path: Path) -> None:
    config = searching(f"{{type: searxng, config: {{searxng: {{url: '{server.url}'}}}}}}")
    server.answers[f"GET /{PROBE}"] = (200, {"results": []})
    check = answers(config, tmp_path)["tools.config.searxng"]
    assert (check.status, f"answers at {PROBE}" in check.detail) == (Status.OK, True)
    server.answers[f"GET /{PROBE}"] = (403, {"error": "Forbidden"})
    check = answers(config, tmp_path)["tools.config.searxng"]
    assert (check.status, check.remedy) == (
        Status.PROBLEM,
        "list json under search.formats in the instance's settings.yml",
    )


def test_a_password_is_sent_to_an_instance_as_the_run_sends_it(
    server: AskedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCH_LOGIN", "me:a long password")
    instance = f"{{url: '{server.url}', token_env: SEARCH_LOGIN, basic_auth: true}}"
    answers(searching(f"{{type: searxng, config: {{searxng: {instance}}}}}"), tmp_path)
    sent = {call: headers for call, headers, _ in server.calls}
    assert sent[f"GET /{PROBE}"]["Authorization"] == "Basic bWU6YSBsb25nIHBhc3N3b3Jk"


def test_brave_is_asked_a_query_only_when_told_to(
    server: AskedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAVE_API_KEY", "never-to-be-shown")
    config = searching(f"{{type: brave, config: {{brave: {{url: '{server.url}'}}}}}}")
    found = answers(config, tmp_path)["tools.config.brave"]
    assert (found.status, "one query, which may cost money" in found.remedy) == (Status.NOTE, True)
    paid = "GET /res/v1/web/search?q=lighthouse&count=10&safesearch=moderate&result_filter=web&text_decorations=false"
    assert paid not in server.asked()
    server.answers[paid] = (200, {"type": "search"})
    assert answers(config, tmp_path, spend=True)["tools.config.brave"].status is Status.OK


def test_the_doctor_asks_the_embedder_of_a_folder_and_embeds_nothing(server: AskedServer, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("a heron")
    embedder = f"{{kind: endpoint, endpoint: {{url: '{server.url}/v1', model: seer}}}}"
    config = searching(f"{{type: folder, config: {{folder: '{tmp_path / 'corpus'}', embedder: {embedder}}}}}")
    assert answers(config, tmp_path)["tools.config.embedder.endpoint"].status is Status.OK
    assert server.asked() == {"GET /v1/models"}


def test_a_model_that_is_not_served_is_said(filled: Filled, tmp_path: Path) -> None:
    check = answers(filled("judge.config.kscore.model=sear"), tmp_path)["judge.config.kscore"]
    assert check.status is Status.PROBLEM
    assert "models/seer, models/reader, not sear" in check.detail


def test_a_model_that_is_still_blank_gets_a_list_to_choose_from(filled: Filled, tmp_path: Path) -> None:
    check = answers(filled("judge.config.kscore.model=FILL_IN"), tmp_path, spend=True)["judge.config.kscore"]
    assert (check.status, "lists models/seer, models/reader" in check.detail) == (Status.OK, True)


def test_a_token_that_is_refused_is_said(filled: Filled, server: AskedServer, tmp_path: Path) -> None:
    server.answers["GET /v1/models"] = (401, {"error": {"message": "bad key never-to-be-shown"}})
    check = answers(filled(), tmp_path)["judge.config.kscore"]
    assert check.status is Status.PROBLEM
    assert check.remedy == "correct the value of GEMINI_API_KEY"
    assert "never-to-be-shown" not in check.detail


def test_a_service_whose_token_is_missing_is_not_asked(
    filled: Filled, server: AskedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = filled()
    monkeypatch.delenv("GEMINI_API_KEY")
    assert "judge.config.kscore" not in answers(config, tmp_path)
    assert "GET /v1/models" not in server.asked()


def test_an_endpoint_without_a_list_of_models_takes_money_to_know(
    filled: Filled, server: AskedServer, tmp_path: Path
) -> None:
    del server.answers["GET /v1/models"]
    check = answers(filled(), tmp_path)["judge.config.kscore"]
    assert (check.status, "--spend" in check.remedy) == (Status.NOTE, True)
    assert answers(filled(), tmp_path, spend=True)["judge.config.kscore"].status is Status.OK


@pytest.mark.parametrize("status", [400, 500, 503])
def test_a_service_that_is_ill_is_asked_once(filled: Filled, server: AskedServer, tmp_path: Path, status: int) -> None:
    server.answers["GET /v1/models"] = (status, {"error": "out of order"})
    check = answers(filled("experience.enabled=false", "learner.ved.coefficient=0"), tmp_path)["judge.config.kscore"]
    assert (check.status, "out of order" in check.detail) == (Status.PROBLEM, True)
    assert [call for call, _, _ in server.calls].count("GET /v1/models") == 1


def test_every_server_of_a_renderer_is_asked(filled: Filled, server: AskedServer, tmp_path: Path) -> None:
    config = filled(f"renderer.config.url=[{server.url}, {dead_url()}]")
    checks = examine(config, tmp_path / "run", deep=True)
    found = [check.status for check in checks if check.detail.startswith("renderer.config, http")]
    assert found == [Status.NOTE, Status.PROBLEM]


def test_a_health_path_tells_whether_a_renderer_is_well(filled: Filled, server: AskedServer, tmp_path: Path) -> None:
    config = filled("renderer.config.health_path=health")
    assert answers(config, tmp_path)["renderer.config"].status is Status.PROBLEM
    server.answers["GET /health"] = (200, {})
    assert answers(config, tmp_path)["renderer.config"].status is Status.OK


def test_gemini_is_asked_for_its_model(server: AskedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "x")
    server.answers["GET /v1beta/models/painter"] = (200, {"name": "models/painter"})
    kind = "genevolve_ray.renderers.gemini:GeminiRenderer"
    config = load_config("atlas", [f"renderer={{type: '{kind}', config: {{url: '{server.url}', model: painter}}}}"])
    assert answers(config, tmp_path)["renderer.config"].status is Status.OK


def test_words_of_a_service_reach_the_terminal_harmless(filled: Filled, server: AskedServer, tmp_path: Path) -> None:
    server.answers["GET /v1/models"] = (200, {"data": [{"id": "a\x1b[2Jb"}]})
    assert "\x1b" not in answers(filled(), tmp_path)["judge.config.kscore"].detail


def test_a_cluster_is_asked_only_when_told_to(filled: Filled, tmp_path: Path) -> None:
    checks = examine(filled("cluster.address=ray://nowhere.invalid:1"), tmp_path)
    [check] = [check for check in checks if check.name == "placement"]
    assert (check.status, "was not checked" in check.detail) == (Status.NOTE, True)
