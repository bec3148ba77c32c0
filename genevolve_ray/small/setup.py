"""The stages of `genevolve small setup`: from the installed parts to the folders that the preset `small` names.

Without training, the weights come from `small/prebuilt/`. From nothing, the same stages train them first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from genevolve_ray.records.published.files import write_bytes
from genevolve_ray.records.strict_text import load_yaml
from genevolve_ray.small.parts import PARTS, find_part, locate
from genevolve_ray.small.stages import SetupFault, SetupStage, StageWork, list_files

PRESET_FOLDER = Path("runs/small")
"""The folder of the setup that the preset `small` names."""


def setup_stages(*, from_nothing: bool = False) -> list[SetupStage]:
    """Return the stages of the setup, each after those that it needs."""
    return [
        SetupStage(
            "parts",
            "the installed parts have the pinned content",
            _check_parts,
            inputs={part.name: _pins(part.name) for part in PARTS},
        ),
        SetupStage(
            "base",
            "SmolLM2-135M-Instruct in bfloat16",
            _convert_policy,
            inputs=_inputs("1", "smollm2"),
            license="Apache-2.0",
        ),
        SetupStage(
            "embedder",
            "all-MiniLM-L6-v2",
            _copy_embedder,
            inputs=_inputs("1", "minilm"),
            license="Apache-2.0",
        ),
    ]


def _inputs(recipe: str, *names: str) -> dict[str, str]:
    """Return the inputs of a stage: the number of its recipe, which grows with every change of its result, and parts."""
    return {"recipe": recipe} | {f"part {name}": _pins(name) for name in names}


def _pins(name: str) -> str:
    part = find_part(name)
    return " ".join(file.sha256 for file in part.files) or f"{part.package}=={part.version}"


def _check_parts(work: StageWork) -> None:
    for done, part in enumerate(PARTS):
        work.progress(part.name, done, len(PARTS))
        locate(part.name)


def _convert_policy(work: StageWork) -> None:
    from genevolve_ray.small.convert import convert_policy

    convert_policy(locate("smollm2"), work.out)


def _copy_embedder(work: StageWork) -> None:
    from genevolve_ray.small.convert import copy_embedder

    copy_embedder(locate("minilm"), work.out)


# --- weights of the package ---


def prebuilt(name: str) -> Path:
    """Return the folder of weights that ship with the package.

    Raises:
        SetupFault: where this installation has none.
    """
    folder = Path(str(resources.files("genevolve_ray.small") / "prebuilt" / name))
    if not (folder / "provenance.json").is_file():
        raise SetupFault(f"small: {folder} holds no weights: `genevolve small setup --from-nothing` trains them")
    return folder


def _prebuilt_inputs(name: str) -> dict[str, str]:
    folder = Path(str(resources.files("genevolve_ray.small") / "prebuilt" / name))
    return {f"prebuilt {file}": made.sha256 for file, made in list_files(folder).items()}


# --- a folder of one's own ---


def own_preset(out: Path) -> Path:
    """Write OUT/small.yaml, which is the preset `small` over another folder, and return its path."""
    import yaml

    text = (resources.files("genevolve_ray") / "configs" / "small.yaml").read_text(encoding="utf-8")
    moved = _moved(load_yaml(text, "preset small"), out)
    values = {"extends": "small", **moved}
    return write_bytes(out / "small.yaml", yaml.safe_dump(values, sort_keys=False).encode())


def _moved(values: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Return the values that name a file of the setup, with their keys, as files below another folder."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            if inner := _moved(value, out):
                found[key] = inner
        elif any(path != moved for path, moved in _paths(value, out)):
            paths = [moved for _, moved in _paths(value, out)]
            found[key] = paths if isinstance(value, list) else paths[0]
    return found


def _paths(value: Any, out: Path) -> Iterator[tuple[Any, Any]]:
    """Yield (value, the same below another folder) of a value, or of the values of a list."""
    for one in value if isinstance(value, list) else [value]:
        below = isinstance(one, str) and Path(one).is_relative_to(PRESET_FOLDER)
        yield one, str(out / Path(one).relative_to(PRESET_FOLDER)) if below else one
