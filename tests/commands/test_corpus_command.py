"""`genevolve corpus`: a run is frozen, played again without its sources, merged, described and served."""

from __future__ import annotations

import asyncio
import filecmp
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from frozen_corpora import (
    CALLS,
    EPISODE,
    Moody,
    OwnTools,
    ask,
    frozen_local,
    local_spec,
    questions_of,
    recording,
    run_images,
    thawed,
)

from genevolve_ray.atlas.sources import AtlasTools
from genevolve_ray.commands.corpus import freeze_runs
from genevolve_ray.commands.evolve import evolve_run
from genevolve_ray.commands.plugins import check_plugin
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.machine import Status
from genevolve_ray.doctor.parts import plugins
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.observation import ImageObservation, TextObservation
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.tools.corpus.questions import FrozenCorpusFault
from genevolve_ray.tools.corpus.snapshot import Corpus
from genevolve_ray.tools.corpus.writing import harvest_of, write_corpus
from genevolve_ray.tools.mcp.config import McpConfig, McpServer
from genevolve_ray.tools.mcp.toolbox import WithServers

Genevolve = Callable[..., Any]
SETTINGS = (
    "deterministic=true",
    "engine.kind=transformers",
    "loop.steps=2",
    "loop.requests_per_step=1",
    "loop.group_size=2",
    "loop.validate_every=2",
    "loop.validation_requests=1",
    "heldout.requests=1",
)


def atlas(*more: str) -> RunConfig:
    return load_config("atlas", [*SETTINGS, *more])


def on(corpus: Path, *more: str) -> RunConfig:
    """Return the same run with the tools of a corpus."""
    return atlas("tools.type=frozen", f"tools.config.corpus={corpus}", *more)


def played(run: Path) -> list[Trajectory]:
    """Return the trajectories of a run without what two runs never share."""
    store = RunStore.read(str(run))
    drawn = [t for step in store.committed_steps() for group in store.groups(step) for t in group.trajectories]
    drawn += [t for name in store.trajectory_names() for t in store.get_trajectories(name)]
    return [
        replace(
            t,
            turns=[turn.model_copy(update={"seconds_policy": 0.0, "seconds_tool": 0.0}) for turn in t.turns],
            timings={},
            usage={},
        )
        for t in drawn
    ]


