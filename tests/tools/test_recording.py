"""Which answers of a run's tools are recorded, and which are not."""

from __future__ import annotations

from pathlib import Path

from frozen_corpora import ask, frozen_local, questions_of, run_images
from mcp_servers import command

from genevolve_ray.commands.corpus import freeze_runs
from genevolve_ray.evolution.plugins import ToolsSpec
from genevolve_ray.records.observation import SearchObservation, TextObservation
from genevolve_ray.tools.corpus.snapshot import Corpus
from genevolve_ray.tools.mcp.config import McpConfig


async def test_beside_a_corpus_only_the_tools_of_servers_are_recorded(tmp_path: Path) -> None:
    corpus, _ = await frozen_local(tmp_path)
    mcp = McpConfig(servers={"it": command("mcp_sdk_server.py")}, allow=["it_add"], start_timeout_s=60)
    spec = ToolsSpec(type="frozen", config={"corpus": str(corpus), "on_miss": "report"}, mcp=mcp)
    box = spec.build(run_images(tmp_path / "again"))
    missed = {"queries": ["green heron"], "top_k": 2}
    seen = await ask(box.tools, [("search", missed), ("it_add", {"a": 1, "b": 2})])
    await box.aclose()
    assert isinstance(seen[0], SearchObservation)
    assert seen[1] == TextObservation(text="3")
    freeze_runs([tmp_path / "again"], tmp_path / "added")
    assert Corpus.open(tmp_path / "added").tools.keys() == {"it_add"}
    freeze_runs([corpus, tmp_path / "again"], tmp_path / "both")
    assert missed not in questions_of(tmp_path / "both", "search")
    # The recorded questions stay examples for the checks of plug-ins.
    assert box.examples.keys() == {"search", "image_search", "query_knowledge"}
