"""Fine-tuning: a model of the atlas from nothing, or a model folder on published rows, with progress."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from genevolve_ray.atlas.base_model import BaseModelConfig, train_base_model
from genevolve_ray.atlas.coldstart import ColdStartConfig, train_cold_start
from genevolve_ray.atlas.judge_model import JudgeModelConfig, train_judge_model
from genevolve_ray.atlas.long_start import LongStartConfig, train_long_start
from genevolve_ray.atlas.recipe_training import OnStep, RecipeConfig
from genevolve_ray.atlas.sight_start import SightStartConfig, train_sight_start
from genevolve_ray.commands.sft_screen import Screen, SilentRank
from genevolve_ray.config import ConfigError, explain, with_overrides
from genevolve_ray.data.sft_config import SftRowsConfig, learner_config
from genevolve_ray.data.sft_folder import PROVENANCE_FILE
from genevolve_ray.data.sft_training import REPORT_FILE, train_on_rows
from genevolve_ray.doctor.model_folder import check_architecture
from genevolve_ray.doctor.preflight import model_folder, require_gpus
from genevolve_ray.engines.checks import read_model_config
from genevolve_ray.errors import UserFault
from genevolve_ray.records.published.rejections import RejectionReport, RowFault
from genevolve_ray.records.published.rows import require_file
from genevolve_ray.records.published.trajectories import SftReadConfig, read_sft
from genevolve_ray.remote.hub_rows import is_hub_data, local_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from genevolve_ray.learning.distributed import Ranks
    from genevolve_ray.learning.sft import SftStep

_RECIPE_EVERY = 50
"""Steps between two lines of progress where the output is no terminal."""


class Trained(Protocol):
    """Define the training of a model by a recipe into a folder, which reports each step."""

    def __call__(self, config: Any, folder: Path, on_step: OnStep | None = None, *, overwrite: bool = False) -> None:
        """Train, or resume."""
        ...


_RECIPES: dict[str, tuple[type[RecipeConfig], Trained]] = {
    "atlas-base": (BaseModelConfig, train_base_model),
    "atlas": (ColdStartConfig, train_cold_start),
    "atlas-sight": (SightStartConfig, train_sight_start),
    "atlas-long": (LongStartConfig, train_long_start),
    "atlas-judge": (JudgeModelConfig, train_judge_model),
}


def sft_run(
    preset: str, out: Path, *, steps: int | None, seed: int | None, threads: int | None, overwrite: bool = False
) -> None:
    """Train a model of the atlas from nothing, or resume it: the cold start of a preset, or the base model.

    Raises UserFault for a folder that holds a model or another training.
    """
    if preset not in _RECIPES:
        raise UserFault(f"genevolve sft: no recipe {preset!r}; known: {', '.join(_RECIPES)}")
    recipe, trained = _RECIPES[preset]
    train(out, recipe().changed(steps=steps, seed=seed), trained, threads, overwrite)


def sft_rows_run(
    rows: Path | str,
    model: Path | None,
    out: Path,
    settings: Sequence[str],
    *,
    steps: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
) -> None:
    """Fine-tune a model folder on rows, of a file or of a data set on a hub, and print the counts of rows and the loss.

    A training that was interrupted resumes when the same command is given again.

    Raises:
        UserFault: for a missing --model, a folder that is no model, a device that is not available, a folder that holds
            another training, and for a model that has a recipe of its own.
        ConfigError, DataError: for invalid settings and data.
    """
    if str(rows) in _RECIPES:
        raise UserFault(f"genevolve sft {rows}: --model and --set are for rows; {rows} has a recipe of its own")
    if model is None:
        raise UserFault(f"genevolve sft {rows}: rows need --model, the folder of the model to train")
    options = {"max_steps": steps, "seed": seed, "threads": threads}
    named = [f"{key}={value}" for key, value in options.items() if value is not None]
    config = rows_config([*settings, *named])
    model = model_folder(str(model), "--model")
    try:
        read_model_config(model)
        check_architecture(model, decoded=False)
    except (OSError, ValueError) as error:
        raise UserFault(f"--model: {error}") from error
    if config.device.startswith("cuda"):
        require_gpus({"device": config.device})
    from genevolve_ray.learning.launch import run_on_ranks

    files = row_files(rows, config)
    work = partial(_train, rows, files, model, out, with_local_rows(config), overwrite)
    run_on_ranks(config.ranks, config.device, config.threads, work)


def _train(
    rows: Path | str,
    files: Sequence[Path],
    model: Path,
    out: Path,
    config: SftRowsConfig,
    overwrite: bool,
    ranks: Ranks,
) -> None:
    """Be one rank of a training; the first one has the screen."""
    if not ranks.first:
        train_on_rows(files, model, out, config, SilentRank(), ranks=ranks, overwrite=overwrite)
        return
    with Screen(config.device, config.dtype, ranks.size) as screen:
        screen.say(f"reading {rows}")
        made = train_on_rows(files, model, out, config, screen, ranks=ranks, overwrite=overwrite)
    screen.say(f"{made['steps']} steps in {made['seconds']:.0f} s, written to {out} ({PROVENANCE_FILE}, {REPORT_FILE})")
    if config.lora is not None and learner_config(config).publishes_adapter:
        screen.say(f"{out} holds an adapter alone; a run starts from it by learner.lora.start={out}")


def rows_config(settings: Sequence[str]) -> SftRowsConfig:
    """Return the settings with `key=value` overrides. Raises ConfigError naming each invalid key and its value."""
    try:
        return SftRowsConfig.model_validate(with_overrides({}, settings))
    except ValidationError as error:
        raise ConfigError(explain(error, {}, [o.partition("=")[0].strip() for o in settings], SftRowsConfig)) from error


def with_local_rows(config: SftRowsConfig) -> SftRowsConfig:
    """Return the settings with every file of rows on this machine; those of a hub are downloaded. Raises UserFault."""
    return config.model_copy(
        update={
            "heldout_paths": tuple(file for path in config.heldout_paths for file in row_files(path, config)),
            "exclude_paths": tuple(file for path in config.exclude_paths for file in local_rows(path)),
        }
    )


def row_files(source: Path | str, config: SftRowsConfig) -> list[Path]:
    """Return the files of a source of rows; those of a hub are downloaded.

    Raises:
        UserFault: as `hub_files`, and where the policy should see pictures that a data set of a hub keeps as files of
            their own, and none of them is in the cache. Such files are not downloaded: they may be many.
    """
    files = local_rows(source)
    if config.images == "vision" and config.reading.root is None and is_hub_data(str(source)):
        _check_pictures(str(source), files, config.reading)
    return files


def _check_pictures(source: str, files: Sequence[Path], reading: SftReadConfig) -> None:
    missing = ""
    for row in read_sft(files, RejectionReport(), reading.model_copy(update={"check_images": False})):
        outside = [place for place in row.pictures if place.file is None]
        try:
            for place in outside:
                require_file(place.root, place.name)
        except RowFault as fault:
            missing = missing or f"line {row.number} of {row.source.name} shows {fault.detail}"
            continue
        if outside:
            return  # The whole data set is there; a single missing picture costs its row.
    if missing:
        raise UserFault(
            f"{source}: {missing}, and only rows are downloaded: run `hf download ORG/NAME --repo-type dataset` for the "
            "pictures of the data set, then this command again"
        )


def train(out: Path, recipe: RecipeConfig, trained: Trained, threads: int | None, overwrite: bool) -> None:
    """Train a model by a recipe into `out`. Raises UserFault as `sft_run`."""
    from genevolve_ray.learning.policy import use_threads

    use_threads(threads or os.cpu_count() or 1)
    console, started = Console(), time.perf_counter()
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.completed}/{task.total} {task.fields[loss]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=recipe.steps, loss="")

        def show(_: PreTrainedModel, step: SftStep) -> None:
            if step.step and not bar.tasks[task].completed:
                console.print(f"resuming after step {step.step}/{recipe.steps}")
            bar.update(task, completed=step.step + 1, loss=f"loss {step.loss:.4f}")
            if not console.is_terminal and (step.step + 1) % _RECIPE_EVERY == 0:
                pace = f"{step.tokens_per_second:,.0f} tokens/s"
                console.print(f"step {step.step + 1}/{recipe.steps} loss {step.loss:.4f} {pace}")

        trained(recipe, out, show, overwrite=overwrite)
    console.print(f"model written to {out} in {time.perf_counter() - started:.0f} s")
