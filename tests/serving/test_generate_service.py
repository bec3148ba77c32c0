"""A renderer behind `/generate`: our own client, errors in the form of the contract, and limits."""

from __future__ import annotations

import asyncio
import base64

import httpx
import pytest
from served import Painter, data_url, png, serving

from genevolve_ray.atlas.renderer import AtlasRenderer
from genevolve_ray.errors import InfraFailure
from genevolve_ray.gateway.auth import Scope, TokenFile
from genevolve_ray.remote.client import ServiceRefusal
from genevolve_ray.renderers.diffusers_config import DiffusersConfig
from genevolve_ray.renderers.qwen_service import QwenServiceConfig, QwenServiceRenderer
from genevolve_ray.serving.access import Access
from genevolve_ray.serving.door import DoorLimits
from genevolve_ray.serving.generate import RenderDoor

OPEN = Access()


def client_of(url: str, **settings: object) -> QwenServiceRenderer:
    values = {"url": url, "attempts": 1, "health_path": "health", "health_s": 0, **settings}
    return QwenServiceRenderer(QwenServiceConfig.model_validate(values))


async def test_our_client_receives_the_picture_that_the_renderer_draws_itself() -> None:
    renderer = AtlasRenderer()
    async with serving(RenderDoor(renderer, OPEN, DoorLimits())) as url:
        client = client_of(url)
        drawn = await client.render("two red circles", [png()], seed=11)
        await client.aclose()
    from genevolve_ray.records.pictures import clean_picture

    assert drawn == clean_picture(await renderer.render("two red circles", [png()], seed=11)).data


async def test_settings_of_the_server_that_differ_are_reported_and_our_client_refuses_them() -> None:
    painter = Painter()
    painter.config = DiffusersConfig(model="org/model", steps=8, width=64, height=64)  # type: ignore[attr-defined]
    door = RenderDoor(painter, OPEN, DoorLimits())
    assert door.describe() == {"model": "painter/1", "num_inference_steps": 8, "width": 64, "height": 64}
    async with serving(door) as url, httpx.AsyncClient(base_url=url) as http:
        body = {"prompt": "x", "num_inference_steps": 40, "width": 64, "true_cfg_scale": 4.0}
        answer = (await http.post("/generate", json=body)).json()
        assert answer["success"] is True
        assert (answer["different"], answer["ignored"]) == ({"num_inference_steps": 8}, ["true_cfg_scale"])
        client = client_of(url)
        with pytest.raises(ServiceRefusal, match="draws with num_inference_steps=8, width=64, height=64"):
            await client.render("x", [], 1)
        await client.aclose()
        client = client_of(url, num_inference_steps=8, width=256, height=256)
        with pytest.raises(ServiceRefusal, match="draws with width=64, height=64"):
            await client.render("x", [], 1)
        await client.aclose()


async def test_a_published_request_is_answered_and_fields_that_have_no_effect_are_named() -> None:
    painter = Painter()
    body = {
        "image_urls": [data_url(png())],
        "prompt": "a kite",
        "seed": None,
        "true_cfg_scale": 4.0,
        "num_images_per_prompt": 1,
        "num_inference_steps": 40,
    }
    async with serving(RenderDoor(painter, OPEN, DoorLimits())) as url, httpx.AsyncClient(base_url=url) as http:
        answer = (await http.post("/generate", json=body)).json()
        health = (await http.get("/health")).json()
    assert answer["success"] is True
    assert base64.b64decode(answer["image"]).startswith(b"\x89PNG")
    assert answer["ignored"] == ["num_inference_steps", "true_cfg_scale"]
    assert painter.calls == [("a kite", 1, 0)]
    assert health == {"status": "healthy", "working": 0, "waiting": 0}


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"{", 400, "not JSON"),
        (b"[1]", 400, "not an object"),
        (b'{"image_urls": []}', 422, "prompt"),
        (b'{"prompt": "x", "image_urls": "y"}', 422, "image_urls"),
        (b'{"prompt": "x", "seed": 1.5}', 422, "seed"),
        (b'{"prompt": "x", "image_urls": ["http://127.0.0.1/a.png"]}', 400, "data URL"),
        (b'{"prompt": "x", "image_urls": ["data:image/png;base64,AAAA"]}', 400, "image_urls[0]"),
        (b'{"prompt": "x", "image_urls": ["data:image/png;base64,???"]}', 400, "not base64"),
        (b'{"prompt": "x", "image_urls": ["data:image/svg+xml,<svg/>"]}', 400, "base64"),
        (b" " * 3000, 413, "2097"),
    ],
)
async def test_an_unusable_request_has_a_status_and_the_fields_of_the_contract(
    body: bytes, status: int, named: str
) -> None:
    limits = DoorLimits(body_mib=0.002)
    async with serving(RenderDoor(Painter(), OPEN, limits)) as url, httpx.AsyncClient(base_url=url) as http:
        answer = await http.post("/generate", content=body)
    assert answer.status_code == status
    assert answer.json()["success"] is False
    assert named in answer.json()["message"] == answer.json()["detail"]


