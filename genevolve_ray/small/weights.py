"""The stages that make models: from the weights that ship with the package, or by training them from nothing.

Both ways write the same folders: `image_text` for the judges, `renderer`, and `policy` with its cold start.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from genevolve_ray.small.parts import find_part, locate
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.stages import SetupFault, SetupStage, StageWork, list_files

PROVENANCE = "provenance.json"
_TRAINED_ON = "trained on OpenMoji, CC-BY-SA-4.0; text encoder Apache-2.0"
_PICTURES = ("openmoji", "resvg")


def prebuilt_stages() -> list[SetupStage]:
    """Return the stages that assemble models from the weights of the package."""
    return [
        SetupStage(
            "image_text",
            "image tower of the judges, with MiniLM as text tower",
            _assemble_image_text,
            needs=("embedder",),
            inputs=prebuilt_inputs("image_text"),
            license=_TRAINED_ON,
        ),
        SetupStage(
            "policy",
            "the policy after its cold start",
            _merge_prebuilt,
            needs=("base",),
            inputs=prebuilt_inputs("cold_start"),
            license="Apache-2.0",
        ),
    ]


def trained_stages() -> list[SetupStage]:
    """Return the stages that train the models from nothing."""
    return [
        SetupStage(
            "image_text",
            "image tower of the judges, trained here, with MiniLM as text tower",
            _train_image_text,
            needs=("embedder",),
            inputs={"recipe": "1"} | {f"part {name}": _pinned(name) for name in _PICTURES},
            license=_TRAINED_ON,
        ),
    ]


def prebuilt(name: str) -> Path:
    """Return the folder of weights that ship with the package.

    Raises:
        SetupFault: where this installation has none.
    """
    folder = _prebuilt_folder(name)
    if not (folder / PROVENANCE).is_file():
        raise SetupFault(f"small: {folder} has no weights: `genevolve small setup --from-nothing` trains them")
    return folder


def prebuilt_inputs(name: str) -> dict[str, str]:
    """Return the hashes of the weights that ship with the package, as inputs of a stage."""
    return {"recipe": "1"} | {file: made.sha256 for file, made in list_files(_prebuilt_folder(name)).items()}


def _prebuilt_folder(name: str) -> Path:
    return Path(str(resources.files("genevolve_ray.small") / "prebuilt" / name))


def _weights(name: str) -> Path:
    """Return the one file of weights of a folder that ships. Raises SetupFault."""
    files = sorted(prebuilt(name).glob("*.safetensors"))
    if len(files) != 1:
        raise SetupFault(f"small: {_prebuilt_folder(name)} has {len(files)} files of weights, expected 1")
    return files[0]


def _pinned(name: str) -> str:
    return " ".join(file.sha256 for file in find_part(name).files)


def _assemble_image_text(work: StageWork) -> None:
    from genevolve_ray.small.training.image_text import assemble_image_text

    assemble_image_text(_weights("image_text"), work.root / "embedder", work.out)


def _train_image_text(work: StageWork) -> None:
    from genevolve_ray.small.training.image_text import assemble_image_text, train_image_text

    embedder = work.root / "embedder"
    weights = train_image_text(PictureLibrary(locate("openmoji")), embedder, work.kept, progress=work.progress)
    assemble_image_text(weights, embedder, work.out)


def _merge_prebuilt(work: StageWork) -> None:
    from genevolve_ray.small.convert import merge_cold_start

    merge_cold_start(prebuilt("cold_start"), work.root / "base", work.out)