def hashes(run: Path) -> list[str]:
    return [manifest.state_hash for manifest in RunStore.read(str(run)).manifests()]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with live tools, and beside it its corpus."""
    folder = tmp_path_factory.mktemp("first")
    evolve_run(atlas(), folder / "run", in_process=True)
    freeze_runs([folder / "run"], folder / "corpus")
    return folder


# --- a run ---


def test_a_run_on_its_corpus_repeats_bit_for_bit_without_its_tools(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*arguments: object) -> None:
        raise AssertionError("the live tools were built")

    monkeypatch.setattr(AtlasTools, "__init__", gone)
    evolve_run(on(first / "corpus"), tmp_path / "run", in_process=True)
    assert played(tmp_path / "run") == played(first / "run")
    assert any(t.images for t in played(tmp_path / "run"))
    assert hashes(tmp_path / "run") == hashes(first / "run")
    assert [row["corpus_misses"] for row in RunStore.read(str(tmp_path / "run")).metrics()] == [0.0, 0.0]


def test_recording_changes_nothing_in_a_run(first: Path, tmp_path: Path) -> None:
    evolve_run(atlas("tools.record=false"), tmp_path / "run", in_process=True)
    assert hashes(tmp_path / "run") == hashes(first / "run")
    assert not (tmp_path / "run" / "observations").exists()
    with pytest.raises(UserFault, match=r"its answers were not recorded \(tools.record=false\)"):
        freeze_runs([tmp_path / "run"], tmp_path / "corpus")


def test_one_deleted_answer_is_reported_as_missing(
    first: Path, tmp_path: Path, genevolve: Genevolve, capsys: pytest.CaptureFixture[str]
) -> None:
    harvest = harvest_of(Corpus.open(first / "corpus"))
    asked = {q: row for q, rows in harvest.answers.items() for row in rows.values() if q.tool == "image_search"}
    lost, row = max(asked.items(), key=lambda pair: pair[1].asked)
    assert row.asked > 0
    assert row.step is not None
    del harvest.answers[lost]
    write_corpus(harvest, tmp_path / "corpus")
    evolve_run(on(tmp_path / "corpus", "tools.config.on_miss=report"), tmp_path / "run", in_process=True)
    assert sum(row["corpus_misses"] for row in RunStore.read(str(tmp_path / "run")).metrics()) > 0
    capsys.readouterr()
    told = genevolve("corpus", "stats", str(tmp_path / "corpus"), "--run", str(tmp_path / "run"), "--json")
    misses = json.loads(told.out)["misses"]
    [one] = [miss for miss in misses if miss["arguments"] == lost.arguments]
    assert (one["tool"], one["nearest"]) == ("image_search", "")
    assert one["asked"] > 0
    shown = genevolve("corpus", "stats", str(tmp_path / "corpus"), "--run", str(tmp_path / "run"))
    assert f"{len(misses)} questions of {tmp_path / 'run'} have no recorded answer" in shown.out.replace("\n", "")


def test_the_corpus_counts_every_question_of_the_stored_trajectories(first: Path) -> None:
    corpus = Corpus.open(first / "corpus")
    [source] = corpus.description.sources
    calls = [t for trajectory in played(first / "run")[:4] for t in trajectory.turns if t.tool]
    assert (source.steps, source.unrecorded) == (2, 0)
    # Two steps of two samples, and a held-out request before and after.
    assert source.trajectories == 2 * 2 + 2
    assert source.calls == sum(row.asked for row in corpus.rows()) >= len(calls)


def test_a_run_on_a_corpus_is_not_frozen_again(first: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunStore.open(str(run), on(first / "corpus")):
        pass
    with pytest.raises(UserFault, match=rf"its tools answered from the corpus {first / 'corpus'}"):
        freeze_runs([run], tmp_path / "corpus")


def test_a_run_of_an_earlier_version_is_named(tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path / "run"), atlas()):
        pass
    with pytest.raises(UserFault, match="holds no recorded answers .*an earlier version made it"):
        freeze_runs([tmp_path / "run"], tmp_path / "corpus")


# --- freeze ---


def same_files(one: Path, other: Path) -> bool:
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*") if path.is_file())
    return filecmp.cmpfiles(one, other, names, shallow=False)[1:] == ([], [])


async def test_the_same_sources_give_the_same_bytes_and_a_copy_does_too(tmp_path: Path) -> None:
    corpus, _ = await frozen_local(tmp_path)
    freeze_runs([tmp_path / "run"], tmp_path / "again")
    freeze_runs([corpus], tmp_path / "copy")
    assert same_files(corpus, tmp_path / "again")
    assert same_files(corpus, tmp_path / "copy")


async def test_several_sources_become_one(tmp_path: Path) -> None:
    for name, calls in (("one", CALLS[:1]), ("two", CALLS)):
        box = local_spec(tmp_path / "library").build(run_images(tmp_path / name))
        await ask(box.tools, calls)
        await box.aclose()
    freeze_runs([tmp_path / "one"], tmp_path / "first")
    freeze_runs([tmp_path / "first", tmp_path / "two"], tmp_path / "both")
    freeze_runs([tmp_path / "two"], tmp_path / "second")
    assert questions_of(tmp_path / "both", "search") == questions_of(tmp_path / "second", "search")
    assert [source.name for source in Corpus.open(tmp_path / "both").description.sources] == ["one", "two"]
    with pytest.raises(FrozenCorpusFault, match="comes twice among the sources"):
        freeze_runs([tmp_path / "first", tmp_path / "one"], tmp_path / "twice")


class Counting(Moody):
    """A tool that answers another number each time."""

    calls = 0

    async def call(self, arguments: dict[str, Any], episode: Any) -> TextObservation:
        self.calls += 1
        return TextObservation(text=str(self.calls))


async def test_of_several_answers_to_one_question_the_first_counts(tmp_path: Path) -> None:
    box = recording(tmp_path / "run", Counting())
    for _ in range(3):
        await box.tools["mood"].call({"of": "fox"}, EPISODE)
        await box.aclose()
    said = freeze_runs([tmp_path / "run"], tmp_path / "corpus")
    assert 'mood {"of":"fox"}' in next(line for line in said if line.startswith("2 answers are left out"))
    seen = await thawed(tmp_path / "corpus").tools["mood"].call({"of": "fox"}, EPISODE)
    assert seen == TextObservation(text="1")


async def test_of_two_sources_the_first_that_knows_a_question_answers_it(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        tool = Counting()
        tool.calls = 10 * number
        box = recording(tmp_path / name, tool)
        await box.tools["mood"].call({"of": "fox"}, EPISODE)
        await box.tools["mood"].call({"of": name}, EPISODE)
        await box.aclose()
    freeze_runs([tmp_path / "two", tmp_path / "one"], tmp_path / "corpus")
    tool = thawed(tmp_path / "corpus").tools["mood"]
    seen = [await tool.call({"of": name}, EPISODE) for name in ("fox", "one", "two")]
    assert seen == [TextObservation(text=text) for text in ("11", "2", "12")]
    assert Corpus.open(tmp_path / "corpus").description.conflicts == 1


async def test_two_jobs_that_asked_the_same_are_two_sources(tmp_path: Path) -> None:
    for name in ("one", "two"):
        box = local_spec(tmp_path / "library").build(run_images(tmp_path / name))
        await ask(box.tools, CALLS)
        await box.aclose()
    freeze_runs([tmp_path / "one", tmp_path / "two"], tmp_path / "corpus")
    described = Corpus.open(tmp_path / "corpus").description
    assert [source.name for source in described.sources] == ["one", "two"]
    assert described.conflicts == 0


async def test_a_damaged_record_is_named_and_left_out(tmp_path: Path) -> None:
    await frozen_local(tmp_path)
    damaged = next(
        path for path in (tmp_path / "run" / "observations").rglob("*.json") if "blue whale" in path.read_text()
    )
    damaged.write_text(damaged.read_text().replace("blue whale", "blue shark"))
    said = freeze_runs([tmp_path / "run"], tmp_path / "corpus2")
    assert any("1 recorded answers are damaged and left out" in line and damaged.name in line for line in said)
    assert {"queries": ["blue whale"], "top_k": 2} not in questions_of(tmp_path / "corpus2", "search")


async def test_a_lost_picture_of_a_run_ends_the_freeze_without_a_folder(tmp_path: Path) -> None:
    await frozen_local(tmp_path)
    next((tmp_path / "run" / "images").rglob("*.png")).unlink()
    with pytest.raises(FrozenCorpusFault, match=r"picture [0-9a-f]{64}.png of an answer cannot be read"):
        freeze_runs([tmp_path / "run"], tmp_path / "corpus2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "library", "run"]


async def test_a_folder_that_holds_something_is_not_overwritten(tmp_path: Path) -> None:
    corpus, _ = await frozen_local(tmp_path)
    with pytest.raises(FrozenCorpusFault, match="exists, so it is not overwritten"):
        freeze_runs([tmp_path / "run"], corpus)


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_source_that_is_none_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserFault, match=rf"{name}: (no such folder|holds no recorded answers)"):
        freeze_runs([tmp_path / name], tmp_path / "corpus")


# --- stats, doctor, checks, serve ---


async def test_stats_are_a_table_and_json(tmp_path: Path, genevolve: Genevolve) -> None:
    corpus, _ = await frozen_local(tmp_path)
    told = json.loads(genevolve("corpus", "stats", str(corpus), "--json").out)
    assert told["tools"]["search"] == {
        "answers": 3,
        "questions": 3,
        "asked": 0,
        "most": 0,
        "repeated": 0,
        # "red heron" with two hits at most and with five, and "blue whale": one text has these words.
        "hits": 3,
        "errors": 0,
        "pictures": 0,
    }
    assert (told["pictures"], told["tools"]["image_search"]["pictures"]) == (2, 2)
    table = genevolve("corpus", "stats", str(corpus)).out
    assert all(f"│ {name}" in table for name in ("search", "image_search", "query_knowledge"))


async def test_stats_name_what_is_damaged(tmp_path: Path, genevolve: Genevolve) -> None:
    corpus, _ = await frozen_local(tmp_path)
    picture = next((corpus / "pictures").rglob("*.png"))
    picture.write_bytes(b"")
    told = genevolve("corpus", "stats", str(corpus))
    assert told.code == 2
    assert f"{picture} is damaged" in told.err


async def test_the_doctor_reads_the_corpus(tmp_path: Path) -> None:
    corpus, _ = await frozen_local(tmp_path)
    [good] = [check for check in plugins(on(corpus)) if check.name == "tools"]
    assert (good.status, good.detail) == (Status.OK, "frozen accepts its settings and passes its check")
    (corpus / "answers.parquet").write_bytes(b"")
    [bad] = [check for check in plugins(on(corpus)) if check.name == "tools"]
    assert bad.status is Status.PROBLEM
    assert "answers.parquet is damaged" in bad.detail


async def test_the_plug_in_passes_its_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, _ = await frozen_local(tmp_path)
    passed = await asyncio.to_thread(check_plugin, "tools", "frozen", [f"corpus={corpus}"], None, None)
    assert passed, capsys.readouterr().out


async def test_a_corpus_is_served_to_any_mcp_client(tmp_path: Path) -> None:
    corpus, _ = await frozen_local(tmp_path)
    command = (sys.executable, "-m", "genevolve_ray", "corpus", "serve", str(corpus))
    server = McpServer(command=command, env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    config, images = McpConfig(servers={"ours": server}, start_timeout_s=60), MemoryImages()
    box = await asyncio.to_thread(WithServers, OwnTools(), config, images)
    try:
        found, pictured, missed = await ask(
            box.tools,
            [
                ("ours_search", {"queries": ["red heron"], "top_k": 2}),
                ("ours_image_search", {"query": "heron"}),
                ("ours_search", {"queries": ["green heron"]}),
            ],
        )
    finally:
        await box.aclose()
    assert isinstance(found, TextObservation)
    assert "1. title: red heron" in found.text
    assert isinstance(pictured, ImageObservation)
    assert len(pictured.hits) == 2
    assert isinstance(missed, TextObservation)
    assert "has no answer to search" in missed.error


def test_the_answer_to_a_miss_is_one_of_three(tmp_path: Path, genevolve: Genevolve) -> None:
    told = genevolve("corpus", "serve", str(tmp_path), "--on-miss", "guess")
    assert told.code == 2
    assert "tools.config.on_miss: Input should be 'fail', 'report' or 'nearest', got 'guess'" in told.err