async def test_a_failed_picture_has_status_200_and_a_refused_one_is_final() -> None:
    painter = Painter()
    async with serving(RenderDoor(painter, OPEN, DoorLimits())) as url:
        client = client_of(url)
        painter.error = InfraFailure("the device failed")
        with pytest.raises(InfraFailure, match="success is false: the device failed"):
            await client.render("x", [], 1)
        painter.error = ServiceRefusal("content policy", 400, "refused")
        with pytest.raises(ServiceRefusal, match="content policy"):
            await client.render("x", [], 1)
        painter.error = RuntimeError("a secret place")
        with pytest.raises(InfraFailure, match="the server failed: RuntimeError"):
            await client.render("x", [], 1)
        await client.aclose()


async def test_calls_beyond_the_queue_are_refused_while_health_is_answered() -> None:
    painter = Painter()
    painter.gate.clear()
    door = RenderDoor(painter, OPEN, DoorLimits(concurrent=1, queue=0))
    async with serving(door) as url, httpx.AsyncClient(base_url=url) as http:
        first = asyncio.create_task(http.post("/generate", json={"prompt": "one"}))
        await painter.entered.wait()
        second = await http.post("/generate", json={"prompt": "two"})
        assert (second.status_code, second.json()["code"]) == (503, "overloaded")
        assert second.headers["retry-after"]
        assert (await http.get("/health")).json() == {"status": "healthy", "working": 1, "waiting": 0}
        painter.gate.set()
        assert (await first).json()["success"] is True
    assert [prompt for prompt, _, _ in painter.calls] == ["one"]


async def test_a_caller_that_leaves_ends_its_call() -> None:
    painter = Painter()
    painter.gate.clear()
    async with serving(RenderDoor(painter, OPEN, DoorLimits())) as url:
        async with httpx.AsyncClient(base_url=url) as http:
            call = asyncio.create_task(http.post("/generate", json={"prompt": "one"}))
            await painter.entered.wait()
            call.cancel()
        await asyncio.wait_for(painter.left.wait(), 10)


async def test_a_call_that_takes_too_long_has_status_504() -> None:
    painter = Painter()
    painter.gate.clear()
    door = RenderDoor(painter, OPEN, DoorLimits(seconds=0.05))
    async with serving(door) as url, httpx.AsyncClient(base_url=url) as http:
        answer = await http.post("/generate", json={"prompt": "one"})
    assert (answer.status_code, answer.json()["code"]) == (504, "timeout")


async def test_a_token_is_checked_before_the_body_is_read(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = TokenFile(tmp_path_factory.mktemp("tokens") / "tokens.json")
    token = file.new("lab", [Scope.SERVE])
    door = RenderDoor(Painter(), Access(entries=file.entries()), DoorLimits())
    async with serving(door) as url, httpx.AsyncClient(base_url=url) as http:
        missing = await http.post("/generate", content=b"not even JSON")
        wrong = await http.post("/generate", json={"prompt": "x"}, headers={"Authorization": "Bearer gvr_wrong"})
        assert (missing.status_code, missing.json()["code"]) == (401, "no_token")
        assert (wrong.status_code, wrong.json()["code"]) == (401, "bad_token")
        assert (await http.get("/health")).status_code == 200
        monkeypatch.setenv("SERVED_TOKEN", token)
        client = client_of(url, token_env="SERVED_TOKEN")
        assert (await client.render("x", [], 1)).startswith(b"\x89PNG")
        await client.aclose()


async def test_a_component_that_cannot_answer_is_unhealthy() -> None:
    painter = Painter()
    painter.check_health = lambda: (_ for _ in ()).throw(RuntimeError("the device is lost"))  # type: ignore[attr-defined]
    async with serving(RenderDoor(painter, OPEN, DoorLimits())) as url, httpx.AsyncClient(base_url=url) as http:
        answer = await http.get("/health")
        unknown = await http.get("/generate")
    assert (answer.status_code, answer.json()["reason"]) == (503, "the device is lost")
    assert (unknown.status_code, unknown.json()["code"]) == (405, "method_not_allowed")
