"""Sequential execution of checks, with one finding for each."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from genevolve_ray.errors import GenevolveError
from genevolve_ray.records.plugin_results import PluginResultFault

Check = Callable[[Any, Any], Awaitable[None]]
LIMIT_SECONDS = 300.0
PATIENCE_SECONDS = 5.0
"""How long a canceled call, and tasks that it started, may take to end."""


class NotAsked(GenevolveError):
    """Signal that a check does not apply to this plug-in; the message gives the reason."""


@dataclass(frozen=True)
class Finding:
    """Describe the result of one check: `passed` is None where it does not apply.

    `name` and `about` describe the check; `reason` explains the result.
    """

    name: str
    about: str
    passed: bool | None
    reason: str = ""


async def run_checks(
    checks: Sequence[Check], subject: Any, case: Any, *, limit: float = LIMIT_SECONDS
) -> AsyncIterator[Finding]:
    """Run checks one after the other and yield a finding for each. An error of any kind is a failure of its check.

    Args:
        checks: functions of subject and case.
        subject: the plug-in.
        case: the inputs of the checks.
        limit: seconds that one check may take.
    """
    for check in checks:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        about = (inspect.getdoc(check) or "").partition("\n")[0]
        passed, reason = await _outcome(check, subject, case, limit)
        yield Finding(name, about, passed, reason)


async def _outcome(check: Check, subject: Any, case: Any, limit: float) -> tuple[bool | None, str]:
    try:
        async with asyncio.timeout(limit) as clock:
            await check(subject, case)
    except NotAsked as why:
        return None, str(why)
    except PluginResultFault as fault:
        return False, str(fault)
    except AssertionError as broken:
        return False, " ".join(str(broken).split()) or "an assertion without a message"
    except TimeoutError as error:
        late = clock.expired()
        return False, f"it took more than {limit:g} s" if late else f"it raised TimeoutError: {error}"
    except Exception as error:  # noqa: BLE001 - any error of a plug-in is a finding about it
        return False, " ".join(f"it raised {type(error).__name__}: {error}".split())
    return True, ""


async def run_all(checks: Sequence[Check], subject: Any, case: Any) -> None:
    """Run checks. Raises AssertionError that lists every one that failed."""
    failed = [f"{f.name}: {f.reason}" async for f in run_checks(checks, subject, case) if f.passed is False]
    assert not failed, "; ".join(failed)


async def raised_by(work: Awaitable[Any]) -> Exception | None:
    """Await work and return the exception that it raised, None when it returned."""
    try:
        await work
    except Exception as error:  # noqa: BLE001 - the caller checks its type
        return error
    return None


def check_identity(subject: Any, secrets: Sequence[str]) -> None:
    """Check that a plug-in has an identity: one line, constant, without a secret."""
    identity = getattr(subject, "identity", None)
    assert isinstance(identity, str) and identity.strip(), f"identity must be a string, got {identity!r}"
    assert "\n" not in identity and len(identity) <= 1000, f"identity must be one short line, got {identity[:200]!r}"
    assert subject.identity == identity, f"identity changed from {identity!r} to {subject.identity!r}"
    assert not any(secret in identity for secret in secrets), "identity contains a secret of the settings"


def check_same_identity(subject: Any, identity: str) -> None:
    """Check that use has not changed the identity of a plug-in."""
    assert subject.identity == identity, f"use changed the identity from {identity!r} to {subject.identity!r}"


async def check_cancelled(work: Callable[[], Awaitable[Any]]) -> None:
    """Check that a canceled call ends soon and leaves no task of its own running."""
    seconds, before = PATIENCE_SECONDS, asyncio.all_tasks()
    task = asyncio.ensure_future(work())
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task}, timeout=seconds)
    assert task.done(), f"a canceled call was still running after {seconds:g} s"
    if not task.cancelled() and (error := task.exception()) is not None:
        raise AssertionError(f"a canceled call raised {type(error).__name__}: {error}")
    left = asyncio.all_tasks() - before - {task}
    if left:
        _, left = await asyncio.wait(left, timeout=seconds)
    assert not left, f"a canceled call left {len(left)} tasks running: {', '.join(t.get_name() for t in left)}"
