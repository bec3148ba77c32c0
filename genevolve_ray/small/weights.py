"""The stages that make models: from the weights that ship with the package, or by training them from nothing.

Both ways write the same folders: `image_text` for the judges, `renderer`, and `policy` with its cold start. What is trained
has a stage of its own, so that a damaged model folder is assembled again and never trained again, and so that a change to
the weights of the package and back trains nothing.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import unicodedata
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.small.notices import PROVENANCE, write_notices
from genevolve_ray.small.parts import file_sha256, find_part, locate
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.preset import tools_config
from genevolve_ray.small.stages import SetupFault, SetupStage, StageWork, world_code

if TYPE_CHECKING:
    from genevolve_ray.records.base import Config
    from genevolve_ray.small.training.settings import SmallTrainings

_TRAINED_ON = "trained on OpenMoji, CC-BY-SA-4.0; text encoder Apache-2.0"
_PICTURES = ("openmoji", "resvg")
_NOT_DECISIVE = ("save_every", "checkpoint_every")
"""Keys of trainings that are no inputs."""


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
            "renderer",
            "diffusion pipeline, with MiniLM as text encoder",
            _assemble_renderer,
            needs=("embedder",),
            inputs=prebuilt_inputs("renderer"),
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


def trained_stages(trainings: SmallTrainings | None = None) -> list[SetupStage]:
    """Return the stages that train the models from nothing.

    The settings of a training are inputs: other ones train again, also where a version of the package changes a default.
    The recipe of a stage grows with every change of the code that changes what is trained.
    """
    if trainings is None:
        from genevolve_ray.small.training.settings import SmallTrainings

        trainings = SmallTrainings()
    pictures = {"recipe": "2"} | {f"part {name}": _pinned(name) for name in _PICTURES} | unicode_input()
    return [
        SetupStage(
            "renderer_weights",
            "autoencoder and denoiser, trained here",
            partial(_train_renderer, trainings),
            needs=("embedder",),
            inputs=pictures | {"settings": _settings(trainings.renderer)},
            license=_TRAINED_ON,
            trains=True,
        ),
        SetupStage(
            "renderer",
            "diffusion pipeline, with MiniLM as text encoder",
            _assemble_trained_renderer,
            needs=("embedder", "renderer_weights"),
            inputs={"recipe": "1"},
            license=_TRAINED_ON,
        ),
        SetupStage(
            "image_text_weights",
            "image tower of the judges, trained here",
            partial(_train_image_text, trainings),
            needs=("embedder", "renderer"),
            inputs=pictures | {"settings": _settings(trainings.image_text)},
            license=_TRAINED_ON,
            trains=True,
        ),
        SetupStage(
            "image_text",
            "image tower of the judges, with MiniLM as text tower",
            _assemble_trained_image_text,
            needs=("embedder", "image_text_weights"),
            inputs={"recipe": "1"},
            license=_TRAINED_ON,
        ),
        *_cold_start_stages(trainings),
    ]


def _cold_start_stages(trainings: SmallTrainings) -> list[SetupStage]:
    """Return the stages from the teacher's rows to the policy."""
    return [
        SetupStage(
            "rows",
            "conversations of the scripted teacher",
            partial(_write_rows, trainings),
            needs=("requests", "corpus", "embedder", "index"),
            inputs={"recipe": "2", "code": world_code(), "settings": _settings(trainings.rows)},
            license="public domain (facts)",
        ),
        SetupStage(
            "cold_start",
            "adapter of the cold start, trained here",
            partial(_train_cold_start, trainings),
            needs=("base", "rows"),
            inputs={"recipe": "2", "settings": _settings(trainings.cold_start, exclude_defaults=True)},
            license="Apache-2.0",
            trains=True,
        ),
        SetupStage(
            "policy",
            "the policy after its cold start",
            _merge_trained,
            needs=("base", "cold_start"),
            inputs={"recipe": "2"},
            license="Apache-2.0",
        ),
    ]


def _settings(config: Config, *, exclude_defaults: bool = False) -> str:
    """Return settings as an input of a stage; how often a state is saved changes nothing that is trained.

    Defaults of a class that is not of these trainings are left out: a new key of it would train again.
    """
    return json.dumps(_decisive(config.model_dump(mode="json", exclude_defaults=exclude_defaults)), sort_keys=True)


