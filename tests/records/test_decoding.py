"""Large pictures are decoded in processes that can be killed: late, crashed and crafted ones cost only themselves."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from noisy_pictures import noise_file

from genevolve_ray.records import decoding
from genevolve_ray.records.decoding import SMALL_BYTES, check_apart, clean_apart
from genevolve_ray.records.pictures import MAX_SCANS, ImageRefused, PictureLimits, clean_picture


def large(side: int = 300) -> bytes:
    """Return a PNG that is too large to be decoded in this process."""
    data = noise_file(side, (side, side))
    assert len(data) > SMALL_BYTES
    return data


def scans(count: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    data = noise_file(160, (160, 160), "JPEG", progressive=True, quality=95)
    last = data.rindex(b"\xff\xda")
    return data[:last] + (data[last:-2] * count) + b"\xff\xd9"


@pytest.mark.parametrize("limits", [PictureLimits(), PictureLimits(output="JPEG", long_side=100)])
def test_the_process_gives_what_this_process_would_give(limits: PictureLimits) -> None:
    assert clean_apart(large(), limits) == clean_picture(large(), limits)


def test_a_refusal_has_the_same_reason_and_costs_no_process() -> None:
    clean_apart(large())
    before = [decoder.process.pid for decoder in decoding._IDLE]
    for data, limits in ((large()[:-5000], None), (large(), PictureLimits(max_pixels=100)), (b"x" * 99_999, None)):
        with pytest.raises(ImageRefused) as here:
            clean_picture(data, limits)
        with pytest.raises(ImageRefused) as there:
            clean_apart(data, limits)
        assert str(here.value) == str(there.value)
    assert [decoder.process.pid for decoder in decoding._IDLE] == before


def test_a_late_picture_is_refused_and_its_process_is_killed() -> None:
    clean_apart(large())
    decoder = decoding._IDLE[-1]
    with pytest.raises(ImageRefused, match="longer than 0.0001 s"):
        clean_apart(large(1500), seconds=0.0001)
    assert decoder.process.poll() is not None
    assert clean_apart(large()).width == 300


def test_a_process_that_died_meanwhile_costs_no_picture() -> None:
    clean_apart(large())
    decoding._IDLE[-1].process.kill()
    assert clean_apart(large()).width == 300


def test_a_picture_that_ends_its_decoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(self: decoding._Decoder, *_: object) -> None:
        self.close()

    monkeypatch.setattr(decoding._Decoder, "ask", ends)
    with pytest.raises(ImageRefused, match="ended its decoder"):
        clean_apart(large())


def test_a_decoder_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_TOKEN", "s3cret")
    decoder = decoding._Decoder()
    try:
        with open(f"/proc/{decoder.process.pid}/environ", "rb") as file:
            assert b"s3cret" not in file.read()
    finally:
        decoder.close()


def test_many_threads_share_a_few_processes() -> None:
    with ThreadPoolExecutor(12) as pool:
        pictures = list(pool.map(clean_apart, [large(200 + n) for n in range(24)]))
    assert [picture.width for picture in pictures] == [200 + n for n in range(24)]
    assert threading.active_count() < 40


def test_a_check_returns_nothing_and_refuses_the_same() -> None:
    check_apart(large(), PictureLimits())
    with pytest.raises(ImageRefused):
        check_apart(large()[:-5000], PictureLimits())


@pytest.mark.parametrize("count", [MAX_SCANS + 1, 20_000])
def test_very_many_scans_are_refused_before_they_are_decoded(count: int) -> None:
    with pytest.raises(ImageRefused, match=f"more than {MAX_SCANS} scans"):
        clean_picture(scans(count), PictureLimits(max_bytes=1 << 30))


def test_very_many_segments_are_refused() -> None:
    data = noise_file(160, (160, 160), "JPEG")
    with pytest.raises(ImageRefused, match="segments"):
        clean_picture(data[:2] + b"\xff\xfe\x00\x02" * 50_000 + data[2:])


def test_scans_inside_other_data_do_not_count() -> None:
    data = noise_file(160, (160, 160), "JPEG", progressive=True, comment=b"\xff\xda" * 5000)
    assert clean_picture(data + b"\xff\xda" * 5000).width == 160
