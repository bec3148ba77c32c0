"""Write `docs/configuration.md` from the configuration classes: `python -m docs.configuration` (`make docs`).

The string below a field describes its key, next to the code. The strings are read from the source text: pydantic could
keep them at run time, but that would add a tenth of a second to every command.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from genevolve_ray.commands.build_config import DataConfig
from genevolve_ray.commands.data import LeakCommandConfig
from genevolve_ray.config import RunConfig
from genevolve_ray.data.sft_config import SftRowsConfig
from genevolve_ray.engines.chat_transformers import TransformersChatConfig
from genevolve_ray.engines.chat_vllm import VllmChatConfig
from genevolve_ray.engines.openai import OpenAIPolicyConfig
from genevolve_ray.evolution.plugins import OWN, PluginSpec
from genevolve_ray.judges.rapidocr_reader import RapidOcrConfig
from genevolve_ray.records.base import Config
from genevolve_ray.small.training.image_text import ImageTextTraining
from genevolve_ray.small.training.renderer import RendererTraining
from genevolve_ray.small.training.settings import SmallRowsConfig

PAGE = Path(__file__).with_name("configuration.md")
HEAD = """\
# Configuration reference

<!-- Written by `make docs` from the classes in `genevolve_ray`; change the strings below their fields instead. -->

Every key of a run, with its type, default and meaning. Set one with `--set key=value` (the value is YAML) or in a YAML
file; `genevolve_ray/configs/atlas.yaml` is a commented example. An unknown key or an invalid value ends the command with
one line that names it. A type in parentheses has its own keys, which the linked section lists. Presets may set other
values than these defaults.

## Layers

A file holds only what differs from its base:

```yaml
extends: paper # or a .yaml file, relative to this one; a base may extend another
policy: {model: /models/policy}
learner: {lora: {}}
renderer: {config: {url: ["http://gpu-1:8000"]}}
```

- Mappings are merged key by key. A list or a plain value replaces that of the base.
- A plug-in (`requests`, `tools`, `renderer`, `judge`, `summariser`) with another `type` takes nothing from the base's
  plug-in. Without a `type`, or with the same one, the settings are merged. The same holds for `--set ROLE.type=...`.
- `null` switches off an optional group, such as `learner.lora`. `{}` switches it on and keeps the values of the base.
- `--set` applies last, over all layers.

An error names the file and the line where the key stands, also in a base. The resolved configuration of a run lists its
layers under `layers`. `genevolve doctor` warns when a run has no experience, no VED or no KL, but its base has them.
"""

OTHERS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("Local judge's model, `backend: vllm`", "judge.config.model", VllmChatConfig),
    ("Local judge's model, `backend: transformers`", "judge.config.model", TransformersChatConfig),
    ("Reader of the judge `ocr`, `reader: rapidocr`", "judge.config.reader_config", RapidOcrConfig),
    ("Policy endpoint: the file of `--policy FILE.yaml`", "", OpenAIPolicyConfig),
    ("Fine-tuning: `--set` of `genevolve sft ROWS.jsonl`", "", SftRowsConfig),
    ("Renderer: `--set` of `genevolve small setup --from-nothing`", "renderer", RendererTraining),
    ("Image tower: `--set` of `genevolve small setup --from-nothing`", "image_text", ImageTextTraining),
    ("Rows of the teacher: `--set` of `genevolve small setup --from-nothing`", "rows", SmallRowsConfig),
    ("Data builds (`genevolve data build`)", "data", DataConfig),
    ("Check for leaks: `--set` of `genevolve data leaks`", "", LeakCommandConfig),
)
"""Settings that no field of a run leads to: title, key above them, class."""


@dataclass
class Section:
    """Describe a table of the page: the settings of one class, at one place or at several."""

    kind: type[BaseModel]
    name: str = ""
    """Title; by default the places."""
    places: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The heading."""
        ends = {place.rpartition(".")[2] for place in self.places}
        if len(self.places) > 3 and len(ends) == 1:
            return f"`{ends.pop()}` of every service"
        return self.name or ", ".join(f"`{place}`" for place in self.places)

    @property
    def anchor(self) -> str:
        """The name that other sections link to."""
        return self.kind.__name__.lower()


