"""A setup from nothing, whole: every training runs, is killed, and continues; ordinary classes load what came of it."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from genevolve_ray.commands.small import setup_run
from genevolve_ray.commands.small_trainings import AskedTrainings
from genevolve_ray.config import load_config
from genevolve_ray.renderers.diffusers import DiffusersRenderer
from genevolve_ray.renderers.diffusers_config import DiffusersConfig
from genevolve_ray.small.parts import part_states
from genevolve_ray.small.stages import SetupFault, read_manifest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]

TINY = """
renderer:
  prompts: 8
  pictures: 16
  autoencoder: {steps: 6, batch: 2, warmup: 1, save_every: 1}
  denoiser: {steps: 6, batch: 2, warmup: 1, save_every: 1}
image_text: {steps: 6, batch: 2, groups: 4, plain_groups: 2, warmup: 1, save_every: 1}
rows: {train: 8, validation: 2}
cold_start: {max_rows: 6, global_batch: 1, checkpoint_every: 1}
"""
KILLED_AT = 4
"""The step at whose report a training is killed; the three before it are on disk."""
SETUP = """
import os, signal, sys
from pathlib import Path
from genevolve_ray.commands import small
from genevolve_ray.commands.small_trainings import AskedTrainings

out, trainings, log, killed, step = sys.argv[1:]

class Told(small.SetupProgress):
    def progress(self, what, done, total):
        with open(log, "a") as file:
            file.write(f"{what.partition(',')[0]} {done}\\n")
        if what.startswith(killed + ",") and done == int(step):
            os.kill(os.getpid(), signal.SIGKILL)

small.SetupProgress = Told
small.setup_run(Path(out), [], from_nothing=True, check=False, asked=AskedTrainings(Path(trainings)))
"""
TRAININGS = ("autoencoder", "denoiser", "image-text", "cold start")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the setup and its log, after a kill in every training."""
    if faults := [state.fault for state in part_states() if state.fault]:
        pytest.skip(faults[0])
    folder = tmp_path_factory.mktemp("nothing")
    (folder / "tiny.yaml").write_text(TINY)
    for killed in (*TRAININGS, "none"):
        places = (folder / "s", folder / "tiny.yaml", folder / "log")
        command = [sys.executable, "-c", SETUP, *map(str, places), killed, str(KILLED_AT)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == (0 if killed == "none" else -9), f"{killed}: {ended.stderr}"
    return folder


@pytest.mark.parametrize("training", TRAININGS)
def test_a_killed_training_continues_after_its_last_state(training: str, made: Path) -> None:
    told = [line.rpartition(" ") for line in (made / "log").read_text().splitlines()]
    steps = [int(done) for what, _, done in told if what == training]
    before = steps.index(KILLED_AT) + 1
    assert steps[:before] == list(range(steps[0], KILLED_AT + 1))
    assert [step for step in steps[before:] if step >= KILLED_AT] == list(range(KILLED_AT, 7))
    assert not {1, 2} & set(steps[before:])


def test_nothing_is_made_again_and_an_edit_does_not_train(made: Path) -> None:
    before = read_manifest(made / "s")
    setup_run(made / "s", [], from_nothing=None, check=True)
    assert read_manifest(made / "s") == before and before.from_nothing
    edited = AskedTrainings(made / "tiny.yaml", ("renderer.denoiser.rate=0.5",))
    with pytest.raises(SetupFault, match=r"renderer_weights would be trained again .*denoiser\.rate: 0\.001, now 0\.5"):
        setup_run(made / "s", [], from_nothing=True, check=False, asked=edited)
    assert read_manifest(made / "s") == before


def test_the_ordinary_classes_load_what_was_trained(made: Path) -> None:
    from transformers import AutoModel, AutoModelForCausalLM

    config = load_config(str(made / "s/small.yaml"), ["renderer.config.steps=2"])
    renderer = DiffusersRenderer(DiffusersConfig.model_validate(config.renderer.config))
    drawn = asyncio.run(renderer.render("A cat on a red background.", [], seed=0))
    renderer.close()
    assert Image.open(io.BytesIO(drawn)).size == (64, 64)
    tower = AutoModel.from_pretrained(made / "s/image_text")
    assert type(tower).__name__ == "VisionTextDualEncoderModel"
    policy = AutoModelForCausalLM.from_pretrained(config.policy.model)
    base = AutoModelForCausalLM.from_pretrained(made / "s/base")
    assert any((a != b).any() for a, b in zip(policy.parameters(), base.parameters(), strict=True))
