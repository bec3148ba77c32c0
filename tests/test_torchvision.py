"""torchvision's registry wheel beside a CPU build of torch: its operators are declared before its import."""

from __future__ import annotations

import importlib.metadata as metadata
import subprocess
import sys
from pathlib import Path

import pytest

from genevolve_ray import _torchvision
from genevolve_ray._torchvision import COPY, install
from genevolve_ray.doctor.machine import torch_cuda_version

WHEEL = "def _meta_nms(): ...\nimport torch\ntorch.library.register_fake('torchvision::nms')(_meta_nms)\n"
"""As the real package does at its import: it fails where no operator of this name is declared."""


def in_a_new_process(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that starts with the `.pth` files of `paths`, and none of this environment's."""
    add = "".join(f"import site; site.addsitedir({str(path)!r}); " for path in paths)
    command = [sys.executable, "-S", "-c", add + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder of packages in front of the installed ones, with a torchvision whose compiled part does not load."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(WHEEL)
    (package / "_C.so").write_bytes(b"linked against other libraries")
    installed = Path(str(metadata.distribution("torch").locate_file("")))
    # A plain path: the .pth files of the environment, which may declare the operators already, are not read.
    (tmp_path / "installed.pth").write_text(f"{installed}\n")
    return tmp_path


def test_the_installed_copy_declares_them_in_every_new_process(packages: Path) -> None:
    plain = in_a_new_process("import torchvision", packages)
    assert plain.returncode == 1 and "torchvision::nms" in plain.stderr
    install(packages)
    assert {file.name for file in packages.glob(f"{COPY}.*")} == {f"{COPY}.py", f"{COPY}.pth"}
    calls = "import sys, torchvision, torch; torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
    declared = in_a_new_process(calls, packages)
    assert "NotImplementedError" in declared.stderr, "declared, without a kernel"
    quiet = in_a_new_process("import sys; print([m for m in ('torch', 'torchvision') if m in sys.modules])", packages)
    assert quiet.stdout.strip() == "[]", "an interpreter that imports neither starts as fast as before"


def test_a_compiled_part_that_loads_is_left_alone(packages: Path) -> None:
    code = (
        "import torch; from pathlib import Path; from genevolve_ray import _torchvision;"
        "torch.ops.load_library = print; print(_torchvision.declare_operators(Path('{}')))"
    ).format(packages / "torchvision")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert answer.stdout.splitlines() == [str(packages / "torchvision/_C.so"), "False"]


def test_nothing_is_installed_by_an_import(packages: Path) -> None:
    assert _torchvision.__name__ != COPY
    assert not any(isinstance(finder, _torchvision.OperatorFinder) for finder in sys.meta_path)


@pytest.mark.skipif(torch_cuda_version() is not None, reason="torchvision loads beside a CUDA build")
def test_the_environment_imports_torchvision_with_its_transforms() -> None:
    code = (
        "import numpy, torch; from torchvision.transforms.v2 import functional as F;"
        "print(tuple(F.resize(torch.zeros(3, 8, 8), [4, 4]).shape))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert answer.stdout.strip() == "(3, 4, 4)", answer.stderr