@dataclass(frozen=True)
class Key:
    """Describe one field as the page shows it."""

    name: str
    type: str
    default: str
    meaning: str


@cache
def described(kind: type[BaseModel]) -> dict[str, str]:
    """Return the strings below the fields of one class, by field, each on one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    body = typing.cast(ast.ClassDef, tree.body[0]).body
    found = {}
    for statement, following in zip(body, body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[statement.target.id] = " ".join(str(following.value.value).split())
    return found


def meaning(kind: type[BaseModel], name: str) -> str:
    """Return the meaning of a field from the class or the nearest base that describes it; "" when none does."""
    bases = (base for base in kind.__mro__ if issubclass(base, BaseModel) and base is not BaseModel)
    return next((text for base in bases if (text := described(base).get(name))), "")


def parts(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the settings classes inside a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from parts(inner)


def sections() -> tuple[list[Section], list[Section], list[Section]]:
    """Return the tables of a run, of plug-ins and other settings, and of the keys that several of them share."""
    run: dict[type[BaseModel], Section] = {}
    _collect(run, RunConfig, "", name="The whole run")
    beside: dict[type[BaseModel], Section] = {}
    for role, named in OWN.items():
        for name, path in named.items():
            module, _, kind = path.partition(":")
            config = getattr(importlib.import_module(module), kind).Config
            above = f"experience.embedder.{name}" if role == "embedder" else f"{role}.config"
            if config not in run:
                _collect(beside, config, above, run, f"`{role}` `{name}`")
    for title, above, config in OTHERS:
        _collect(beside, config, above, run, title)
    listed = [*run.values(), *beside.values()]
    shared = {base for section in listed for base in section.kind.__mro__[1:] if _shared(base)} - {*run, *beside}
    ordered = sorted(shared, key=lambda base: (len(base.__mro__), base.__name__))
    return list(run.values()), list(beside.values()), [Section(base, f"`{base.__name__}`") for base in ordered]


def _collect(
    found: dict[type[BaseModel], Section],
    kind: type[BaseModel],
    place: str,
    known: Mapping[type[BaseModel], Section] | None = None,
    name: str = "",
) -> None:
    """Add the table of a class and those of the classes that its fields hold, each class once, with all its places."""
    kind = _merged(kind)
    section = (known or found).get(kind) or found.setdefault(kind, Section(kind))
    section.name = ", ".join(filter(None, [section.name, name]))
    if place in section.places:
        return
    section.places.append(place)
    for key, info in kind.model_fields.items():
        for inner in parts(info.annotation):
            _collect(found, inner, f"{place}.{key}" if place else key, known)


def _merged(kind: type[BaseModel]) -> type[BaseModel]:
    """Return the class that represents another on the page: the plug-ins of most roles have the same keys."""
    same = issubclass(kind, PluginSpec) and kind.model_fields.keys() == PluginSpec.model_fields.keys()
    return PluginSpec if same else kind


def _shared(base: type) -> bool:
    return issubclass(base, Config) and base is not Config and not issubclass(RunConfig, base)


def keys(section: Section) -> list[Key]:
    """Return the rows of a table: the fields that the class adds to its shared bases, or sets differently."""
    return [
        Key(name, _type(info), _default(info), meaning(section.kind, name))
        for name, info in section.kind.model_fields.items()
        if not any(_same(base, name, info) for base in section.kind.__mro__[1:] if _shared(base))
    ]


def _same(base: type[BaseModel], name: str, info: FieldInfo) -> bool:
    other = base.model_fields.get(name)
    return other is not None and (_type(other), _default(other)) == (_type(info), _default(info))


def _type(info: FieldInfo) -> str:
    text, null, _ = spelled(info.annotation).partition(" or null")
    return _bounded(text, info.metadata) + null


def _bounded(text: str, limits: Iterable[Any]) -> str:
    """Return a type in words with the bounds of its values."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of"}
    bounds = [
        f"{sign} {value:g}"
        for limit in limits
        for name, sign in signs.items()
        if (value := getattr(limit, name, None)) is not None
    ]
    return " ".join(filter(None, [text, ", ".join(bounds)]))


