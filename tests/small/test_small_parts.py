"""Parts of `small` are found without an import, and used only where their files are the pinned ones."""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import genevolve_ray
from genevolve_ray.small import parts
from genevolve_ray.small.parts import (
    PARTS,
    PINS,
    Arrival,
    PartFault,
    PartFile,
    find_part,
    locate,
    part_states,
    resvg_sha256,
)

Install = Callable[..., Path]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def listing(files: dict[str, bytes]) -> str:
    return digest("".join(f"{digest(data)}  {name}\n" for name, data in sorted(files.items())).encode())


WEIGHTS = b"weights"
PICTURES = {"a.svg": b"<svg/>", "b.svg": b"<svg><g/></svg>"}
ONE_FILE = replace(
    find_part("smollm2"),
    name="one",
    package="small-one",
    root="small_one/weights.bin",
    files=(PartFile("small_one/weights.bin", digest(WEIGHTS)),),
)
FOLDER = replace(
    find_part("openmoji"),
    name="many",
    package="small-many",
    root="small_many/svg",
    files=(PartFile("small_many/svg", listing(PICTURES), "*.svg"),),
)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that installs a package of files, whose import would fail."""
    monkeypatch.setattr(parts, "PARTS", (ONE_FILE, FOLDER))
    monkeypatch.syspath_prepend(str(tmp_path))

    def installed(package: str, files: dict[str, bytes]) -> Path:
        folder = tmp_path / package.replace("-", "_")
        for name, data in {"__init__.py": b"raise RuntimeError('imported')", **files}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        about = tmp_path / f"{folder.name}-0.1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
        return folder

    return installed


def test_a_file_is_found_without_an_import(install: Install) -> None:
    folder = install("small-one", {"weights.bin": WEIGHTS})
    assert locate("one") == folder / "weights.bin"
    assert "small_one" not in sys.modules


def test_a_folder_is_pinned_by_the_listing_of_what_is_used(install: Install) -> None:
    folder = install("small-many", {f"svg/{name}": data for name, data in PICTURES.items()} | {"svg/a.svg.gz": b"x"})
    assert locate("many") == folder / "svg"


def test_a_changed_file_is_named_with_both_hashes(install: Install) -> None:
    folder = install("small-one", {"weights.bin": b"other"})
    with pytest.raises(PartFault) as told:
        locate("one")
    for text in (str(folder / "weights.bin"), digest(b"other")[:16], digest(WEIGHTS)[:16], "setup-small"):
        assert text in str(told.value)


@pytest.mark.parametrize("changed", [{"a.svg": b"<svg> </svg>"}, {"c.svg": b"<svg/>"}], ids=["content", "number"])
def test_a_changed_folder_is_found(install: Install, changed: dict[str, bytes]) -> None:
    install("small-many", {f"svg/{name}": data for name, data in (PICTURES | changed).items()})
    with pytest.raises(PartFault, match=r"the listing of .*svg/\*\.svg has the SHA-256"):
        locate("many")


@pytest.mark.parametrize(("package", "name"), [("small-one", "one"), ("small-many", "many")])
def test_a_part_without_its_files_is_installed_again(install: Install, package: str, name: str) -> None:
    install(package, {})
    with pytest.raises(PartFault, match=f"part {name} lacks .*install {package}=="):
        locate(name)


def test_a_part_that_is_not_installed_names_what_to_install(install: Install) -> None:
    with pytest.raises(PartFault, match=r"small-one==0\.1\.2.*make setup-small.*Linux on x86-64") as told:
        locate("one")
    assert f"-r {parts.PINS}`" in str(told.value)


def test_every_installation_has_the_pins() -> None:
    root = Path(__file__).parents[2]
    assert parts.PINS.samefile(root / parts.REQUIREMENTS)
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert parts.PINS.relative_to(Path(genevolve_ray.__file__).parent).as_posix() in data["genevolve_ray"]


@pytest.mark.parametrize(("least", "fits"), [("0.1", True), ("0.1.0", True), ("0.2", False), ("0.10", False)])
def test_a_library_that_is_too_old_is_named(
    install: Install, least: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PARTS", (replace(ONE_FILE, files=(), root="small_one", least=least),))
    folder = install("small-one", {})
    if fits:
        assert locate("one") == folder
        return
    with pytest.raises(PartFault, match=f"part one is small-one 0.1, older than {least}"):
        locate("one")


def test_the_extra_asks_for_the_oldest_version_that_serves() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for part in PARTS:
        assert bool(part.least) == (not part.files)
        assert not part.least or f"{part.package}>={part.least}" in project["optional-dependencies"]["small"]


def test_code_of_unknown_publishers_is_imported_nowhere() -> None:
    root = Path(__file__).parents[2]
    modules = "|".join(part.root.split("/")[0] for part in PARTS if part.arrival is Arrival.USER)
    named = re.compile(rf"\b(?:import|from) (?:{modules})\b|[\"'](?:{modules})[\"']")
    sources = [path for folder in ("genevolve_ray", "examples") for path in (root / folder).rglob("*.py")]
    naming = {path.name for path in sources if named.search(path.read_text("utf-8"))}
    assert naming == {"parts.py", "pictures.py"}  # The table, and the library that is loaded by its path.


def test_an_unknown_part_is_compared_with_the_known_ones() -> None:
    with pytest.raises(PartFault, match="no part 'minilmm', did you mean minilm"):
        locate("minilmm")


def test_the_table_has_every_part_with_its_fault(install: Install) -> None:
    install("small-one", {"weights.bin": WEIGHTS})
    first, second = part_states()
    assert (first.version, first.fault) == ("0.1", "")
    assert second.version == "" and "not installed" in second.fault


def test_every_part_of_an_unknown_publisher_is_installed_by_the_user_and_pinned() -> None:
    users = [part for part in PARTS if part.arrival is Arrival.USER]
    assert {part.name for part in PARTS} - {part.name for part in users} == {"gguf", "rapidocr", "onnxruntime"}
    assert [part.name for part in users if not part.files] == []


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_what_is_installed_here_is_what_is_pinned(part: parts.SmallPart) -> None:
    states = {state.part.name: state for state in part_states()}
    if not states[part.name].version:
        pytest.skip(f"{part.package} is not installed")
    assert states[part.name].fault == ""


def test_the_library_that_draws_is_pinned_for_each_platform() -> None:
    pins = {resvg_sha256(*place) for place in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))}
    assert len(pins) == 3 and resvg_sha256("win32", "AMD64") == resvg_sha256("linux", "x86_64")


def test_every_compiled_package_has_hashes_for_the_platforms_that_the_message_names() -> None:
    blocks = {
        block.split("==")[0]: block.count("--hash") for block in PINS.read_text().replace("\\\n", "").splitlines()
    }
    assert {name: blocks[name] for name in ("onnxruntime", "pyclipper", "shapely", "resvg-py")} == {
        "onnxruntime": 6,
        "pyclipper": 6,
        "shapely": 6,
        "resvg-py": 3,
    }
