"""Secrets in settings and texts: recognized by key and by value, masked wherever something is written or printed.

A setting names a secret by the environment variable that holds it: `token_env: NAME`, or `${NAME}` as a value. A secret
that is given in plain works, but it is masked in everything that a run writes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from genevolve_ray.errors import UserFault, without_addresses

MASK = "***"
_KEY = re.compile(
    r"(?:^|_)(?:pass(?:word|wd|phrase)?|pwd|secrets?|credentials?|authorization|cookie|bearer|auth"
    r"|(?:api|secret|access|private|subscription|signing|encryption|auth|account|service)_?key(?:_id)?)$"
    r"|(?:^|(?:auth|access|api|bearer|refresh|session|hf|hub|user|service|secret|personal|id)_)token$"
    r"|password|passphrase|apikey|secret_"
)
"""Keys of secrets, in lower case with `_` between words; `eos_token` and the like are none."""
_VARIABLE = re.compile(r"key|token|secret|pass|pwd|cred|auth|cookie|bearer", re.IGNORECASE)
"""Names of environment variables and headers that may hold a secret."""
_NAMED = frozenset({"env", "env_vars", "headers"})
"""Keys of settings that hold environment variables or headers by name."""
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_VALUE = re.compile(
    r"\b(?:sk|gsk|nvapi|xai|pplx|glpat)[-_](?=[A-Za-z_-]{0,64}[0-9])[A-Za-z0-9_-]{16,256}"
    r"|\b(?:gh[pousr]|hf|r8)_[A-Za-z0-9]{20,256}|\bgithub_pat_[A-Za-z0-9_]{20,256}"
    r"|\bAIza[A-Za-z0-9_-]{30,64}|\bA(?:KI|SI)A[A-Z0-9]{12,32}|\bxox[abeprs]-[A-Za-z0-9-]{10,256}"
    r"|\beyJ[A-Za-z0-9_-]{10,2048}\.[A-Za-z0-9_-]{10,2048}\.[A-Za-z0-9_-]{0,1024}"
    r"|(?<=[Bb]earer )[A-Za-z0-9._~+/=-]{8,2048}|(?<=[Bb]asic )[A-Za-z0-9+/=]{12,2048}"
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]{0,8192}"
)
"""Values that are secrets wherever they stand."""
_UNFINISHED = re.compile(
    r"[Bb](?:earer|asic)\S*\s\S*\Z"
    r"|-----BEGIN(?:\s[A-Z\s]{0,40}-{0,4}|\s[A-Z\s]{0,40}PRIVATE\sKEY-----[\s\S]{0,8192})\Z"
)
"""The end of a text that may be the beginning of a value of several words."""
_USERINFO = re.compile(
    r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]{1,20}://)(?:[^/\s@:'\"]{0,256}:[^/\s@'\"]{1,512}|(?<=https://)[^/\s@:'\"]{1,512}"
    r"|(?<=http://)[^/\s@:'\"]{1,512})@"
)
_QUERY = re.compile(
    r"(?P<name>[?&](?:(?:api_?|access_|account_|secret_)?key|(?:access_|auth_|sas_)?token|sig|signature|x-amz-signature"
    r"|(?:client_)?secret|password)=)[^&\s'\"#]{1,2048}",
    re.IGNORECASE,
)
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]|\][^\x07\x1b]{0,512}(?:\x07|\x1b\\)?)")
"""Sequences that control a terminal: colors, cursor, titles, links."""
_USERINFO_PARTS = re.compile(r"://[^/\s@:]{0,256}:([^/\s@]{1,512})@")
"""The password in a URL."""
REMEDY = "put it into an environment variable NAME and write ${NAME}, or NAME under token_env"
_LEAST = 6
"""Characters of the shortest value that is masked by value: shorter ones occur in other words."""

_known: set[str] = set()


def remember_secret(value: str) -> None:
    """Mask a value from now on in every text of this process."""
    if len(value := value.strip()) >= _LEAST:
        _known.add(value)


def is_secret_key(key: str) -> bool:
    """Return whether a setting of that name holds a secret."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).replace("-", "_").replace(" ", "_").lower()
    return _KEY.search(words) is not None


def redacted(text: str) -> str:
    """Return a text without secrets: known ones, those in URLs, and values of a form that only secrets have."""
    for value in sorted(_known, key=len, reverse=True):
        text = text.replace(value, MASK)
    text = _USERINFO.sub(rf"\g<scheme>{MASK}@", text)
    return _VALUE.sub(MASK, _QUERY.sub(rf"\g<name>{MASK}", text))