def spelled(annotation: Any) -> str:
    """Return a type in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return ", ".join(f"`{_yaml(value)}`" for value in inner)
    if origin is Annotated:
        limits = [limit for held in inner[1:] for limit in (held.metadata if isinstance(held, FieldInfo) else [held])]
        return _bounded(spelled(inner[0]), limits)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(spelled(one) for one in inner)
    if origin in (list, tuple):
        held = [one for one in inner if one is not Ellipsis]
        return f"list of {', '.join(dict.fromkeys(spelled(one) for one in held))}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{one.value}`" for one in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = _merged(annotation)
        return f"([{kind.__name__}](#{kind.__name__.lower()}))"
    names = {str: "text", Path: "path", bool: "bool", int: "int", float: "float"}
    return names.get(annotation, getattr(annotation, "__name__", "any"))


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        changed = value.model_dump(mode="json", exclude_defaults=True)
        return f"`{_yaml(changed)}`" if changed else ""
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """Return a value in YAML, on one line."""
    value = value.value if isinstance(value, Enum) else value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_yaml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_yaml(inner) for inner in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}" if value != int(value) or abs(value) >= 1e6 else f"{value:.1f}"
    return str(value) if str(value).strip() else f'"{value}"'


def _sentence(kind: type[BaseModel]) -> str:
    """Return the first sentence of a class's docstring, without its full stop."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def page() -> str:
    """Return the whole page."""
    run, beside, shared = sections()
    text = [HEAD, "## A run", *map(_table, run)]
    named = ", ".join(f"[{section.name}](#{section.anchor})" for section in beside if section.name)
    text += ["## Plug-ins and other settings", f"{named}.", *map(_table, beside)]
    text += [
        "## Shared keys",
        "Several of the sections above have these keys in addition to their own.",
        *map(_table, shared),
    ]
    return "\n\n".join(part.strip() for part in text) + "\n"


def _table(section: Section) -> str:
    places = ", ".join(f"`{place}`" for place in dict.fromkeys(section.places) if place)
    about = f"{_sentence(section.kind)}." if section.title != _sentence(section.kind) else ""
    bases = [base for base in section.kind.__mro__[1:] if _shared(base)]
    location = f"Location: {places}." if places and section.title != places else ""
    lines = [f'### <a id="{section.anchor}"></a>{section.title}', " ".join(filter(None, [about, location]))]
    if rows := keys(section):
        above = f"{section.places[0]}." if len(section.places) == 1 and section.places[0] else ""
        cells = [
            f"| `{above}{key.name}` | {_cell(key.type)} | {_cell(key.default)} | {_cell(key.meaning)} |" for key in rows
        ]
        lines.append("\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *cells]))
    if bases:
        names = ", ".join(f"[{base.__name__}](#{base.__name__.lower()})" for base in bases)
        lines.append(f"Also the keys of {names}.")
    return "\n\n".join(line for line in lines if line)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


@cache
def key_paths() -> frozenset[str]:
    """Return every key that a run takes, as full paths; `ROLE.config.KEY` for the settings of our plug-ins."""
    run, beside, _ = sections()
    return frozenset(
        f"{place}.{name}" if place else name
        for section in [*run, *beside]
        for place in section.places
        for name in section.kind.model_fields
        if section.kind not in (SftRowsConfig, OpenAIPolicyConfig)
    )


def undescribed() -> list[str]:
    """Return the fields, as `Class.field`, that no string describes."""
    return [
        f"{section.kind.__name__}.{name}"
        for group in sections()
        for section in group
        for name in section.kind.model_fields
        if not meaning(section.kind, name)
    ]


if __name__ == "__main__":
    if missing := undescribed():
        sys.exit(f"no string below the field: {', '.join(missing)}")
    PAGE.write_text(page(), encoding="utf-8")
