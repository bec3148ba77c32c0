"""Errors that servers report: their code and text, the wait that they request, and whether they are final."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

_SHOWN = 300
"""Characters of a server's own error text that a message keeps."""
_READ = 1 << 16
"""Bytes of an error body that are read."""
_BUSY = frozenset({408, 409, 425, 429})
"""Statuses besides 5xx after which another try may help."""
_FINAL = frozenset(
    "insufficient_quota billing_hard_limit_reached billing_not_active account_deactivated account_suspended "
    "access_terminated insufficient_balance insufficient_credits credit_balance_too_low out_of_credits payment_required "
    "exceeded_current_quota_error invalid_api_key authentication_error permission_error permission_denied "
    "unauthenticated model_not_found content_policy_violation".split()
)
"""Codes that say that no other try helps, also with a status that means busy."""
_WAIT = re.compile(
    r"\b(?:try again|retry|wait)(?: \w{1,12}){0,2}? (?:in|after|for) (?P<time>(?:\d{1,9}(?:\.\d{1,9})? ?[a-z]{1,12}[ ,]{0,2}){1,4})",
    re.IGNORECASE,
)
"""A wait in words, as "Please try again in 1m20.5s"."""
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([a-z]{1,12})", re.IGNORECASE)
_UNITS = {
    **dict.fromkeys(("ms", "milliseconds", "millisecond", "msec"), 0.001),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}


def is_busy(status: int, data: bytes) -> bool:
    """Return whether another try may help after an answer with this status and body."""
    if status not in _BUSY and (status < 500 or status == 501):
        return False
    errors = _errors(data)
    return not (any(code.lower() in _FINAL for code in _codes(errors)) or any(map(_is_spent, errors)))


def code_of(data: bytes) -> str:
    """Return the service's own code in an error body in the OpenAI or Google format; empty where there is none."""
    return next(_codes(_errors(data)), "")[:_SHOWN]


def shown_body(data: bytes) -> str:
    """Return the beginning of a body as one line."""
    return " ".join(data[:_SHOWN].decode(errors="replace").split())


def wait_of(headers: Mapping[str, str], data: bytes) -> float:
    """Return the wait in seconds that a server requests, in a header or its body; 0 where it requests none."""
    milliseconds = headers.get("retry-after-ms", "")
    if milliseconds.isascii() and milliseconds.isdigit():
        return float(milliseconds[:9]) / 1000
    value = headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return _wait_in(data)


def _wait_in(data: bytes) -> float:
    for error in _errors(data):
        details = error.get("details")
        for detail in details if isinstance(details, list) else []:
            if isinstance(detail, dict) and "retryDelay" in detail:  # google.rpc.RetryInfo
                return _duration(detail["retryDelay"])
        for name in ("retry_after", "retryAfter", "retry_after_seconds"):
            if name in error:
                return _duration(error[name])
    found = _WAIT.search(" ".join(data[:_READ].decode(errors="replace").split()))
    return sum(float(n) * _UNITS.get(unit.lower(), 0.0) for n, unit in _PART.findall(found["time"])) if found else 0.0


def _duration(value: object) -> float:
    """Return a duration in seconds: a number, "17.5s", or {"seconds": 17, "nanos": 0}."""
    if isinstance(value, dict):
        return _duration(value.get("seconds", 0)) + _duration(value.get("nanos", 0)) / 1e9
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return 0.0
    number = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)s?", str(value))
    return float(number[1]) if number else 0.0


def _is_spent(error: Mapping[str, Any]) -> bool:
    """Return whether Google's error says that a quota of zero, or that of a whole day, is used up."""
    details = error.get("details")
    violations = [
        violation
        for detail in (details if isinstance(details, list) else [])
        if isinstance(detail, dict) and isinstance(detail.get("violations"), list)
        for violation in detail["violations"]
        if isinstance(violation, dict)
    ]
    per_day = any("PerDay" in str(violation.get("quotaId", "")) for violation in violations)
    return per_day or re.search(r"\blimit: 0(?![.\d])", str(error.get("message", ""))[:_READ]) is not None


def _errors(data: bytes) -> list[dict[str, Any]]:
    """Return the objects of an error body that may describe the error, the innermost first."""
    try:
        value = json.loads(data[:_READ])
    except (ValueError, RecursionError):
        return []
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, dict):
        return []
    inner = (value.get("error"), value.get("detail"), value.get("fault"))
    return [*(entry for entry in inner if isinstance(entry, dict)), value]


def _codes(errors: list[dict[str, Any]]) -> Iterator[str]:
    for error in errors:
        for name in ("code", "status", "type", "error"):
            if isinstance(code := error.get(name), str) and code:
                yield code
