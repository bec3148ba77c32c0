"""Profiles by name, from YAML files and from inline objects, each of which states what differs from another profile.

The result holds every text itself: system prompt, messages and skills. It can be sent to another machine, and a run that
resumes sees the words with which it began.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genevolve_ray.agent.profile import ONE_LINE, PROFILES, PROMPTS_FOLDER, ProtocolProfile, load_prompt
from genevolve_ray.agent.published_texts import published_texts
from genevolve_ray.records.strict_text import YamlFault, read_yaml
from genevolve_ray.records.texts import load_text
from genevolve_ray.tools.skillset import load_skills

DEFAULT = "release"
SOURCE_KEYS = ("extends", "texts_from")
"""Keys of a source that are no settings of the result."""
_MERGED = ("messages", "observations", "sampling")
"""Settings whose own keys may differ one at a time."""
_IMPORTABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_profile_file(text: str) -> bool:
    """Return whether a profile is named by its file."""
    return text.endswith((".yaml", ".yml"))


def read_profile(source: object, folder: Path | None = None) -> ProtocolProfile:
    """Return the profile that a name, a YAML file or a mapping of settings describes.

    A mapping names what it differs from as `extends` (by default `release`), and may take the published program's texts
    from the package or folder in `texts_from`.

    Args:
        source: name, path or mapping.
        folder: the folder that paths may be relative to, besides the working directory.

    Raises:
        ValueError: in one line that names the key and the value.
    """
    return _read(source, folder, ())


def _read(source: object, folder: Path | None, seen: tuple[Path, ...]) -> ProtocolProfile:
    if isinstance(source, ProtocolProfile):
        return source
    if isinstance(source, Mapping):
        return _from_values(dict(source), folder, seen, "profile")
    if not isinstance(source, str):
        raise ValueError(f"profile: a name, a .yaml file or keys are expected, got {source!r}")
    if not is_profile_file(source):
        if source not in PROFILES:
            raise ValueError(f"profile {source!r} is unknown; known: {', '.join(sorted(PROFILES))}, or a .yaml file")
        return PROFILES[source]
    file = _found(source, folder).resolve()
    if file in seen:
        raise ValueError(f"profile {source}: extends itself")
    try:
        values = read_yaml(file)
    except OSError as error:
        raise ValueError(f"profile {source}: {error.strerror or error}") from error
    except (YamlFault, UnicodeDecodeError) as error:
        raise ValueError(f"profile {source}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"profile {source}: keys are expected, got {type(values).__name__}")
    named = {} if file.stem in PROFILES else {"name": file.stem}
    return _from_values(named | values, file.parent, (*seen, file), f"profile {source}")


def _from_values(values: dict[str, Any], folder: Path | None, seen: tuple[Path, ...], where: str) -> ProtocolProfile:
    try:
        base = _read(values.pop("extends", DEFAULT), folder, seen)
    except ValueError as error:
        raise ValueError(f"{where}: extends: {str(error).removeprefix('profile: ')}") from error
    given = base.model_dump()
    layers = [values]
    if (source := values.pop("texts_from", None)) is not None:
        layers.insert(0, _texts(source, folder, where))
    for layer in layers:
        for key, value in layer.items():
            old = given.get(key) if key in _MERGED else None
            given[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    unnamed = "name" not in values
    try:
        profile = _whole(ProtocolProfile.model_validate(given), folder)
    except ValidationError as error:
        raise ValueError("; ".join(_fault(where, entry) for entry in error.errors())) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    if unnamed and profile != base:
        profile = profile.model_copy(update={"name": f"{base.name}+{profile.digest}"})
    if profile.name in PROFILES and profile != PROFILES[profile.name]:
        raise ValueError(f"{where}: name: {profile.name!r} is a built-in profile, and this one differs from it")
    return profile


def _texts(source: object, folder: Path | None, where: str) -> dict[str, Any]:
    """Return the settings that the texts of a published program make up. Raises ValueError naming the key."""
    if not isinstance(source, str):
        raise ValueError(f"{where}: texts_from: a package or a folder is expected, got {source!r}")
    try:
        return published_texts(_place(source, folder))
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: texts_from: {error}") from error


def _fault(where: str, entry: Any) -> str:
    """Return an error of a validation as one line."""
    path = [str(part) for part in entry["loc"]]
    key = ".".join(path)
    if entry["type"] == "extra_forbidden":
        near = (
            difflib.get_close_matches(path[-1], [*ProtocolProfile.model_fields, *SOURCE_KEYS], 1)
            if len(path) == 1
            else []
        )
        return f"{where}: {key}: unknown key{f', did you mean {near[0]}?' if near else ''}"
    message = entry["msg"].removeprefix("Value error, ")
    return f"{where}: {key}: {message}, got {entry['input']!r}" if key else f"{where}: {message}"


def _whole(profile: ProtocolProfile, folder: Path | None) -> ProtocolProfile:
    """Return a profile with every text that it names. Raises ValueError, OSError."""
    messages = {key: _message(key, text, folder) for key, text in profile.messages.model_dump().items()}
    skills = profile.skills
    if isinstance(skills, str):
        skills = load_skills(Path(_place(skills, folder)))
    return profile.model_copy(
        update={
            "prompt": _prompt(profile.prompt, folder),
            "skills": skills,
            "messages": type(profile.messages).model_validate(messages),
        }
    )


def _prompt(source: str, folder: Path | None) -> str:
    """Return the text of a system prompt; one of the project's own keeps its name."""
    if "\n" in source or source.startswith(ONE_LINE) or (PROMPTS_FOLDER / f"{source}.md").is_file():
        return source
    text = load_prompt(_place(source, folder))
    return text if "\n" in text else f"{ONE_LINE}{text}"


def _message(key: str, text: str, folder: Path | None) -> str:
    """Return a message, which may be an importable attribute or a file."""
    if _IMPORTABLE.fullmatch(text) or ("\n" not in text and text.endswith((".txt", ".md")) and " " not in text):
        return load_text(_place(text, folder), PROMPTS_FOLDER, f"messages.{key}", exact=True)
    return text


def _place(text: str, folder: Path | None) -> str:
    """Return a path next to the file that names it, where there is one; else the text as it is."""
    if folder is not None and not Path(text).is_absolute() and (folder / text).exists():
        return str(folder / text)
    return text


def _found(text: str, folder: Path | None) -> Path:
    return Path(_place(text, folder))
