"""Each renderer against a real server that plays its service well and badly: the right outcome for each mode."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image
from played_services import NOT_PICTURES, OWN_FAULTS, PlayedService, always, dead_origin, in_turn, picture

from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.usage import metered
from genevolve_ray.remote.client import ServiceRefusal
from genevolve_ray.renderers.gemini import GeminiRenderer
from genevolve_ray.renderers.images_api import ImagesApiRenderer
from genevolve_ray.renderers.over_http import HttpRenderer
from genevolve_ray.renderers.qwen_service import QwenServiceRenderer

SERVICES = ("qwen", "images", "gemini")
QUICK = {"attempts": 3, "backoff_s": 0, "timeout_s": 20, "max_answer_bytes": 1 << 20}
OWN = {"qwen": {}, "images": {"model": "m"}, "gemini": {"token_env": ""}}
CLASSES: dict[str, type[Any]] = {"qwen": QwenServiceRenderer, "images": ImagesApiRenderer, "gemini": GeminiRenderer}
ON_THE_WIRE = (
    "500",
    "limited",
    "malformed",
    "page",
    "list",
    "empty object",
    "zipped",
    "huge, declared",
    "huge, streamed",
    "bad base64",
)
FAULTS = [
    (name, mode) for name in SERVICES for mode in (*ON_THE_WIRE, *NOT_PICTURES, *OWN_FAULTS[name])
]  # fmt: skip


def renderer(name: str, url: str | tuple[str, ...], **settings: Any) -> HttpRenderer:
    kind = CLASSES[name]
    return kind(kind.Config(url=url, **{**QUICK, **OWN[name], **settings}))


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("name", SERVICES)
async def test_a_picture_comes_back_as_our_own_png_and_is_counted(name: str, service: PlayedService) -> None:
    service.made = picture("blue", format="JPEG") + b"PK\x03\x04 something behind it"
    with metered() as meter:
        data = await renderer(name, service.url(name), price={"per_image": 0.25}).render("a cat", [picture()], 7)
    image = opened(data)
    assert (image.format, image.size) == ("PNG", (64, 48))
    assert image.getpixel((1, 1))[2] > 240 and b"PK\x03\x04" not in data
    used = meter.by_service["renderer"]
    assert (used.calls, used.failed_calls, used.images, used.money) == (1, 0, 1, 0.25)


@pytest.mark.parametrize(("name", "mode"), FAULTS)
async def test_a_fault_that_passes_is_tried_again(name: str, mode: str, service: PlayedService) -> None:
    service.script = in_turn(mode, "good")
    with metered() as meter:
        await renderer(name, service.url(name)).render("a cat", [], 7)
    used = meter.by_service["renderer"]
    assert (used.calls, used.failed_calls, used.images) == (2, 1, 1)


@pytest.mark.parametrize(("name", "mode"), FAULTS)
async def test_a_fault_that_stays_is_an_infra_failure(name: str, mode: str, service: PlayedService) -> None:
    service.script = always(mode)
    with metered() as meter, pytest.raises(InfraFailure, match="gave up after 3 tries") as caught:
        await renderer(name, service.url(name)).render("a cat", [], 7)
    assert not isinstance(caught.value, ServiceRefusal)
    assert len(service.calls) == 3
    assert meter.by_service["renderer"].images == 0


@pytest.mark.parametrize("name", SERVICES)
async def test_nobody_there_is_an_infra_failure(name: str) -> None:
    with pytest.raises(InfraFailure, match="gave up after 3 tries"):
        await renderer(name, dead_origin()).render("a cat", [], 7)


@pytest.mark.parametrize("name", SERVICES)
async def test_a_silent_service_is_given_up(name: str, service: PlayedService) -> None:
    service.script = in_turn("hang", "good")
    await renderer(name, service.url(name), timeout_s=0.3).render("a cat", [], 7)
    assert len(service.calls) == 2


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize(("mode", "status"), [("forbidden", 401), ("redirect", 302)])
async def test_a_refused_request_is_not_tried_again(name: str, mode: str, status: int, service: PlayedService) -> None:
    service.script = always(mode)
    with pytest.raises(ServiceRefusal) as caught:
        await renderer(name, service.url(name)).render("a cat", [], 7)
    assert (caught.value.status, len(service.calls)) == (status, 1)


REASONS = {"qwen": "unsafe_prompt", "images": "content_policy_violation", "gemini": "PROHIBITED_CONTENT"}


@pytest.mark.parametrize("name", SERVICES)
async def test_refused_content_is_a_refusal_with_its_reason(name: str, service: PlayedService) -> None:
    service.script = always("refused")
    with pytest.raises(ServiceRefusal) as caught:
        await renderer(name, service.url(name)).render("a cat", [], 7)
    assert (caught.value.reason, len(service.calls)) == (REASONS[name], 1)


@pytest.mark.parametrize("name", SERVICES)
async def test_a_data_url_is_taken_as_well(name: str, service: PlayedService) -> None:
    service.script = always("data URL")
    assert opened(await renderer(name, service.url(name)).render("a cat", [], 7)).size == (64, 48)


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize(
    ("made", "why"), [(picture(size=(8, 64)), "at least 16"), (picture(size=(2100, 2100)), "allowed 4000000")]
)
async def test_a_picture_out_of_bounds_is_refused(name: str, made: bytes, why: str, service: PlayedService) -> None:
    service.made = made
    bounded = renderer(name, service.url(name), picture={"min_side": 16, "max_pixels": 4_000_000})
    with pytest.raises(InfraFailure, match=why):
        await bounded.render("a cat", [], 7)


@pytest.mark.parametrize("name", SERVICES)
async def test_a_reference_that_is_no_picture_is_named_and_nothing_sent(name: str, service: PlayedService) -> None:
    with pytest.raises(InfraFailure, match="reference 2 of 2"):
        await renderer(name, service.url(name)).render("a cat", [picture(), b"<svg/>"], 7)
    assert service.calls == []


@pytest.mark.parametrize("name", SERVICES)
async def test_large_references_are_scaled_down(name: str, service: PlayedService) -> None:
    await renderer(name, service.url(name), reference_side=100).render("a cat", [picture(size=(400, 200))], 7)
    assert [image.size for _, image in sent(name, service)] == [(100, 50)]


@pytest.mark.parametrize("name", SERVICES)
async def test_references_keep_their_order(name: str, service: PlayedService) -> None:
    colours = ("red", "green", "blue")
    await renderer(name, service.url(name)).render("a cat", [picture(c) for c in colours], 7)
    strongest = [max(range(3), key=lambda channel: image.getpixel((5, 5))[channel]) for _, image in sent(name, service)]
    assert strongest == [0, 1, 2]


def sent(name: str, service: PlayedService) -> list[tuple[str, Image.Image]]:
    """The references of the first call, with the type they claim."""
    call = service.calls[0]
    if name == "images":
        return [(kind, opened(data)) for _, kind, data in call.files]
    if name == "qwen":
        split = [url.split(";base64,") for url in call.body["image_urls"]]
        return [(head.removeprefix("data:"), opened(base64.b64decode(text))) for head, text in split]
    inline = [part["inline_data"] for part in call.body["contents"][0]["parts"] if "inline_data" in part]
    return [(part["mime_type"], opened(base64.b64decode(part["data"]))) for part in inline]


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("references", [[], [picture()]])
async def test_half_a_surrogate_pair_in_a_prompt_breaks_nothing(
    name: str, references: list[bytes], service: PlayedService
) -> None:
    assert await renderer(name, service.url(name)).render("a cat \ud83d", references, 7)


@pytest.mark.parametrize(("name", "format"), [("qwen", "JPEG"), ("images", "PNG"), ("gemini", "PNG")])
async def test_references_are_what_they_claim(name: str, format: str, service: PlayedService) -> None:
    await renderer(name, service.url(name)).render("a cat", [picture(format="WEBP")], 7)
    ((kind, image),) = sent(name, service)
    assert (kind, image.format) == (f"image/{format.lower()}", format)


@pytest.mark.parametrize("name", SERVICES)
def test_equal_servers_have_one_identity_and_settings_that_show_have_another(name: str) -> None:
    one = renderer(name, "http://one:8000", attempts=2, price={"per_call": 1}, rate_per_s=3)
    other = renderer(name, ("http://two:8000", "http://three:8000"))
    assert one.identity == other.identity
    assert "one" not in one.identity and one.config.model in one.identity
    assert renderer(name, "http://one:8000", model="another").identity != one.identity
    assert renderer(name, "http://one:8000", reference_side=512).identity != one.identity
    assert one.takes_references


def test_the_answer_cannot_be_configured_to_be_no_png() -> None:
    with pytest.raises(ValueError, match=r"picture\.output must be PNG.*'JPEG'"):
        renderer("qwen", "http://h", picture={"output": "JPEG"})
