"""`genevolve experience`: bundles on the terminal, and one clear line where there are none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.experience.embed import HashingEmbedder
from genevolve_ray.experience.memory import ExperienceMemory
from genevolve_ray.experience.recall import recall, remember
from genevolve_ray.records.experience import BundleFormatName, Experience
from genevolve_ray.records.leaks import mask
from genevolve_ray.records.request import EvalType, Request

Command = Callable[..., Any]
PROMPTS = {
    "train-a": "Show Velmora with its moon, in mosaic.",
    "train-b": "A poster with the text 'SOL' at night.",
    "train-c": "Show Karbria with its moon, in mosaic.",
}


def request(name: str) -> Request:
    return Request(id=name, prompt=PROMPTS[name], eval_type=EvalType.KNOWLEDGE)


def bundle(name: str, step: int, gap: float) -> Experience:
    return Experience(
        trigger="Knowledge-Anchored",
        summary=mask(PROMPTS[name]),
        search_strategy=("[bold]search facts",),
        step=step,
        request_id=name,
        best=f"{step}/{name}/0/0",
        worst=f"{step}/{name}/3/0",
        gap=gap,
    )


async def two_steps(store: RunStore) -> None:
    from store_helpers import take_step

    memory, embedder = ExperienceMemory(), HashingEmbedder()
    for step, name, gap in ((1, "train-a", 0.5), (2, "train-b", 0.25)):
        await remember(memory, embedder, [(request(name), bundle(name, step, gap))])
        await recall(memory, embedder, [request(name), request("train-c")], step)
        store.put_experience(step, memory.snapshot())
        take_step(store, step)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with RunStore.open(str(tmp_path / "run"), {"seed": 1, "experience": {"enabled": True}}) as store:
        asyncio.run(two_steps(store))
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def rows(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]


def test_ls_lists_every_bundle(genevolve: Command, run: Path) -> None:
    code, out, _ = genevolve("experience", "ls", str(run))
    assert code == 0
    assert "2 bundles after step 2" in out
    assert rows(out) == [
        ["0", "1", "0.50", "3", "2", "train-a", "Show name with its moon, in mosaic."],
        ["1", "2", "0.25", "1", "0", "train-b", "A poster with the text quote at night."],
    ]


def test_show_is_the_card_with_provenance_and_uses(genevolve: Command, run: Path) -> None:
    code, out, _ = genevolve("experience", "show", str(run), "0")
    assert code == 0
    for part in (
        "bundle 0: step 1, request train-a, gap 0.50",
        "Show name with its moon, in mosaic.",
        "search strategy\n  - [bold]search facts",
        "1/train-a/0/0",
        "1/train-a/3/0",
        "used 3 times",
        "step 1: its own request, cosine 1.000",
        "step 2: train-c, cosine 1.000",
    ):
        assert part in out


def test_search_finds_the_nearest_with_its_cosine(genevolve: Command, run: Path) -> None:
    code, out, _ = genevolve("experience", "search", str(run), "Show Zorgon with its moon, in mosaic", "--top", "1")
    assert code == 0
    assert rows(out) == [["0", "1.000", "1", "train-a", "Show name with its moon, in mosaic."]]
    assert len(rows(genevolve("experience", "search", str(run), "anything").out)) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["ls", "/no/such/run"], "/no/such/run"),
        (["show", "RUN", "7"], "no bundle 7"),
        (["show", "/no/such/run", "7"], "/no/such/run"),
        (["search", "/no/such/run", "x"], "/no/such/run"),
    ],
)
def test_what_is_not_there_is_one_line(genevolve: Command, run: Path, arguments: list[str], named: str) -> None:
    code, out, err = genevolve("experience", *[str(run) if a == "RUN" else a for a in arguments])
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and named in err and err.count("\n") == 1


def test_a_run_without_experience_is_told(genevolve: Command, tmp_path: Path) -> None:
    RunStore.open(str(tmp_path / "plain"), {"seed": 1}).close()
    code, _, err = genevolve("experience", "ls", str(tmp_path / "plain"))
    assert code == 2
    assert "has no experience" in err


def test_a_corrupt_snapshot_is_named(genevolve: Command, run: Path) -> None:
    (run / "experience/000002.parquet").write_bytes(b"PAR1")
    code, _, err = genevolve("experience", "ls", str(run))
    assert code == 2
    assert "experience/000002.parquet is corrupt" in err


def test_an_embedder_that_is_not_here_is_told(genevolve: Command, tmp_path: Path) -> None:
    settings = {"embedder": {"kind": "transformers", "transformers": {"model": "/no/such/model"}}}
    with RunStore.open(str(tmp_path / "run"), {"seed": 1, "experience": settings}) as store:
        asyncio.run(two_steps(store))
    code, _, err = genevolve("experience", "search", str(tmp_path / "run"), "x")
    assert code == 2
    assert "'transformers'" in err and "/no/such/model" in err


def test_show_names_the_format_and_its_fields(genevolve: Command, tmp_path: Path) -> None:
    from store_helpers import take_step

    fields = {"focus": ("settle the facts",), "skill_routing_guidance": ("read the guide",)}
    found = Experience(
        format=BundleFormatName.DECISION_GUIDE, guidance=fields, step=1, request_id="train-a", gap=0.5, summary="a"
    )
    memory = ExperienceMemory()
    asyncio.run(remember(memory, HashingEmbedder(), [(request("train-a"), found)]))
    with RunStore.open(str(tmp_path / "run"), {"seed": 1, "experience": {"enabled": True}}) as store:
        store.put_experience(1, memory.snapshot())
        take_step(store, 1)
    code, out, _ = genevolve("experience", "show", str(tmp_path / "run"), "0")
    assert code == 0
    lines = [line.strip() for line in out.splitlines()]
    assert "format decision-guide" in lines
    assert lines[lines.index("focus") + 1] == "- settle the facts"
    assert lines[lines.index("skill routing guidance") + 1] == "- read the guide"


def test_it_explains_itself(genevolve: Command) -> None:
    code, out, _ = genevolve("experience", "--help")
    assert code == 0
    assert all(command in out for command in ("ls", "show", "search"))


def test_no_control_sequence_of_a_bundle_reaches_the_terminal(genevolve: Command, tmp_path: Path) -> None:
    hostile = "\x1b]0;title\x07\x1b[2J\u202ereversed"
    found = bundle("train-a", 1, 0.5).guided({"search_strategy": (hostile,)})
    found = found.model_copy(update={"summary": hostile, "trigger": hostile, "best": hostile})
    memory = ExperienceMemory()
    asyncio.run(remember(memory, HashingEmbedder(), [(request("train-a"), found)]))
    with RunStore.open(str(tmp_path / "run"), {"seed": 1, "experience": {"enabled": True}}) as store:
        from store_helpers import take_step

        store.put_experience(1, memory.snapshot())
        take_step(store, 1)
    for command in (["ls"], ["show", "0"], ["search", "moon"]):
        code, out, _ = genevolve("experience", command[0], str(tmp_path / "run"), *command[1:])
        assert code == 0 and "reversed" in out
        assert not {"\x1b", "\x07", "\u202e"} & set(out)
