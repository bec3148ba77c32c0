"""Legal results of each role of a plug-in, and the error that names them when it returns something else."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from genevolve_ray.errors import UserFault
from genevolve_ray.records.components import OpenVerdict
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.observation import Observation
from genevolve_ray.records.request import Request
from genevolve_ray.records.verdict import Verdict


class PluginResultFault(UserFault, TypeError):
    """Report a result of a plug-in that its role does not allow; the message names the legal types and their modules."""


@dataclass(frozen=True)
class Method:
    """Describe the method of a role that a run calls, as its author writes it."""

    name: str
    arguments: tuple[str, ...]
    kinds: tuple[type, ...]
    legal: str
    """The legal types, with the module of each and how to get one."""
    is_async: bool = True

    @property
    def line(self) -> str:
        """The first line of the method's definition."""
        head = "async def" if self.is_async else "def"
        return f"{head} {self.name}(self, {', '.join(self.arguments)})"


def _listed(kinds: tuple[type, ...]) -> str:
    modules: dict[str, list[str]] = {}
    for kind in kinds:
        modules.setdefault(kind.__module__, []).append(kind.__name__)
    return " or ".join(f"{' or '.join(names)} (from {module})" for module, names in modules.items())


_JUDGED: tuple[type, ...] = (OpenVerdict, Verdict)
_SEEN: tuple[type, ...] = get_args(Observation)
_SPLITS = tuple(
    Method(name, (argument,), kinds, legal, is_async=False)
    for name, argument, kinds, legal in (
        ("train", "index", (Request,), _listed((Request,))),
        ("validation", "count", (list, tuple), f"a list of {_listed((Request,))}"),
        ("heldout", "count", (list, tuple), f"a list of {_listed((Request,))}"),
    )
)
METHODS: Mapping[str, tuple[Method, ...]] = {
    "requests": _SPLITS,
    "tools": (
        Method(
            "call",
            ("arguments", "episode"),
            _SEEN,
            f'{_listed(_SEEN)}; for a text: TextObservation(text="...")',
        ),
    ),
    "renderer": (
        Method(
            "render",
            ("prompt", "references", "seed"),
            (bytes,),
            'bytes, an encoded PNG; of a PIL image: buffer = io.BytesIO(); image.save(buffer, "PNG"); buffer.getvalue()',
        ),
    ),
    "judge": (
        Method(
            "judge",
            ("request", "image", "truth", "program", "references"),
            _JUDGED,
            f'{_listed(_JUDGED)}; for one number: OpenVerdict(components={{"score": Component(value=0.5)}}, '
            "judge=self.identity), and components on the class",
        ),
    ),
    "summariser": (Method("compare", ("request", "pair"), (Experience,), _listed((Experience,))),),
    "embedder": (Method("embed", ("texts",), (), "a numpy array float32[n, d], each row of length 1"),),
}
"""The methods that a run calls, by role; those of `tools` are methods of each tool."""

GROUP_METHOD = Method(
    "judge_group",
    ("request", "truth", "attempts"),
    (list, tuple),
    f"a list of {_listed((OpenVerdict,))}, one for each attempt in their order",
)
"""The method of a judge that judges groups, in place of `judge`."""


def named(role: str, plugin: object) -> str:
    """Return a plug-in as messages name it: its role and class."""
    kind = plugin if isinstance(plugin, type) else type(plugin)
    return f"{role} {kind.__module__}:{kind.__qualname__}"


def check_result(role: str, plugin: object, value: Any, method: str = "") -> Any:
    """Return a result of a plug-in's method, by default of the only one of its role.

    Raises:
        PluginResultFault: when its type is not legal.
    """
    wanted = next(one for one in METHODS[role] if method in ("", one.name))
    if not isinstance(value, wanted.kinds):
        raise _fault(role, plugin, wanted, f"returned {_told(value)}")
    return value


async def checked(role: str, plugin: object, returned: Awaitable[Any] | Any) -> Any:
    """Await what an asynchronous method of a plug-in returned, and return its result.

    Raises:
        PluginResultFault: when the method is not asynchronous, or the type of its result is not legal.
    """
    wanted = METHODS[role][0]
    if not inspect.isawaitable(returned):
        raise _fault(role, plugin, wanted, f"is not asynchronous (it returned {_told(returned)} without `async def`)")
    value = await returned
    return check_result(role, plugin, value) if wanted.kinds else value


async def checked_group(judge: object, returned: Awaitable[Any] | Any, count: int) -> Sequence[OpenVerdict]:
    """Await the verdicts of a judge of groups on `count` attempts, and return them.

    Raises:
        PluginResultFault: when the method is not asynchronous, or the result is no list of so many open verdicts.
    """
    if not inspect.isawaitable(returned):
        what = f"is not asynchronous (it returned {_told(returned)} without `async def`)"
        raise _fault("judge", judge, GROUP_METHOD, what)
    verdicts = await returned
    if not isinstance(verdicts, list | tuple):
        raise _fault("judge", judge, GROUP_METHOD, f"returned {_told(verdicts)}")
    for one in verdicts:
        if not isinstance(one, OpenVerdict):
            raise _fault("judge", judge, GROUP_METHOD, f"returned a list with {_told(one)}")
    if len(verdicts) != count:
        raise _fault("judge", judge, GROUP_METHOD, f"returned {len(verdicts)} verdicts on {count} attempts")
    return verdicts


def check_rows(embedder: object, rows: Any, count: int) -> Any:
    """Return the vectors of `count` texts. Raises PluginResultFault when they are no float32 array with a row for each."""
    shape, dtype = getattr(rows, "shape", None), str(getattr(rows, "dtype", ""))
    if not isinstance(shape, tuple):
        raise _fault("embedder", embedder, METHODS["embedder"][0], f"returned {_told(rows)}")
    if len(shape) != 2 or shape[0] != count or dtype != "float32":
        told = f"returned {dtype}{list(shape)} for {count} texts"
        raise _fault("embedder", embedder, METHODS["embedder"][0], told)
    return rows


def _fault(role: str, plugin: object, method: Method, what: str) -> PluginResultFault:
    return PluginResultFault(
        f"{named(role, plugin)}: {method.name} {what}. Legal: `{method.line}` returns {method.legal}"
    )


def _told(value: object) -> str:
    """Return the type of a value; the value itself may be long, or secret."""
    kind = type(value)
    return "None" if value is None else f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