def _decisive(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _decisive(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in _NOT_DECISIVE
    }


def prebuilt(name: str) -> Path:
    """Return the folder of weights that ship with the package, whose files are those of its record of origin.

    Raises:
        SetupFault: where this installation has none, or others than the record names.
    """
    folder = _prebuilt_folder(name)
    kept = _hashes(folder)
    if not kept:
        raise SetupFault(f"small: {folder} has no weights: `genevolve small setup --from-nothing` trains them")
    for file, sha256 in kept.items():
        found = file_sha256(folder / file) if (folder / file).is_file() else "none"
        if found != sha256:
            raise SetupFault(f"small: {folder / file}: sha256 is {found}, {PROVENANCE} names {sha256}")
    return folder


def prebuilt_inputs(name: str) -> dict[str, str]:
    """Return the hashes of the weights that ship with the package and of their record, as inputs of a stage."""
    folder = _prebuilt_folder(name)
    files = [file for file in (*_hashes(folder), PROVENANCE) if (folder / file).is_file()]
    return {"recipe": "2"} | {file: file_sha256(folder / file) for file in files}


def unicode_input() -> dict[str, str]:
    """Return the version of Unicode that Python knows, as an input of stages: names of pictures come from it."""
    return {"unicode": unicodedata.unidata_version}


def _hashes(folder: Path) -> dict[str, str]:
    """Return the hashes that the record of weights names, by file; none where there is no record. Raises SetupFault."""
    try:
        hashes = json.loads((folder / PROVENANCE).read_bytes())["sha256"]
        return {str(file): str(sha256) for file, sha256 in hashes.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupFault(f"small: {folder / PROVENANCE} names no hashes of weights ({error!r})") from error


def _prebuilt_folder(name: str) -> Path:
    return Path(str(resources.files("genevolve_ray.small") / "prebuilt" / name))


def _weights(name: str) -> Path:
    """Return the one file of weights that the record of a folder names. Raises SetupFault."""
    folder = prebuilt(name)
    files = sorted(file for file in _hashes(folder) if file.endswith(".safetensors"))
    if len(files) != 1:
        raise SetupFault(f"small: {folder} has {len(files)} files of weights, expected 1")
    return folder / files[0]


def _pinned(name: str) -> str:
    return " ".join(file.sha256 for file in find_part(name).files)


def _assemble_image_text(work: StageWork) -> None:
    from genevolve_ray.small.training.image_text import assemble_image_text

    assemble_image_text(_weights("image_text"), work.root / "embedder", work.out)


def _train_image_text(trainings: SmallTrainings, work: StageWork) -> None:
    from genevolve_ray.small.training.image_text import train_image_text
    from genevolve_ray.small.training.views import autoencoder_view

    library, embedder = PictureLibrary(locate("openmoji")), work.root / "embedder"
    view = autoencoder_view(work.root / "renderer")
    weights = train_image_text(library, embedder, work.kept, trainings.image_text, render=view, progress=work.progress)
    work.out.mkdir()
    for file in (weights, weights.with_name(PROVENANCE)):
        shutil.copy(file, work.out)
    write_notices(work.out, "image_text_weights")


def _assemble_trained_image_text(work: StageWork) -> None:
    from genevolve_ray.small.training.image_text import WEIGHTS, assemble_image_text

    assemble_image_text(work.root / "image_text_weights" / WEIGHTS, work.root / "embedder", work.out)


def _assemble_renderer(work: StageWork) -> None:
    from genevolve_ray.small.training.renderer import assemble_renderer

    assemble_renderer(prebuilt("renderer"), work.root / "embedder", work.out)


def _train_renderer(trainings: SmallTrainings, work: StageWork) -> None:
    from genevolve_ray.small.training.renderer import train_renderer

    library, embedder = PictureLibrary(locate("openmoji")), work.root / "embedder"
    shutil.copytree(train_renderer(library, embedder, work.kept, trainings.renderer, work.progress), work.out)
    write_notices(work.out, "renderer_weights")


def _assemble_trained_renderer(work: StageWork) -> None:
    from genevolve_ray.small.training.renderer import assemble_renderer

    assemble_renderer(work.root / "renderer_weights", work.root / "embedder", work.out)


def _write_rows(trainings: SmallTrainings, work: StageWork) -> None:
    from genevolve_ray.records.images import MemoryImages
    from genevolve_ray.small.teacher import write_rows
    from genevolve_ray.tools.folder.toolbox import FolderTools

    tools = FolderTools(tools_config(work.root), MemoryImages()).tools
    sizes = {"train": trainings.rows.train, "validation": trainings.rows.validation}
    asyncio.run(
        write_rows(
            work.root / "requests", tools, work.kept, seed=trainings.rows.seed, sizes=sizes, progress=work.progress
        )
    )
    work.kept.rename(work.out)


def _train_cold_start(trainings: SmallTrainings, work: StageWork) -> None:
    from genevolve_ray.data.sft_folder import PROVENANCE_FILE
    from genevolve_ray.small.training.cold_start import check_start, pack_cold_start, train_cold_start

    rows, base = work.root / "rows", work.root / "base"
    check_start(trainings.cold_start)
    # The file is written last. The finished training stays in `kept` until the setup has recorded what is packed.
    if not (work.kept / PROVENANCE_FILE).is_file():
        train_cold_start(rows, base, work.kept, work.progress, config=trainings.cold_start)
    pack_cold_start(work.kept, rows, base, work.out)
    write_notices(work.out, "cold_start")


def _merge_trained(work: StageWork) -> None:
    from genevolve_ray.small.convert import merge_cold_start

    merge_cold_start(work.root / "cold_start", work.root / "base", work.out)


def _merge_prebuilt(work: StageWork) -> None:
    from genevolve_ray.small.convert import merge_cold_start

    merge_cold_start(prebuilt("cold_start"), work.root / "base", work.out)
