"""What each renderer sends, which of a service's own answers it understands, and which settings it refuses."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from played_services import PlayedService, always, picture

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.usage import metered
from genevolve_ray.remote.client import ServiceRefusal, Unusable
from genevolve_ray.renderers.gemini import CONTENT_REASONS, GeminiConfig, GeminiRenderer
from genevolve_ray.renderers.images_api import ImagesApiConfig, ImagesApiRenderer
from genevolve_ray.renderers.over_http import decoded, encoded
from genevolve_ray.renderers.qwen_service import QwenServiceConfig, QwenServiceRenderer

SEED = (1 << 62) + 12345


def qwen(**settings: Any) -> QwenServiceRenderer:
    return QwenServiceRenderer(QwenServiceConfig(**{"url": "http://h", "attempts": 1, **settings}))


def images(**settings: Any) -> ImagesApiRenderer:
    return ImagesApiRenderer(ImagesApiConfig(**{"url": "http://h/v1", "model": "m", "attempts": 1, **settings}))


def gemini(**settings: Any) -> GeminiRenderer:
    return GeminiRenderer(GeminiConfig(**{"url": "http://h", "token_env": "", "attempts": 1, **settings}))


# --- Qwen-Image-Edit service ---


async def test_qwen_service_gets_exactly_its_body(service: PlayedService) -> None:
    await qwen(url=service.url("qwen")).render("a cat é", [picture()], SEED)
    (call,) = service.calls
    (url,) = call.body.pop("image_urls")
    assert url.startswith("data:image/jpeg;base64,")
    assert call.path == "/generate"
    assert call.body == {
        "prompt": "a cat é",
        "seed": SEED,
        "true_cfg_scale": 4.0,
        "negative_prompt": " ",
        "num_inference_steps": 40,
        "guidance_scale": 1.0,
        "num_images_per_prompt": 1,
        "width": 1024,
        "height": 1024,
    }


def test_qwen_service_answers_under_either_name_or_says_why_not() -> None:
    assert qwen().find({"success": True, "image": "abc"}) == "abc"
    assert qwen().find({"success": True, "image_base64": "abc"}) == "abc"
    with pytest.raises(Unusable, match="out of memory"):
        qwen().find({"success": False, "error": "out of memory", "image": "abc"})
    with pytest.raises(Unusable, match="neither image"):
        qwen().find({"success": True, "image": 7})


@pytest.mark.parametrize(("name", "value"), [("width", 1000), ("height", 0), ("width", 8192), ("true_cfg_scale", -1)])
def test_qwen_service_sizes_and_scales_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        qwen(**{name: value})


# --- images API ---


async def test_without_references_a_picture_is_generated(service: PlayedService) -> None:
    extra = {"num_inference_steps": 8, "negative_prompt": "blur"}
    await images(url=service.url("images"), size="640x480", extra=extra).render("a cat", [], SEED)
    (call,) = service.calls
    assert call.path == "/v1/images/generations"
    asked = {"model": "m", "prompt": "a cat", "n": 1, "size": "640x480", "response_format": "b64_json", "seed": SEED}
    assert call.body == {**asked, **extra}


async def test_with_references_it_is_an_edit(service: PlayedService) -> None:
    renderer = images(url=service.url("images"), extra={"lora": "x", "guidance_scale": 1.5, "stream_it": True})
    await renderer.render("a cat é", [picture(), picture("blue")], 7)
    (call,) = service.calls
    assert call.path == "/v1/images/edits"
    asked = {"model": "m", "prompt": "a cat é", "n": "1", "size": "1024x1024", "response_format": "b64_json"}
    assert call.form == {**asked, "seed": "7", "lora": "x", "guidance_scale": "1.5", "stream_it": "true"}
    assert [name for name, _, _ in call.files] == ["image", "image"]


@pytest.mark.parametrize(
    ("image_field", "count", "name"),
    [("image", 2, "image"), ("image[]", 1, "image[]"), ("auto", 1, "image"), ("auto", 2, "image[]")],
)
async def test_references_go_under_the_name_that_the_service_knows(
    image_field: str, count: int, name: str, service: PlayedService
) -> None:
    await images(url=service.url("images"), image_field=image_field).render("a cat", [picture()] * count, 7)
    assert {sent for sent, _, _ in service.calls[0].files} == {name}


async def test_a_generator_without_edits_says_that_references_do_not_reach_it(service: PlayedService) -> None:
    renderer = images(url=service.url("images"), edits=False)
    await renderer.render("a cat", [picture()], 7)
    assert service.calls[0].path == "/v1/images/generations"
    assert not renderer.takes_references
    assert renderer.identity != images().identity


async def test_a_field_that_a_service_refuses_is_left_out(service: PlayedService) -> None:
    await images(url=service.url("images"), response_format="", seed_field="").render("a cat", [], 7)
    assert set(service.calls[0].body) == {"model", "prompt", "n", "size"}


async def test_seeds_are_cut_to_what_a_service_takes(service: PlayedService) -> None:
    await images(url=service.url("images"), seed_bits=31).render("a cat", [], SEED)
    assert service.calls[0].body["seed"] == SEED % (1 << 31)


async def test_images_api_tokens_are_counted(service: PlayedService) -> None:
    with metered() as meter:
        await images(url=service.url("images")).render("a cat", [], 7)
    used = meter.by_service["renderer"]
    assert (used.prompt_tokens, used.completion_tokens) == (5, 9)


async def test_an_address_as_answer_is_not_fetched_unless_allowed(service: PlayedService) -> None:
    service.script = always("url")
    with pytest.raises(InfraFailure, match="contains an image URL"):
        await images(url=service.url("images")).render("a cat", [], 7)
    assert [call.path for call in service.calls] == ["/v1/images/generations"]


@pytest.mark.parametrize("answer", ["/files/made.png", "{origin}/files/made.png?sig=a%20b"])
async def test_an_allowed_address_on_the_same_server_is_fetched(answer: str, service: PlayedService) -> None:
    service.script, service.url_answer = always("url"), answer.format(origin=service.origin)
    with metered() as meter:
        data = await images(url=service.url("images"), allow_url_answers=True).render("a cat", [], 7)
    assert data.startswith(b"\x89PNG")
    assert service.calls[-1].path == "/files/made.png"
    assert meter.by_service["renderer"].images == 1


@pytest.mark.parametrize(
    "answer",
    [
        "http://127.0.0.1:9/x.png",
        "http://localhost/x.png",
        "//example.org/x.png",
        "file:///etc/passwd",
        "http://user:pw@{host}/x.png",
        "http://[",
    ],
)
async def test_an_address_elsewhere_is_never_fetched(answer: str, service: PlayedService) -> None:
    host = service.origin.removeprefix("http://")
    service.script, service.url_answer = always("url"), answer.format(host=host)
    with pytest.raises(InfraFailure, match="another host"):
        await images(url=service.url("images"), allow_url_answers=True).render("a cat", [], 7)
    assert len(service.calls) == 1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"size": "big"}, "size"),
        ({"size": "0x10"}, "size"),
        ({"extra": {"prompt": "mine"}}, "prompt"),
        ({"extra": {"n": 4}}, "n:"),
        ({"model": ""}, "model"),
        ({"image_field": "images"}, "image_field"),
    ],
)
def test_images_api_settings_are_checked(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        images(**settings)


# --- Gemini ---


async def test_gemini_gets_parts_and_its_key(service: PlayedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "hush-hush")
    renderer = gemini(
        url=service.url("gemini"),
        token_env="MY_KEY",
        model="gemini-9-image",
        aspect_ratio="16:9",
        image_size="1K",
        safety={"HARM_CATEGORY_HARASSMENT": "BLOCK_ONLY_HIGH"},
    )
    with metered() as meter:
        await renderer.render("a cat", [picture()], SEED)
    (call,) = service.calls
    assert call.path == "/v1beta/models/gemini-9-image:generateContent"
    assert call.headers["x-goog-api-key"] == "hush-hush" and "authorization" not in call.headers
    text, inline = call.body["contents"][0]["parts"]
    assert text == {"text": "a cat"} and inline["inline_data"]["mime_type"] == "image/png"
    assert call.body["generationConfig"] == {
        "responseModalities": ["IMAGE"],
        "imageConfig": {"aspectRatio": "16:9", "imageSize": "1K"},
        "seed": SEED % (1 << 31),
    }
    assert call.body["safetySettings"] == [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_ONLY_HIGH"}]
    used = meter.by_service["renderer"]
    assert (used.prompt_tokens, used.completion_tokens, used.images) == (7, 1290, 1)
    assert "hush" not in renderer.identity


def candidate(*parts: dict[str, Any], reason: str = "STOP") -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": list(parts)}, "finishReason": reason}]}


def test_gemini_pictures_are_found_under_either_name_and_thoughts_passed_over() -> None:
    assert gemini().find(candidate({"text": "so"}, {"inlineData": {"data": "abc"}})) == "abc"
    assert gemini().find(candidate({"inline_data": {"data": "abc"}})) == "abc"
    thought = {"thought": True, "inlineData": {"data": "draft"}}
    assert gemini().find(candidate(thought, {"inlineData": {"data": "abc"}})) == "abc"
    with pytest.raises(Unusable, match="STOP"):
        gemini().find(candidate(thought))


@pytest.mark.parametrize("reason", sorted(CONTENT_REASONS))
def test_gemini_content_that_is_not_made_is_a_refusal(reason: str) -> None:
    answer = candidate({"text": "no"}, reason=reason)
    answer["candidates"][0]["finishMessage"] = "try another prompt"
    with pytest.raises(ServiceRefusal, match="try another prompt") as caught:
        gemini().find(answer)
    assert (caught.value.reason, caught.value.status) == (reason, 200)


@pytest.mark.parametrize("reason", ["STOP", "NO_IMAGE", "MAX_TOKENS", "OTHER"])
def test_gemini_answers_that_just_lack_a_picture_may_pass(reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        gemini().find(candidate({"text": "hm"}, reason=reason))


@pytest.mark.parametrize(
    "settings",
    [{"aspect_ratio": "wide"}, {"image_size": "9000"}, {"model": "../x"}, {"response_modalities": ["VIDEO"]}],
)
def test_gemini_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        gemini(**settings)


# --- what they share ---


def test_a_refusal_crosses_processes_with_its_reason() -> None:
    copy = pickle.loads(pickle.dumps(ServiceRefusal("no", 400, "content_policy_violation")))
    assert (str(copy), copy.status, copy.reason) == ("no", 400, "content_policy_violation")


@given(st.binary(max_size=300))
def test_base64_returns_what_went_in(data: bytes) -> None:
    assert decoded(encoded(data), 300) == decoded(f"data:image/png;base64,{encoded(data)}", 300) == data


@given(st.text(max_size=200))
def test_base64_is_strict(text: str) -> None:
    try:
        data = decoded(text, 100)
    except Unusable:
        return
    assert encoded(data) == text.partition(",")[2] if text.startswith("data:") else encoded(data) == text


def test_base64_is_bounded_before_it_is_decoded() -> None:
    assert len(decoded(encoded(bytes(100)), 100)) == 100
    with pytest.raises(Unusable, match="longer than 100 bytes"):
        decoded(encoded(bytes(103)), 100)
