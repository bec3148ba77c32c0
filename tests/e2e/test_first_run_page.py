"""The rehearsal of docs/first_run.md, typed from the page: services over HTTP, in this process and on Ray."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from docs_pages import ROOT
from grading_server import grading
from typed_lines import Typist

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3000)]

PAGE = (ROOT / "docs" / "first_run.md").read_text(encoding="utf-8").partition("## A rehearsal on one machine")[2]
SERVICES = re.search(r"```console\n(.*?)```", PAGE, re.DOTALL)
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SMALL = ("--set", "loop.group_size=2", "--set", "loop.validation_requests=2", "--set", "heldout.requests=3")
ON_RAY = ("--set", "cluster.object_store_mib=80", "--set", "cluster.start_timeout=400")
HERE = ("--in-process",)
NEEDS_PLACE = ("evolve", "rollout", "render", "judge", "bench")
"""Commands that run on Ray, or in this process where they are asked to."""


def more(command: str, place: Sequence[str]) -> tuple[str, ...]:
    """Return what is added to a line: where it runs, the engine that starts soonest, and tiny numbers."""
    if command not in NEEDS_PLACE:
        return ()
    engine = ("--set", "engine.kind=transformers")
    return (*place, *engine, *(SMALL if command == "evolve" else ()))


def scored(path: Path) -> list[dict[str, Any]]:
    """Return the scored rows of an evaluation."""
    return [row for row in json.loads(path.read_text(encoding="utf-8")) if row.get("eval_success") is True]


@pytest.mark.parametrize("place", [HERE, ON_RAY], ids=["in-process", "ray"])
def test_every_line_of_the_rehearsal_can_be_typed(place: tuple[str, ...], tmp_path: Path) -> None:
    assert SERVICES is not None
    renderer = SERVICES[1].splitlines()[0]
    typist = Typist(tmp_path)
    with grading() as model, typist.serving(renderer, "listens at", ("--port", "0")) as service:
        typist.replaced = {
            "http://127.0.0.1:8001": service.printed(r"listens at (http://[\d.:]+)/generate"),
            "http://127.0.0.1:8002/v1": model.url,
        }
        for line in LINES:
            if line.startswith("cd "):
                typist.folder /= line.removeprefix("cd ")
            else:
                typist.type(line, more(line.split()[1], place))
        graded = [call.body for call in model.calls if "image_url" in str(call.body)]
    run = tmp_path / "rehearsal"
    manifests = sorted((run / "runs/rehearsal/steps").glob("*/manifest.json"))
    assert len(manifests) == 2
    summary = json.loads((run / "runs/rehearsal/summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 2 and "heldout_gain" in summary
    assert summary["heldout_renderers_final"] and all("qwen" in name for name in summary["heldout_renderers_final"])
    alone, whole = (scored(run / "out" / name / "results_eval.json") for name in ("judge", "bench/judge"))
    assert len(alone) >= 6 and len(whole) >= 6
    # The grades were read off the pictures: they differ, and both ways to the same program agree.
    assert len({json.dumps(row["scores"], sort_keys=True) for row in alone}) > 1
    assert {row["id"]: row["scores"]["overall"] for row in alone} == {
        row["id"]: row["scores"]["overall"] for row in whole
    }
    assert len(graded) >= len(alone) + len(whole)
    exported = run / "exported"
    assert (exported / "model.safetensors").is_file() and "rehearsal" in (exported / "README.md").read_text()
