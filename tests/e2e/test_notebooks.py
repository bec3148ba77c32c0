"""The notebooks run: their cells are executed in order, inside a running event loop, as a kernel does."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from genevolve_ray.commands.evolve import evolve_async
from genevolve_ray.config import load_config

FOLDER = Path(__file__).parents[2] / "examples/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = (
    "engine.kind=transformers",
    "loop={steps: 2, requests_per_step: 2, group_size: 3, validate_every: 0}",
    "heldout.requests=2",
)


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


async def execute(path: Path) -> dict[str, Any]:
    """Run the code cells of a notebook and return its names; `_` holds the value of each cell's last expression."""
    names: dict[str, Any] = {"__name__": "__main__", "_": []}
    for number, cell in enumerate(cells(path)):
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            if isinstance(last := tree.body[-1], ast.Expr):
                tree.body[-1] = ast.parse("_.append(None)").body[0]
                tree.body[-1].value.args = [last.value]  # type: ignore[attr-defined]
            code: CodeType = compile(
                ast.fix_missing_locations(tree), f"{path.name}[{number}]", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            )
            result = eval(code, names)
            if inspect.isawaitable(result):
                await result
    return names


def test_there_are_two_and_no_outputs_are_committed() -> None:
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
        assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code), path.name


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_run_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: str(tmp_path))
    names = await execute(FOLDER / "01_a_run_step_by_step.ipynb")
    assert names["summary"]["steps"] == 2
    assert [one.key.sample for one in names["group"]] == [0, 1, 2]
    assert sum(names["advantages"].values) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_reading_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await evolve_async(load_config("atlas", list(SMALL)), tmp_path / "run", in_process=True)
    monkeypatch.setenv("GENEVOLVE_RUN", str(tmp_path / "run"))
    names = await execute(FOLDER / "02_read_a_run.ipynb")
    assert [len(group) for group in names["groups"]] == [3] * 4
    assert names["figure"]._repr_svg_().count('<polyline points="40.0,') == 3 and names["sheet"].width == 132 * 3
    assert len(names["_"][-1]) == 2
