"""The stages of `genevolve small setup`: from the installed parts to the folders that the preset `small` names.

Without training, the weights come from `small/prebuilt/`. From nothing, the same stages train them first.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from genevolve_ray.small.parts import PARTS, find_part, locate
from genevolve_ray.small.pictures import PictureLibrary
from genevolve_ray.small.preset import preset_values, tools_config
from genevolve_ray.small.stages import SetupFault, SetupStage, StageWork, world_code
from genevolve_ray.small.weights import prebuilt_stages, trained_stages, unicode_input

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from genevolve_ray.experience.protocol import Embedder
    from genevolve_ray.small.training.settings import SmallTrainings

_EMBEDDED_AT_ONCE = 512
"""Texts that are embedded before their vectors are written."""


def setup_stages(*, from_nothing: bool = False, trainings: SmallTrainings | None = None) -> list[SetupStage]:
    """Return the stages of the setup, each after those that it needs.

    Args:
        from_nothing: train image tower, renderer and cold start, instead of taking the weights of the package.
        trainings: the settings of these trainings; None: the defaults.
    """
    stages = [
        SetupStage(
            "parts",
            "the installed parts have the pinned content",
            _check_parts,
            inputs={part.name: _pins(part.name) for part in PARTS},
            always=True,
        ),
        SetupStage(
            "base",
            "SmolLM2-135M-Instruct in bfloat16",
            _convert_policy,
            needs=("parts",),
            inputs=_inputs("2", "smollm2"),
            license="Apache-2.0",
        ),
        SetupStage(
            "embedder",
            "all-MiniLM-L6-v2",
            _copy_embedder,
            needs=("parts",),
            inputs=_inputs("2", "minilm"),
            license="Apache-2.0",
        ),
        SetupStage(
            "corpus",
            "facts of countries, and pictures for the image search",
            _write_corpus,
            needs=("parts",),
            inputs=_inputs("2", "openmoji", "resvg", "factbook") | unicode_input() | {"code": world_code()},
            license="public domain (texts), CC-BY-SA-4.0 (pictures)",
        ),
        SetupStage(
            "requests",
            "requests with ground truths, split by entity",
            _write_requests,
            needs=("parts",),
            inputs=_inputs("2", "openmoji", "resvg", "factbook") | {"code": world_code()},
            license="CC-BY-SA-4.0 (pictures)",
        ),
        SetupStage(
            "index",
            "embeddings of the corpus",
            _write_index,
            needs=("embedder", "corpus"),
            inputs={"recipe": "1", "settings": json.dumps(preset_values()["tools"], sort_keys=True)},
        ),
    ]
    return [*stages, *(trained_stages(trainings) if from_nothing else prebuilt_stages())]


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


def _write_corpus(work: StageWork) -> None:
    from genevolve_ray.small.corpus import write_corpus
    from genevolve_ray.small.factbook import read_factbook

    write_corpus(installed_library(), read_factbook(locate("factbook")), work.kept, progress=work.progress)
    work.kept.rename(work.out)


def _write_requests(work: StageWork) -> None:
    from genevolve_ray.small.factbook import read_factbook
    from genevolve_ray.small.requests import write_requests

    write_requests(installed_library(), read_factbook(locate("factbook")), work.kept, progress=work.progress)
    work.kept.rename(work.out)


def installed_library() -> PictureLibrary:
    """Return the pictures of the installed OpenMoji. Raises PartFault."""
    return PictureLibrary(locate("openmoji"))


# --- index ---


class CountedEmbedder:
    """Report the progress of an embedder."""

    def __init__(self, embedder: Embedder, total: int, progress: Callable[[str, int, int], None]) -> None:
        """Report embedded texts of a total."""
        self.identity = embedder.identity
        self._embedder, self._done, self._total, self._progress = embedder, 0, total, progress

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return float32[n, d], as the embedder does."""
        rows = await self._embedder.embed(texts)
        self._done += len(texts)
        self._progress("texts embedded", self._done, self._total)
        return rows


def _write_index(work: StageWork) -> None:
    asyncio.run(_embed_corpus(work))


async def _embed_corpus(work: StageWork) -> None:
    """Embed what the tools of the preset rank, so that a run finds all vectors in its cache."""
    from genevolve_ray.experience.factory import build_embedder
    from genevolve_ray.tools.folder.toolbox import ranked_texts, read_folder

    config = tools_config(work.root)
    if config.embedder is None:
        raise SetupFault("small: the preset's tools have no embedder (tools.config.embedder)")
    texts = {name: words for name, words in ranked_texts(read_folder(config)).items() if words}
    total = sum(len(set(words)) for words in texts.values())
    embedder = CountedEmbedder(build_embedder(config.embedder), total, work.progress)
    for name, words in texts.items():
        await embed_in_parts(words, embedder, work.kept, name)
    work.kept.rename(work.out)


async def embed_in_parts(texts: Sequence[str], embedder: Embedder, folder: Path, name: str) -> None:
    """Embed texts, and keep the vectors in a file of `folder` after each part, so that a killed call loses one part.

    Raises:
        SetupFault: when the file cannot be written. A run only warns, and embeds again at its next start.
        InfraFailure: when the embedder is down.
    """
    from genevolve_ray.tools.folder.vectors import TextVectors

    for end in range(_EMBEDDED_AT_ONCE, len(texts) + _EMBEDDED_AT_ONCE, _EMBEDDED_AT_ONCE):
        begun = texts[:end]
        vectors = TextVectors(begun, embedder, folder, name)
        await vectors.rows()
        if (kept := await vectors.kept()) < (wanted := len(set(begun))):
            raise SetupFault(f"{folder}: {kept} of {wanted} embeddings of {name} could be written; is the disk full?")
