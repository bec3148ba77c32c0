"""Let torchvision's registry wheel work beside a CPU build of torch; `make setup` installs it.

torchvision from the package registry is linked against CUDA. Beside a CPU build of torch its compiled part does not load.
Then `import torchvision` fails ("operator torchvision::nms does not exist"), and with it transformers and vLLM, although
nothing in a vision-language model calls these operators. This module declares the operators without a kernel, so that
the Python part of torchvision imports: its transforms and the image processors work, and a call of an
operator raises an error. torchvision's own CPU build, from torch's index, is left alone.

The declaration must precede the import in every process: engine processes of vLLM, Ray workers, tests. Therefore
`python -m genevolve_ray._torchvision` copies this file into site-packages and adds a `.pth` file that imports it when an
interpreter starts. The copy imports torch only when something imports torchvision.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

COPY = "_genevolve_torchvision"
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[Any] = []


class OperatorFinder(MetaPathFinder):
    """Declare the operators at the first import of torchvision, which it then leaves to the other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return None always."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            spec = PathFinder.find_spec(fullname, path)
            if spec is not None and spec.origin is not None:
                declare_operators(Path(spec.origin).parent)
        return None


def declare_operators(folder: Path) -> bool:
    """Declare the operators where the compiled part of the torchvision in `folder` does not load; return whether."""
    import torch

    compiled = sorted(folder.glob("_C*.so")) + sorted(folder.glob("_C*.pyd"))
    try:
        for file in compiled:
            torch.ops.load_library(str(file))
    except OSError:
        compiled = []
    if compiled:
        return False
    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(operator)
    _declared.append(library)  # Its operators end with it.
    return True


def install(site_packages: Path) -> None:
    """Write the copy and its `.pth` file into `site_packages`."""
    (site_packages / f"{COPY}.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (site_packages / f"{COPY}.pth").write_text(f"import {COPY}\n", encoding="utf-8")


if __name__ == COPY:
    sys.meta_path.insert(0, OperatorFinder())
elif __name__ == "__main__":
    import sysconfig

    install(Path(sysconfig.get_path("purelib")))
