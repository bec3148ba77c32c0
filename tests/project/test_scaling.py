"""The page on scaling shows what its arithmetic computes, and its configurations fit the nodes that they name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from deploy_files import ROOT, parse

from benchmarks import scaling
from benchmarks import scaling_pictures as pictures
from benchmarks.scaling import LAYOUTS, Layout
from genevolve_ray.cluster.placement import gang_demands, service_demands
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.plan import make_plan, parse_nodes

PAGE = Path(ROOT / "docs" / "scaling.md").read_text()
TABLES = scaling.TABLES | pictures.TABLES
BLOCKS = re.findall(r"```sh\n(genevolve plan .*?)```", PAGE, re.DOTALL)


def planned(block: str) -> tuple[RunConfig, list[dict[str, float]]]:
    """Return the run and the nodes of a command on the page."""
    arguments = shlex.split(block.replace("\\\n", " "))[1:]
    found = parse(arguments).params
    return load_config(found["preset"], found["settings"]), parse_nodes(found["nodes"])


def packed(demands: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]) -> bool:
    """Return whether demands go into nodes one by one, the largest first, each where it fits."""
    left = [dict(node) for node in nodes]
    for demand in sorted(demands, key=lambda d: (-d.get("GPU", 0.0), -d.get("CPU", 0.0))):
        place = next((n for n in left if all(n.get(k, 0.0) + 1e-6 >= v for k, v in demand.items())), None)
        if place is None:
            return False
        for name, amount in demand.items():
            place[name] -= amount
    return True


CASES = pytest.mark.parametrize(
    ("layout", "block"),
    list(zip(LAYOUTS, BLOCKS, strict=True)),
    ids=[f"{layout.gpus} GPUs" for layout in LAYOUTS],
)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_the_page_shows_what_is_computed(name: str) -> None:
    shown = re.search(rf"<!-- {name} -->\n((?:\|.*\n)+)", PAGE)
    assert shown is not None
    assert shown[1].splitlines() == TABLES[name]()


@CASES
def test_a_configuration_fits_its_nodes(layout: Layout, block: str) -> None:
    config, nodes = planned(block)
    assert make_plan(config, nodes).obstacle == ""
    demands = [d.resources for d in (*gang_demands(config), *service_demands(config))]
    assert packed(demands, nodes)


@CASES
def test_a_configuration_does_not_fit_one_gpu_less(layout: Layout, block: str) -> None:
    config, nodes = planned(block)
    nodes[-1]["GPU"] -= 1
    assert make_plan(config, nodes).obstacle != ""


@CASES
def test_the_arithmetic_is_that_of_the_configuration(layout: Layout, block: str) -> None:
    config, nodes = planned(block)
    cluster = config.cluster
    assert sum(node["GPU"] for node in nodes) == layout.gpus
    assert cluster.learner_ranks * cluster.learner_gpus == layout.learner
    assert cluster.rollout_workers * cluster.rollout_gpus == layout.rollouts
    assert cluster.renderer.replicas * cluster.renderer.gpus == layout.renderer
    assert cluster.judge.replicas * cluster.judge.gpus == layout.judge
    assert (config.loop.requests_per_step, config.loop.group_size) == (layout.requests, layout.group)
    assert config.loop.max_staleness == layout.staleness
    assert config.engine.max_concurrent == layout.concurrent
    assert (config.learner.lora is not None, config.learner.offload) == (layout.lora, layout.offload)
    assert config.learner.gradient_checkpointing
    assert config.learner.token_budget == scaling.TOKEN_BUDGET


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.gpus} GPUs")
def test_a_layout_fits_into_memory(layout: Layout) -> None:
    ranks = max(1, int(layout.learner))
    learner = scaling.learner_gb(ranks, lora=layout.lora, offload=layout.offload)
    shared = layout.learner < 1
    share = 0.45 if shared else 0.85
    assert learner + (share if shared else 0) * scaling.GPU_GB <= 0.95 * scaling.GPU_GB
    assert layout.concurrent * scaling.CONTEXT <= scaling.cache_tokens(share)


def test_a_layout_allows_the_staleness_that_it_needs() -> None:
    assert [layout.gpus for layout in LAYOUTS if layout.staleness_needed() > layout.staleness] == []


def test_parameters_come_out_as_published() -> None:
    assert pytest.approx(8.2e9, rel=0.01) == scaling.TRAINED  # Qwen3-8B
    assert pytest.approx(8.77e9, rel=0.01) == scaling.ALL  # Qwen3-VL-8B
    both_streams = 2 * scaling.IMAGE_LAYERS * (12 + 6) * scaling.IMAGE_HIDDEN**2
    assert pytest.approx(20e9, rel=0.05) == both_streams  # Qwen-Image: attention, feed-forward and modulation


def test_6nd_is_three_of_the_six_passes_without_attention() -> None:
    work = 6 * scaling.BLOCKS * scaling.T  # without attention and head
    passes = scaling.learner_seconds(shared=0) * scaling.MFU * scaling.PEAK_FLOPS / 6
    assert work / passes == pytest.approx(3 / 1.24, rel=0.02)


def test_the_numbers_of_the_text_on_rows_are_the_computed_ones() -> None:
    text = " ".join(PAGE.split())
    alone, shared = scaling.forward_flops(), scaling.forward_flops(scaling.SHARED)
    for said in (
        f"one pass over a trajectory alone is {alone / 1e14:.1f}e14 operations",
        f"leaves {shared / 1e14:.1f}e14 at the measured share",
        f"{scaling.SHARED:.0%} of the tokens of a step repeat a prefix",
        f"padded micro-batches are {scaling.PADDING:.0%} padding",
        f"by the square of the share, {scaling.SHARED**2:.0%}",
        f"would be another {scaling.logits_gb():.0f} GB",
    ):
        assert said in text


def test_the_numbers_of_the_text_on_pictures_are_the_computed_ones() -> None:
    blind, seeing = pictures.sequences()
    kept, again = pictures.learner_share()
    text = " ".join(PAGE.split())
    for said in (
        f"Ten searches take {pictures.LONGEST.tokens:,.0f} of {pictures.RESPONSE:,} tokens",
        f"holds {blind} sequences of 6,000 tokens, or {seeing} that",
        f"at most {pictures.LONGEST.input_gb:.1f} + {pictures.LONGEST.pass_gb:.1f} GB for the longest episode",
        f"Features of the {pictures.STEP.count:.0f} distinct pictures",
        f"are {pictures.STEP.feature_gb:.1f} GB in bfloat16",
        f"makes a pass of the learner {kept:.2f} times as long, and {again:.2f} times",
    ):
        assert said in text


def test_the_pictures_are_those_of_the_preset() -> None:
    profile = load_config("paper").protocol
    assert profile.observations.per_search == pictures.HITS
    assert profile.most_images == pictures.SEARCHES * pictures.HITS
    assert profile.max_response_tokens == pictures.RESPONSE
    assert (profile.observations.max_side, profile.observations.max_pixels) == (640, 262_144)
