"""The speed of a training in words."""

from __future__ import annotations

import pytest

from genevolve_ray.learning.speed import peak_flops, rows_text, speed_text


def test_the_share_of_the_peak_is_shown_where_it_is_known() -> None:
    assert speed_text(10_000, 4e14, 2.0, 1e15) == "5,000 tokens/s, MFU 20.0%"
    assert speed_text(10_000, 4e14, 2.0) == "5,000 tokens/s, model 200 TFLOP/s"
    assert speed_text(10, 4e7, 2.0) == "5 tokens/s, model 0.02 GFLOP/s"
    assert speed_text(10, 0.0, 2.0) == "5 tokens/s"


def test_the_peak_is_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert peak_flops("cuda") == 756e12
    assert peak_flops("cuda", "float32") is None
    assert peak_flops("cpu") is None


def test_padding_is_a_share_of_the_rows_and_shared_tokens_of_all() -> None:
    assert rows_text(100, 80, 80) == "padding 0.0%, shared 20.0%"
    assert rows_text(100, 100, 125) == "padding 20.0%, shared 0.0%"
