"""Fetching over real connections: what arrives, what is asked, which failures pass and which do not."""

from __future__ import annotations

import asyncio
import datetime
import io
import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from web_world import World, picture, serving_world, zipped

from genevolve_ray.records.usage import metered
from genevolve_ray.tools.addresses import FetchRefused
from genevolve_ray.tools.fetch import FetchConfig, Fetcher, FetchFailed


def resolving(*answers: Sequence[str]):
    """Return a resolver that gives these answers in turn (the last one stays), and the list of names it was asked."""
    asked: list[str] = []

    async def resolver(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    return resolver, asked


async def test_a_picture_arrives_as_pixels(world: World) -> None:
    found = await world.fetcher().fetch(world.link("good"))
    with Image.open(io.BytesIO(found.data)) as image:
        assert (image.format, image.size) == ("JPEG", (40, 30))
        assert image.getpixel((5, 5))[0] > 240
    assert (found.width, found.height, found.media_type) == (40, 30, "image/jpeg")


async def test_content_decides_not_the_header(world: World) -> None:
    world.bodies["text"] = (b"<html>hello</html>", {"Content-Type": "image/png"})
    assert (await world.fetcher().fetch(world.link("jpeg"))).width == 40
    with pytest.raises(FetchRefused, match="not a PNG"):
        await world.fetcher().fetch(world.link("text"))


async def test_large_pictures_are_scaled_down(world: World) -> None:
    world.bodies["big"] = (picture(size=(3000, 1500)), {})
    found = await world.fetcher().fetch(world.link("big"))
    assert (found.width, found.height) == (1536, 768)


async def test_the_request_tells_nothing_of_us(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    world.redirects["there"] = world.link("good")
    await world.fetcher().fetch(world.link("there"))
    assert world.calls["good"] == 1
    assert {name for headers in world.headers for name in headers} == {
        "host",
        "user-agent",
        "accept",
        "accept-encoding",
        "connection",
    }


async def test_packed_pictures_are_unpacked(world: World) -> None:
    world.bodies["zip"] = (zipped(picture()), {"Content-Encoding": "gzip"})
    assert (await world.fetcher().fetch(world.link("zip"))).width == 40


async def test_redirects_are_followed_up_to_a_limit(world: World) -> None:
    world.redirects |= {"a": "/p/b", "b": world.link("c"), "c": "good", "loop": "loop"}
    assert (await world.fetcher().fetch(world.link("a"))).width == 40
    with pytest.raises(FetchRefused, match="more than 2 redirects"):
        await world.fetcher(max_redirects=2).fetch(world.link("a"))
    with pytest.raises(FetchRefused, match="more than 3 redirects"):
        await world.fetcher().fetch(world.link("loop"))
    assert world.calls["loop"] == 4


async def test_the_name_is_resolved_by_us_and_kept_as_host(world: World) -> None:
    resolver, asked = resolving(["127.0.0.1"])
    await Fetcher(world.limits(), resolver=resolver).fetch(f"http://pictures.test:{world.port}/p/good")
    assert asked == ["pictures.test"]
    assert world.headers[0]["host"] == f"pictures.test:{world.port}"


async def test_a_name_is_resolved_once_for_a_connection(world: World) -> None:
    resolver, asked = resolving(["127.0.0.1"], ["127.0.0.2"])
    fetcher = Fetcher(world.limits(), resolver=resolver)
    await fetcher.fetch(f"http://rebind.test:{world.port}/p/good")
    with pytest.raises(FetchRefused, match=r"127\.0\.0\.2 is not on the public internet"):
        await fetcher.fetch(f"http://rebind.test:{world.port}/p/good")
    assert (len(asked), world.calls["good"]) == (2, 1)


async def test_the_next_address_is_tried_where_one_does_not_answer(world: World) -> None:
    resolver, _ = resolving(["127.0.0.3", "127.0.0.1"])
    fetcher = Fetcher(world.limits(allow=("127.0.0.0/8",)), resolver=resolver)
    assert (await fetcher.fetch(f"http://two.test:{world.port}/p/good")).width == 40


@pytest.mark.parametrize("mode", ["dead", "limited", "silent", "drip", "cut"])
async def test_a_host_that_does_not_deliver_is_a_failure_that_may_pass(world: World, mode: str) -> None:
    with pytest.raises(FetchFailed):
        await world.fetcher(total_s=0.5).fetch(world.link(mode))


async def test_a_flapping_host_delivers_the_second_time(world: World) -> None:
    fetcher = world.fetcher()
    with pytest.raises(FetchFailed, match="503"):
        await fetcher.fetch(world.link("flapping"))
    assert (await fetcher.fetch(world.link("flapping"))).width == 40


async def test_a_missing_picture_is_refused_for_good(world: World) -> None:
    with pytest.raises(FetchRefused, match="status 404"):
        await world.fetcher().fetch(world.link("nowhere"))


async def test_a_closed_port_and_an_unknown_name_are_failures_that_may_pass(world: World) -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError("name or service not known")

    with pytest.raises(FetchFailed, match="ConnectError"):
        await world.fetcher(ports=(1,)).fetch("http://127.0.0.1:1/")
    with pytest.raises(FetchFailed, match="not known"):
        await Fetcher(FetchConfig(), resolver=unknown).fetch("http://nowhere.example/")


async def test_a_slow_name_server_is_not_waited_for() -> None:
    async def slow(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(FetchFailed, match=r"within 0\.05 s"):
        await Fetcher(FetchConfig(connect_s=0.05), resolver=slow).fetch("http://slow.example/")


async def test_no_more_pictures_than_allowed_are_on_the_way(world: World) -> None:
    fetcher = world.fetcher(concurrency=1)
    first = asyncio.create_task(fetcher.fetch(world.link("silent")))
    assert await asyncio.to_thread(world.waiting.wait, 10)
    second = asyncio.create_task(fetcher.fetch(world.link("good")))
    await asyncio.sleep(0)
    assert world.calls["good"] == 0
    world.release()
    with pytest.raises(FetchFailed):
        await first
    assert (await second).width == 40


async def test_the_meter_counts_pictures_and_failures(world: World) -> None:
    with metered() as meter:
        await world.fetcher().fetch(world.link("good"))
        with pytest.raises(FetchFailed):
            await world.fetcher().fetch(world.link("dead"))
    usage = meter.by_service["image_fetch"]
    assert (usage.calls, usage.failed_calls, usage.images) == (2, 1, 1)
    assert usage.seconds > 0


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Key and self-signed certificate of `pictures.test`."""
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pictures.test")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("pictures.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    plain = serialization.NoEncryption()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, form, plain))
    (folder / "cert.pem").write_bytes(built.public_bytes(pem))
    return folder / "key.pem", folder / "cert.pem"


async def test_tls_is_verified_for_the_name_although_the_address_is_pinned(certificate: tuple[Path, Path]) -> None:
    resolver, _ = resolving(["127.0.0.1"])
    trusting = ssl.create_default_context(cafile=str(certificate[1]))
    with serving_world(certificate) as world:
        fetcher = Fetcher(world.limits(), resolver=resolver, tls=trusting)
        assert (await fetcher.fetch(f"https://pictures.test:{world.port}/p/good")).width == 40
        with pytest.raises(FetchRefused, match=r"certificate of 'other\.test' is not valid"):
            await fetcher.fetch(f"https://other.test:{world.port}/p/good")
        with pytest.raises(FetchRefused, match="certificate"):
            await Fetcher(world.limits(), resolver=resolver).fetch(f"https://pictures.test:{world.port}/p/good")
        assert world.calls["good"] == 1


async def test_https_does_not_redirect_to_http(certificate: tuple[Path, Path], world: World) -> None:
    resolver, _ = resolving(["127.0.0.1"])
    trusting = ssl.create_default_context(cafile=str(certificate[1]))
    with serving_world(certificate) as secure:
        secure.redirects["down"] = world.link("good")
        limits = {"ports": (secure.port, world.port)}
        start = f"https://pictures.test:{secure.port}/p/down"
        with pytest.raises(FetchRefused, match="from https to http"):
            await Fetcher(secure.limits(**limits), resolver=resolver, tls=trusting).fetch(start)
        assert world.calls["good"] == 0
        allowing = Fetcher(secure.limits(**limits, allow_downgrade=True), resolver=resolver, tls=trusting)
        assert (await allowing.fetch(start)).width == 40