def unfinished_secret(text: str) -> int:
    """Return where in a text that goes on a secret of several words may begin; its length where none does."""
    found = _UNFINISHED.search(text)
    begun = len(text) if found is None else found.start()
    for value in _known:
        if any(map(str.isspace, value)):
            sizes = range(min(len(value), len(text)), 0, -1)
            begun = min(begun, len(text) - next((size for size in sizes if text.endswith(value[:size])), 0))
    return begun


def shown(text: object) -> str:
    """Return external text for a terminal or a log: without secrets and control sequences, line breaks kept."""
    plain = without_addresses(_SEQUENCE.sub("", str(text)))
    return redacted("".join(c if c.isprintable() or c == "\n" else " " for c in plain))


def masked(tree: Any) -> Any:
    """Return settings with every secret masked; names of variables and `${NAME}` stay."""
    return _masked(tree, secret=False, variables=False)


def _masked(value: Any, *, secret: bool, variables: bool) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _masked(
                inner,
                secret=secret or (_VARIABLE.search(str(key)) is not None if variables else is_secret_key(str(key))),
                variables=str(key) in _NAMED,
            )
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_masked(inner, secret=secret, variables=False) for inner in value]
    if not isinstance(value, str) or not value or _REFERENCE.fullmatch(value):
        return value
    return MASK if secret else redacted(value)


def without_secrets(tree: Any) -> Any:
    """Return settings to compare: secrets are equal, however they are given."""
    return _plain_references(masked(tree))


def _plain_references(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_references(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain_references(inner) for inner in value]
    return MASK if isinstance(value, str) and _REFERENCE.fullmatch(value) else value


def plain_secrets(tree: Any) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, value) of the settings that hold a secret in plain."""
    yield from _changed(tree, masked(tree), "")


def masked_keys(tree: Any) -> Iterator[str]:
    """Yield the dotted keys of the values that were masked."""
    return (key for key, value in _leaves(tree) if value == MASK)


def hide_secrets(tree: Any) -> list[str]:
    """Mask the plain secrets of settings in all texts of this process from now on, and return their keys."""
    found = list(plain_secrets(tree))
    for _, value in found:
        for part in (value, *_USERINFO_PARTS.findall(value)):
            remember_secret(part)
    return [key for key, _ in found]


def _changed(before: Any, after: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(before, Mapping):
        for name in before:
            yield from _changed(before[name], after[name], f"{key}.{name}" if key else str(name))
    elif isinstance(before, list | tuple):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _changed(one, other, f"{key}.{number}")
    elif before != after:
        yield key, before


def resolved(tree: Any, where: str) -> Any:
    """Return settings with every `${NAME}` replaced by that environment variable.

    Raises:
        UserFault: naming the key below `where` and the variable that is not set.
    """
    if isinstance(tree, Mapping):
        return {key: resolved(value, f"{where}.{key}") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [resolved(value, f"{where}.{number}") for number, value in enumerate(tree)]
    if not isinstance(tree, str) or not (found := _REFERENCE.fullmatch(tree)):
        return tree
    if not (value := os.environ.get(found[1], "").strip()):
        raise UserFault(f"{where}: the environment variable {found[1]} is not set")
    remember_secret(value)
    return value


def references(tree: Any) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, name of the variable) of every `${NAME}`."""
    for key, value in _leaves(tree):
        if isinstance(value, str) and (found := _REFERENCE.fullmatch(value)):
            yield key, found[1]


def _leaves(tree: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything that is neither a mapping nor a list."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{where}.{key}" if where else str(key))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from _leaves(value, f"{where}.{number}")
    else:
        yield where, tree


def mask_output() -> None:
    """Mask secrets in the log records and tracebacks of this process; a second call changes nothing."""
    make = logging.getLogRecordFactory()

    def record(*arguments: Any, **options: Any) -> logging.LogRecord:
        made = make(*arguments, **options)
        with contextlib.suppress(TypeError, ValueError):  # its message does not fit its arguments: logging reports that
            text = made.getMessage()
            if (clean := redacted(text)) != text:
                made.msg, made.args = clean, None
        return made

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))

    record.masks_secrets = True  # type: ignore[attr-defined]
    if not hasattr(make, "masks_secrets"):
        logging.setLogRecordFactory(record)
    sys.excepthook = uncaught
