"""`genevolve plugins new`: a package with one working plug-in, a run that uses it, and a test of its contract."""

from __future__ import annotations

import inspect
import keyword
import re
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from genevolve_ray.commands.plugins import role_of
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.plugins import Role

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TEMPLATES = "genevolve_ray.commands.plugin_templates"


@dataclass(frozen=True)
class _Kind:
    """Hold what the files of a role differ in."""

    about: str
    run: str
    """Part of run.yaml, with `{path}` for the class."""
    contract: str
    """Import from the package's contracts, and the call on `{kind}` and `{config}`."""
    call: str


_MEASURED = f'judge: {{type: "{_TEMPLATES}.judge:MyJudge"}} # measures the picture alone: name your own judge\n'
_OPEN = "reward: {components: {contrast: 0.5, saturation: 0.5}} # the weight of each component of the judge\n"
_KINDS = {
    Role.RENDERER: _Kind(
        "draws the pictures of a run",
        'renderer: {type: "{path}", config: {size: 256}}\n',
        "from genevolve_ray.contracts.renderer import check_renderer",
        "check_renderer({kind}({config}()))",
    ),
    Role.JUDGE: _Kind(
        "scores the pictures of a run",
        'judge: {type: "{path}", config: {side: 256}}\n' + _OPEN,
        "from genevolve_ray.contracts.judge import check_judge",
        "check_judge({kind}({config}()))",
    ),
    Role.TOOLS: _Kind(
        "offers a tool to the policy",
        'tools: {type: "{path}"}\n',
        "from genevolve_ray.contracts.tools import ToolsCase, check_tools\n"
        "from genevolve_ray.records.images import MemoryImages",
        "check_tools({kind}({config}(), images), ToolsCase(images))",
    ),
    Role.SUMMARISER: _Kind(
        "turns attempts into advice",
        'summariser: {type: "{path}"}\n',
        "from genevolve_ray.contracts.summariser import check_summariser",
        "check_summariser({kind}({config}()))",
    ),
    Role.REQUESTS: _Kind(
        "gives the requests of a run",
        'requests: {type: "{path}"}\n' + _MEASURED + _OPEN,
        "from genevolve_ray.contracts.requests import RequestsCase, check_request_source\n"
        "from genevolve_ray.records.images import MemoryImages",
        "check_request_source({kind}({config}(), images), RequestsCase(images))",
    ),
    Role.EMBEDDER: _Kind(
        "finds the experience that fits a request",
        'experience: {embedder: {type: "{path}"}}\n',
        "from genevolve_ray.contracts.embedder import check_embedder",
        "check_embedder({kind}({config}()))",
    ),
}


def new_plugin(role_name: str, name: str, parent: Path) -> tuple[list[Path], list[str]]:
    """Write a package below a folder; return its files, and the commands that follow.

    Raises:
        UserFault: for an unknown role, and for a name that no module can have or that is taken.
    """
    role = role_of(role_name)
    _check_name(name)
    folder = parent / name
    if folder.exists() or (parent / f"{name}.py").exists():
        raise UserFault(f"{folder} exists and is not overwritten: choose another name")
    files = _files(role, name)
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return [folder / file for file in files], _commands(role, name)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise UserFault(
            f"name {name!r}: it becomes a Python module, so write lower-case letters, digits and _, beginning with a "
            "letter, and no keyword of Python: for instance my_painter"
        )
    if (found := find_spec(name)) is not None:
        raise UserFault(f"name {name!r}: the module of this name is {found.origin or name}: choose another")


def _commands(role: Role, name: str) -> list[str]:
    return [
        f"genevolve plugins check {role} {name}:{_class(role, name)}",
        f"pytest {name}",
        f"genevolve evolve {name}/run.yaml --run runs/{name}",
    ]


def _class(role: Role, name: str) -> str:
    word = "".join(part.capitalize() for part in name.split("_"))
    return f"{word}Tools" if role is Role.TOOLS else word


def _files(role: Role, name: str) -> dict[str, str]:
    kind = _KINDS[role]
    made, path = _class(role, name), f"{name}:{_class(role, name)}"
    title = name.replace("_", "-")
    check, test, run = _commands(role, name)
    return {
        f"{name}.py": _source(role, name),
        "run.yaml": _RUN.format(name=title, role=role, path=path) + kind.run.replace("{path}", path),
        f"test_{name}.py": _test(kind, name, made),
        "README.md": _README.format(
            title=title, name=name, made=made, about=kind.about, check=check, test=test, run=run
        ),
        "pyproject.toml": _PROJECT.format(title=title, name=name, about=kind.about, group=role.group, path=path),
    }


def _source(role: Role, name: str) -> str:
    """Return the template of a role with the names of the new plug-in."""
    text = inspect.getsource(import_module(f"{_TEMPLATES}.{role}"))
    template, title = f"My{role.capitalize()}", name.replace("_", "-")
    text = text.replace(template, _class(role, name)).replace(f"my-{role}", title)
    if role is Role.TOOLS:
        text = text.replace("MyTool", "".join(part.capitalize() for part in name.split("_"))).replace("my_tool", name)
    return text


def _test(kind: _Kind, name: str, made: str) -> str:
    images = "    images = MemoryImages()\n" if "MemoryImages" in kind.contract else ""
    call = kind.call.format(kind=made, config=f"{made}Config")
    imports = sorted([f"from {name} import {made}, {made}Config", *kind.contract.split("\n")])
    third = [line for line in imports if line.startswith("from genevolve_ray.")]
    own = [line for line in imports if line not in third]
    return "\n".join(
        [
            f'"""{made} keeps the contract of its role."""',
            "",
            "import asyncio",
            "",
            *own,
            "",
            *third,
            "",
            "",
            "def test_it_keeps_its_contract() -> None:",
            f"{images}    asyncio.run({call})",
            "",
        ]
    )


_RUN = """\
# A run of two short steps in the embedded world: a CPU, no download. Every other key is that of the preset.
extends: atlas # or your own file
name: {name}
loop: {{steps: 2, requests_per_step: 2, group_size: 2, validate_every: 2, validation_requests: 2}}
heldout: {{requests: 2}}

# {path} lies beside this file, so it needs no installation.
"""
_README = """\
# {title}

`{name}.py` has the class `{made}`, which {about}. Replace the body at its comments.
Run the commands in the folder above this one.

```bash
{check}
{test}
{run}
```

On a cluster of several machines, install the package on each of them: `pip install ./{name}`. A configuration may then
also use the name that `pyproject.toml` registers: `type: {title}`.
"""
_PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{title}"
version = "0.1.0"
description = "A plug-in for genevolve_ray that {about}"
requires-python = ">=3.11"
dependencies = ["genevolve_ray"]

# The name under which a configuration may use the class.
[project.entry-points."{group}"]
{title} = "{path}"

[tool.setuptools]
py-modules = ["{name}"]
"""
