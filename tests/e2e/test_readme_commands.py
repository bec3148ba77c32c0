"""Every command line of the README's table, typed as it stands, in its order, in an empty folder."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
from grading_server import grading
from typed_lines import Typist

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\| `((?:[A-Z_]+=\S+ )?genevolve [^`]+)` \|", README, re.MULTILINE)
HERE = ("--in-process", "--set", "engine.kind=transformers")
SMALL = tuple(
    word
    for key in ("requests_per_step=1", "group_size=2", "validation_requests=1")
    for word in ("--set", f"loop.{key}")
) + ("--set", "heldout.requests=3")
MORE: dict[str, tuple[str, ...]] = {
    "doctor atlas": ("--set", "engine.kind=transformers"),
    "demo": ("--steps", "1", *HERE, *SMALL),
    "evolve": ("--steps", "2", *HERE, *SMALL),
    "sft": ("--steps", "1", "--threads", "1"),
    "rollout": HERE,
    "render": HERE,
    "judge": HERE,
    "bench atlas": ("--engine", "transformers", "--requests", "2"),
    "bench": HERE,
    "rescore": HERE,
    "ablate": ("--steps", "1", "--requests", "1", "--set", "engine.kind=transformers", *SMALL),
    "serve": ("--in-process", "--port", "0"),
    "gateway serve": (*SMALL, "--set", "loop.steps=1"),
    "worker": ("--engine", "transformers"),
}
"""What is added to a line, by how it begins: tiny settings and no Ray. The lines themselves are not changed."""


def more(words: str) -> tuple[str, ...]:
    known = [start for start in MORE if f"{words} ".startswith(f"{start} ")]
    return MORE[max(known, key=len)] if known else ()


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def test_every_line_of_the_table_can_be_typed_in_its_order(tmp_path: Path) -> None:
    typist = Typist(tmp_path)
    port = free_port()
    with grading() as model:
        token = ""
        lines = iter(LINES)
        for line in lines:
            words = line.partition("genevolve ")[2]
            if words.startswith("gateway serve"):
                worker = next(lines)
                typist.replaced = {"GENEVOLVE_TOKEN=...": f"GENEVOLVE_TOKEN={token}", ":8470": f":{port}"}
                with typist.serving(line, "gateway listening", (*more(words), "--port", port)) as server:
                    typist.type(worker, more("worker"))
                    assert server.process.wait(120) == 0
            elif words.startswith("view"):
                with typist.serving(line, "Ctrl-C ends it", ("--port", "0")):
                    pass
            elif words.startswith("serve"):
                with typist.serving(line, "listens at", more(words)):
                    pass
            else:
                printed = typist.type(line, more(words))
                token = printed.strip() if words.startswith("gateway token new") else token
            if words.startswith("samples"):
                # The one address that a user enters: that of a vision model.
                config = tmp_path / "samples/wise.yaml"
                config.write_text(config.read_text().replace("http://127.0.0.1:8002/v1", model.url))
    out = tmp_path / "out"
    for folder in ("judge", "bench/judge", "knowgen/judge"):
        rows = json.loads((out / folder / "results_eval.json").read_text())
        assert sum(row.get("eval_success") is True for row in rows) >= 6, folder
    assert json.loads((out / "wise/judge/summary.json").read_text())["overall"] is not None
    assert json.loads((out / "atlas.json").read_text())["requests"] == 2
    assert (tmp_path / "runs/first/report.html").is_file() and (tmp_path / "runs/tuned/model.safetensors").is_file()
