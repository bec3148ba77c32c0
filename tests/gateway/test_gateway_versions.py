"""Weights by version: listed, in ranges, compressed, resumed, and never anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_helpers import house

from genevolve_ray.engines.protocol import Probe
from genevolve_ray.evolution.weights import FolderPayload, PublishedWeights
from genevolve_ray.gateway import client as client_module
from genevolve_ray.gateway.client import GatewayDown
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.gateway.versions import VersionStore, describe, read_range
from genevolve_ray.gateway.wire import compress, decompress
from genevolve_ray.learning.null import NullLearner

PROBE = Probe(token_ids=(1, 2), logprobs=(-0.5,))


def _published(folder: Path, text: str) -> str:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(text.encode() * 1000)
    return str(folder)


def test_the_last_versions_are_kept(tmp_path: Path) -> None:
    version_store = VersionStore(tmp_path / "shelf", keep=2)
    for version in range(4):
        version_store.put(_published(tmp_path / f"p{version}", f"v{version}"), version, PROBE)
    assert (version_store.versions(), version_store.newest) == ([2, 3], 3)
    assert len(list((tmp_path / "shelf").iterdir())) == 2
    with pytest.raises(GatewayRefusal) as refused:
        version_store.get(1)
    assert refused.value.reason is RefusalReason.UNKNOWN_FILE


def test_a_version_published_again_is_another_folder(tmp_path: Path) -> None:
    version_store = VersionStore(tmp_path / "shelf", keep=2)
    version_store.put(_published(tmp_path / "a", "a"), 1, PROBE)
    first = version_store.get(1)
    version_store.put(_published(tmp_path / "b", "b"), 1, PROBE)
    again = version_store.get(1)
    assert first.folder != again.folder and first.card.files[0].sha256 != again.card.files[0].sha256


def test_what_the_learner_removes_stays_on_the_shelf(tmp_path: Path) -> None:
    version_store = VersionStore(tmp_path / "shelf", keep=1)
    source = Path(_published(tmp_path / "a", "a"))
    version_store.put(str(source), 0, PROBE)
    (source / "model.safetensors").unlink()
    assert (version_store.get(0).folder / "model.safetensors").read_bytes() == b"a" * 1000


@pytest.mark.parametrize(
    ("header", "expected"),
    [(None, (0, 10)), ("bytes=0-", (0, 10)), ("bytes=3-5", (3, 6)), ("bytes=8-99", (8, 10)), ("bytes=9-9", (9, 10))],
)
def test_ranges(tmp_path: Path, header: str | None, expected: tuple[int, int]) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    data, start, size = read_range(tmp_path, describe(tmp_path), "f", header)
    assert (data, start, size) == (b"0123456789"[slice(*expected)], expected[0], 10)


@pytest.mark.parametrize(
    "header", ["bytes=10-", "bytes=5-3", "bytes=-5", "bytes=a-b", "lines=0-1", "bytes=0", "", "bytes=²-"]
)
def test_ranges_that_are_none(tmp_path: Path, header: str) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    with pytest.raises(GatewayRefusal) as refused:
        read_range(tmp_path, describe(tmp_path), "f", header)
    assert refused.value.reason is RefusalReason.BAD_RANGE


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "secret", "", "f/../f", "F"])
def test_only_listed_files_are_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "shelf"
    folder.mkdir()
    (folder / "f").write_bytes(b"x")
    files = describe(folder)
    (tmp_path / "secret").write_text("s")
    (folder / "secret").write_text("s")
    with pytest.raises(GatewayRefusal):
        read_range(folder, files, name, None)


async def test_a_download_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RANGE_BYTES", 1000)
    async with house(tmp_path) as h:
        source = tmp_path / "weights"
        source.mkdir()
        data = bytes(i * i % 251 for i in range(5500))
        (source / "model.safetensors").write_bytes(data)
        await h.rollouts.update(PublishedWeights(0, PROBE, FolderPayload(str(source))))
        client = h.client(h.token("anna"))
        card = await client.weights(-1, 1)
        assert card is not None
        target = tmp_path / "loaded"
        target.mkdir()
        (target / "model.safetensors.part").write_bytes(data[:4000])
        before = h.server.gateway.meters.requests
        await client.download("/v1/weights/0", card.files, target)
        assert (target / "model.safetensors").read_bytes() == data
        assert h.server.gateway.meters.requests - before == 2  # 1,500 bytes in ranges of 1,000
        await client.download("/v1/weights/0", card.files, target)  # it is there
        assert h.server.gateway.meters.requests - before == 2
        await client.close()


@pytest.mark.parametrize("level", [1, 19])
async def test_ranges_are_compressed_at_the_configured_level(tmp_path: Path, level: int) -> None:
    async with house(tmp_path, zstd_level=level) as h, h.http(h.token("anna")) as http:
        await h.publish(0, NullLearner(weights_mib=1))
        path = "/v1/weights/0/padding.bin"
        plain = (await http.get(path)).content
        packed = (await http.get(path, params={"encoding": "zstd"})).content
        assert packed == compress(plain, level) and decompress(packed, len(plain)) == plain
        assert compress(plain, 1) != compress(plain, 19)


async def test_a_damaged_part_is_found_out_and_loaded_anew(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.publish(0)
        client = h.client(h.token("anna"))
        card = await client.weights(-1, 1)
        assert card is not None
        target = tmp_path / "loaded"
        target.mkdir()
        (target / f"{card.files[0].name}.part").write_bytes(b"junk")
        with pytest.raises(GatewayDown, match="damaged"):
            await client.download("/v1/weights/0", card.files, target)
        await client.download("/v1/weights/0", card.files, target)
        assert (target / card.files[0].name).stat().st_size == card.files[0].size
        await client.close()


async def test_nobody_loads_weights_or_model_without_a_token(tmp_path: Path) -> None:
    async with house(tmp_path) as h, h.http() as http:
        await h.publish(0)
        for path in (
            "/v1/run",
            "/v1/weights",
            "/v1/weights/0/null.json",
            "/v1/model/config.json",
            "/v1/status",
            "/metrics",
        ):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["reason"]) == (401, RefusalReason.NO_TOKEN.value), path
        assert (await http.get("/docs")).status_code == 404


async def test_the_model_folder_gives_no_weights_and_nothing_beside_it(tmp_path: Path) -> None:
    async with house(tmp_path) as h, h.http(h.token("anna")) as http:
        names = [f["name"] for f in (await http.get("/v1/run")).json()["model"]]
        assert "tokenizer.json" in names and not [n for n in names if "safetensors" in n]
        for path in ("/v1/model/model.safetensors", "/v1/model/..%2f..%2fpyproject.toml", "/v1/weights/x/y"):
            assert (await http.get(path)).status_code in (404, 422), path
