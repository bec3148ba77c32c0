"""How numbers read on the page."""

from __future__ import annotations


def signed(value: float) -> str:
    """Return a number with its sign, a real minus, and three decimals."""
    return f"{value:+.3f}".replace("-", "−")


def fixed(value: float | None) -> str:
    """Return three decimals, or a dash for no value."""
    return "–" if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Return a share with one decimal, or a dash for no value."""
    return "–" if value is None else f"{value:.1%}"


def power(value: float) -> str:
    """Return a small number with two digits at most and its power of ten: `1.6e-6`, `1e-4`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def duration(seconds: float) -> str:
    """Return seconds as people say them: `42 s`, `11 min 32 s`, `3 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
