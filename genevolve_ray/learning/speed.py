"""Speed of a training in words: tokens and operations per second, the share of the device's peak, what rows hold."""

from __future__ import annotations

import torch

PEAK_TFLOPS = {
    "GB200": 2250.0,
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.0,
}
"""Dense bfloat16 peak by what the device's name contains, first match, from the makers' data sheets."""
_UNITS = ((1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s"))


def peak_flops(device: str, dtype: str = "bfloat16") -> float | None:
    """Return the peak in operations per second of one device, None where it is not known, as for CPUs and float32."""
    if not device.startswith("cuda") or dtype != "bfloat16" or not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for part, peak in PEAK_TFLOPS.items() if part in name), None)


def peak_memory(device: torch.device) -> float:
    """Return the most bytes that PyTorch held on a GPU in this process since the last call; 0 for a CPU."""
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return float(peak)


def speed_text(tokens: float, flops: float, seconds: float, peak: float | None = None) -> str:
    """Return "12,345 tokens/s, MFU 41.2%", or with the model's FLOP/s where no peak is known.

    Args:
        tokens: tokens that were trained on.
        flops: operations that this took (see `learning.build.flops_per_token`); 0 leaves them out.
        seconds: how long it took, above 0.
        peak: operations per second that all devices together can reach.
    """
    pace = f"{tokens / seconds:,.0f} tokens/s"
    if not flops:
        return pace
    rate = flops / seconds
    if peak:
        return f"{pace}, MFU {rate / peak:.1%}"
    unit, name = next(((unit, name) for unit, name in _UNITS if rate >= unit), _UNITS[-1])
    return f"{pace}, model {rate / unit:.3g} {name}"


def rows_text(tokens: int, distinct: int, row_tokens: int) -> str:
    """Return "padding 0.0%, shared 12.3%".

    Args:
        tokens: tokens that were trained on, above 0.
        distinct: those that were computed, because the prefixes that packed rows share are computed once.
        row_tokens: those, and the padding of the rows; above 0.
    """
    return f"padding {1 - distinct / row_tokens:.1%}, shared {1 - distinct / tokens:.1%}"
