"""The shape of a plug-in: its settings, constructor and methods are checked before anything starts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from genevolve_ray.errors import UserFault
from genevolve_ray.records.base import Config
from genevolve_ray.records.plugin_results import GROUP_METHOD, METHODS, Method, named


class PluginFault(UserFault, ValueError):
    """Report a plug-in that cannot be found, loaded, configured or built, in one line that names the invalid value."""


_WITH_IMAGES = frozenset({"tools", "requests"})
"""Roles whose plug-ins are built over the run's image store."""


def check_class(role: str | None, kind: Any, type_: str) -> None:
    """Check that a class can be a plug-in of a role: its settings, its constructor and its methods.

    Args:
        role: the role, None where it is not known.
        kind: the class, or a function that builds the plug-in.
        type_: the class as the configuration names it.

    Raises:
        PluginFault: naming what is missing or differs, and how it is written.
    """
    if not (isinstance(settings := getattr(kind, "Config", None), type) and issubclass(settings, Config)):
        raise PluginFault(
            f"plug-in {type_!r} has no Config class (a subclass of genevolve_ray.records.base.Config): write "
            "`class MyConfig(Config): ...`, and `Config = MyConfig` in the class"
        )
    if role is None or not isinstance(kind, type):
        return
    given = ("config", "images") if role in _WITH_IMAGES else ("config",)
    if (why := _misfit(kind, len(given))) is not None:
        arguments = ", ".join(given)
        raise PluginFault(
            f"{role} {type_} cannot be built as {kind.__name__}({arguments}): {why}; "
            f"write `def __init__(self, {arguments})`"
        )
    # A class that builds another one, or looks its methods up, is checked when it has been built.
    indirect = "__getattr__" in dir(kind) or any("__new__" in vars(base) for base in kind.__mro__[:-1])
    if role != "tools" and not indirect:
        for method in _methods(role, kind):
            if hasattr(kind, method.name) or method.name not in _set_in_init(kind):
                _check_method(f"{role} {type_}", kind, method, bound=False)


def check_built(role: str | None, plugin: Any) -> None:
    """Check what only a built plug-in has: its identity, or its tools. Raises PluginFault naming what is missing."""
    if role in ("requests", "renderer", "judge", "summariser", "embedder"):
        who = named(role, plugin)
        for method in _methods(role, plugin):
            _check_method(who, plugin, method, bound=True)
        identity = getattr(plugin, "identity", None)
        if role != "requests" and not (isinstance(identity, str) and identity):
            raise PluginFault(
                f"{who} has no identity (it is {identity!r}): set a text in __init__ that names the plug-in and its "
                'settings, such as self.identity = "painter/1"'
            )
    elif role == "tools":
        _check_tools(plugin)


def _methods(role: str, plugin: Any) -> tuple[Method, ...]:
    """Return the methods that a plug-in needs.

    A judge on the scale of another benchmark has `grade` in place of `judge`, and one that judges groups `judge_group`.
    """
    if role != "judge":
        return METHODS[role]
    return (GROUP_METHOD,) if hasattr(plugin, GROUP_METHOD.name) else () if hasattr(plugin, "grade") else METHODS[role]


def _set_in_init(kind: type) -> frozenset[str]:
    """Return the names that the constructor of a class uses: it may set a method as an attribute, which is checked later."""
    code = getattr(getattr(kind, "__init__", None), "__code__", None)
    return frozenset(code.co_names) if code is not None else frozenset()


def _check_tools(toolbox: Any) -> None:
    who, tools = named("tools", toolbox), getattr(toolbox, "tools", None)
    if not isinstance(tools, Mapping):
        raise PluginFault(
            f"{who} has no tools (it is {type(tools).__name__}): set self.tools = {{tool.name: tool}} in __init__"
        )
    for tool in tools.values():
        each = f"{who}: tool {type(tool).__qualname__}"
        for name, kind in (("name", str), ("description", str), ("parameters", Mapping)):
            if not isinstance(found := getattr(tool, name, None), kind):
                raise PluginFault(
                    f"{each}: {name} is {found!r}: a tool has name and description (texts) and parameters (a JSON "
                    "schema as a dict)"
                )
        _check_method(each, tool, METHODS["tools"][0], bound=True)


def _check_method(who: str, owner: Any, method: Method, *, bound: bool) -> None:
    found = getattr(owner, method.name, None)
    if not callable(found):
        raise PluginFault(f"{who} has no method {method.name}: write `{method.line}`")
    static = not bound and isinstance(inspect.getattr_static(owner, method.name), staticmethod | classmethod)
    if (why := _misfit(found, len(method.arguments) + (not bound and not static))) is not None:
        raise PluginFault(f"{who}: {method.name} cannot be called as a run calls it: {why}; write `{method.line}`")


def _misfit(function: Any, count: int) -> str | None:
    """Return why a function cannot be called with so many arguments by position, None when it can or cannot be read."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*range(count))
    except TypeError as error:
        return f"{error} (it is {getattr(function, '__name__', 'called')}{signature})"
    return None
