"""`genevolve experience calibrate` and `lift`: figures, files and one clear line for what cannot be measured."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from page_helpers import parsed

from genevolve_ray.atlas.habits import HabitsConfig
from genevolve_ray.atlas.renderer import AtlasRendererConfig
from genevolve_ray.config import load_config
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.experience.embed import HashingEmbedder
from genevolve_ray.experience.memory import ExperienceMemory
from genevolve_ray.experience.recall import remember
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.request import EvalType, Request

Command = Callable[..., Any]
PLACES = ("harbor at dawn", "market in the rain", "quiet library room")


def memory(count: int) -> bytes:
    bundles = []
    for i in range(count):
        request = Request(id=f"train-1-{i:05d}", prompt=f"Show the {PLACES[i % 3]}.", eval_type=EvalType.QUALITY)
        said = {"search_strategy": ("search facts",), "knowledge_activation": (f"read {i % 3}",)}
        bundles.append((request, Experience(guidance=said, step=1, request_id=request.id, gap=0.5)))
    return remembered(bundles)


def remembered(bundles: Sequence[tuple[Request, Experience]]) -> bytes:
    made = ExperienceMemory()
    asyncio.run(remember(made, HashingEmbedder(), bundles))
    return made.snapshot()


def stored_run(folder: Path, snapshot: bytes, preset: str = "atlas") -> Path:
    from store_helpers import take_step

    with RunStore.open(str(folder), load_config(preset)) as store:
        store.put_experience(1, snapshot)
        take_step(store, 1)
    return folder


def make_run(folder: Path, count: int) -> Path:
    return stored_run(folder, memory(count))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", 24)


def test_the_curves_are_printed_and_written(genevolve: Command, run: Path) -> None:
    code, out, _ = genevolve("experience", "calibrate", str(run))
    assert code == 0
    assert "24 bundles, 24 requests, hashing, against own" in out
    assert "threshold of the run: 0.84" in out and "experience.memory.threshold=" in out
    found = json.loads((run / "calibration.json").read_text())
    row = next(row for row in found["rows"] if row["threshold"] == 0.84)
    assert (row["hits"], row["nearest"]["precision"], row["merged"]["recall"]) == (24, 1, 1)
    page = parsed((run / "calibration.html").read_text())
    assert page.sections == ["headlines", "curve", "thresholds"]
    page.assert_harmless()
    assert RunStore.read(str(run)).committed_steps() == [1], "the run is as it was"


def test_another_embedder_and_fewer_requests_may_be_asked_for(genevolve: Command, run: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "c.json"
    options = ("--requests", "5", "--json", str(target), "--set", "experience.embedder.hashing.dimension=64")
    code, out, _ = genevolve("experience", "calibrate", str(run), *options)
    assert code == 0 and "24 bundles, 5 requests, hashing/1:64, against own" in out
    assert target.with_suffix(".html").is_file() and not (run / "calibration.json").exists()


def test_a_precision_that_no_threshold_has_is_told(genevolve: Command, tmp_path: Path) -> None:
    code, out, _ = genevolve(
        "experience", "calibrate", str(make_run(tmp_path / "run", 21)), "--set", "experience.merge={nearest: 2}"
    )
    assert code == 0 and "recommended for precision 0.9" in out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--against", "luck"], "--against 'luck' is unknown; known: own, ideal"),
        (["--embedder", "/no/such/model"], "cannot calibrate embedder 'transformers': "),
        (["--json", "out.txt"], "'out.txt' must end in .json"),
        (["--set", "experience.embedder.kind=word2vec"], "word2vec"),
        (["--against", "ideal", "--set", "requests.config.seed=2"], "is none that the run's source poses in 1 steps"),
    ],
)
def test_what_cannot_be_calibrated_is_one_line(genevolve: Command, run: Path, options: list[str], named: str) -> None:
    code, out, err = genevolve("experience", "calibrate", str(run), *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and named in err and not (run / "calibration.json").exists()


def test_the_world_knows_what_is_ideal(genevolve: Command, run: Path) -> None:
    code, out, _ = genevolve("experience", "calibrate", str(run), "--against", "ideal")
    assert code == 0 and "against ideal" in out
    found = json.loads((run / "calibration.json").read_text())
    assert found["rows"][0]["nearest"]["precision"] <= 0.5, "no skill has such a name"


def test_what_is_ideal_includes_the_wordings_that_the_renderer_prefers(genevolve: Command, tmp_path: Path) -> None:
    config = load_config("atlas-long")
    source, habits = config.requests.build(MemoryImages()), AtlasRendererConfig(habits=HabitsConfig())
    posed = [source.train(index) for index in range(12)]
    ideal = [source.ideal_guidance(request, habits) for request in posed]
    assert any(bullet.startswith("say ") for bullet in ideal[0].guidance["prompt_construction"])
    assert source.ideal_guidance(posed[0], config.judge) == source.ideal_guidance(posed[0]) != ideal[0]
    bundles = [
        (request, bundle.model_copy(update={"step": 1, "request_id": request.id, "gap": 0.5}))
        for request, bundle in zip(posed, ideal, strict=True)
    ]
    run = stored_run(tmp_path / "run", remembered(bundles), "atlas-long")
    precisions = []
    for settings in ([], ["--set", "renderer.config.habits=null"]):
        assert genevolve("experience", "calibrate", str(run), "--against", "ideal", *settings).code == 0
        found = json.loads((run / "calibration.json").read_text())
        precisions.append(found["rows"][0]["nearest"]["precision"])
    assert precisions[0] > precisions[1]


def test_few_bundles_no_experience_and_no_run_are_told(genevolve: Command, tmp_path: Path) -> None:
    few = make_run(tmp_path / "few", 9)
    RunStore.open(str(tmp_path / "plain"), load_config("atlas")).close()
    for place, named in (
        (few, "remembers 9 bundles after step 1: a calibration needs 10"),
        (tmp_path / "plain", "has no experience"),
        (tmp_path / "none", "none"),
    ):
        code, _, err = genevolve("experience", "calibrate", str(place))
        assert code == 2 and named in err


def test_a_lift_needs_experience_and_a_checkpoint(genevolve: Command, run: Path, tmp_path: Path) -> None:
    RunStore.open(str(tmp_path / "plain"), load_config("atlas")).close()
    for place, named in (
        (tmp_path / "plain", "has no experience"),
        (run, "has no checkpoint yet"),
        (tmp_path / "none", "none"),
    ):
        code, _, err = genevolve("experience", "lift", str(place))
        assert code == 2 and named in err
    from store_helpers import save_checkpoint

    with RunStore.open(str(run), load_config("atlas")) as store:
        save_checkpoint(store, 1)
    for options, named in ((["--step", "7"], "checkpoints: 1"), (["--json", "x.txt"], "must end in .json")):
        code, _, err = genevolve("experience", "lift", str(run), *options)
        assert code == 2 and named in err


def test_an_ablation_refuses_worlds_and_arms_that_it_does_not_know(genevolve: Command, tmp_path: Path) -> None:
    out = ("--json", str(tmp_path / "a.json"))
    for options, named in (
        (["--test-world", "3,x"], "'x' is no seed"),
        (["--test-world", "3,3"], "test worlds [3, 3]"),
        (["--arms", "grpo,fulll"], "unknown arm 'fulll'"),
        (["--arms", "full,full.exact", "--set-arm", "full.fast:learner.lr=1"], "'full.fast:learner.lr=1'"),
    ):
        code, _, err = genevolve("ablate", "atlas", *out, *options)
        assert code == 2 and named in err
