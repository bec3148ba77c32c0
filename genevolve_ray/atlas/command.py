"""`genevolve sft atlas`: the cold start from nothing, with progress."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from genevolve_ray.atlas.coldstart import ColdStartConfig, train_cold_start

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from genevolve_ray.learning.sft import SftStep

_PLAIN_EVERY = 50


def train(out: Path, *, steps: int | None, seed: int | None, threads: int | None) -> None:
    """Train the cold start by its recipe into `out`; steps and seed may be changed for trials."""
    from genevolve_ray.learning.policy import use_threads

    use_threads(threads or os.cpu_count() or 1)
    changes = {key: value for key, value in (("steps", steps), ("seed", seed)) if value is not None}
    recipe = ColdStartConfig()
    recipe = ColdStartConfig.model_validate(
        recipe.model_dump() | {"curriculum": recipe.curriculum.model_dump() | changes}
    )
    console, started = Console(), time.perf_counter()
    columns = (TextColumn("cold start"), BarColumn(), TextColumn("{task.completed}/{task.total} {task.fields[loss]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("cold start", total=recipe.steps, loss="")

        def show(_: PreTrainedModel, step: SftStep) -> None:
            bar.update(task, advance=1, loss=f"loss {step.loss:.4f}")
            if not console.is_terminal and (step.step + 1) % _PLAIN_EVERY == 0:
                pace = f"{step.tokens_per_second:,.0f} tokens/s"
                console.print(f"step {step.step + 1}/{recipe.steps} loss {step.loss:.4f} {pace}")

        train_cold_start(recipe, out, show)
    console.print(f"cold start written to {out} in {time.perf_counter() - started:.0f} s")
