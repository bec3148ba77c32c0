"""Training of a cold start by its recipe. It resumes from its newest state, as fine-tuning on rows does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

from genevolve_ray import __version__
from genevolve_ray.data.sft_folder import TrainingFolder
from genevolve_ray.data.sft_progress import SftProgress
from genevolve_ray.records.base import Config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from genevolve_ray.learning.sft import SftConfig, SftExample, SftStep

PROVENANCE_FILE = "provenance.json"
CHECKPOINT_EVERY = 100
"""Steps between two states."""
OnStep = Callable[["PreTrainedModel", "SftStep"], None]


class RecipeConfig(Config):
    """Configure what every recipe has: the shape of a small Qwen3 and the learning rate."""

    hidden_size: int = Field(default=128, ge=32)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    head_dim: int = Field(default=32, ge=32)
    """vLLM on CPU needs at least 32."""
    intermediate_size: int = Field(default=384, ge=32)
    lr: float = Field(default=3e-3, gt=0)

    @property
    @abstractmethod
    def steps(self) -> int:
        """Number of optimization steps in total."""

    @abstractmethod
    def changed(self, *, steps: int | None = None, seed: int | None = None) -> Self:
        """Return the recipe with another number of steps in total, or another seed."""

    def new_model(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
        """Return a Qwen3 of this shape with random weights, the same for the same seed."""
        from genevolve_ray.learning.new_policy import new_qwen3

        return new_qwen3(
            vocabulary=len(tokenizer),
            hidden_size=self.hidden_size,
            layers=self.layers,
            heads=self.heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            seed=seed,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )


def train_recipe(
    recipe: Config,
    model: PreTrainedModel,
    settings: SftConfig,
    batches: Callable[[int], Iterator[list[SftExample]]],
    save: Callable[[Path], None],
    folder: Path,
    on_step: OnStep | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Train a model in place and write it to a folder, together with its provenance.

    Where the folder holds the same recipe unfinished, the training resumes from its newest state, with the same result.

    Args:
        recipe: names the training: another one in the folder is refused.
        model: the model with its first weights.
        settings: the settings of the steps.
        batches: returns the batches after a number of steps that were taken before.
        save: writes the trained model to an empty folder.
        folder: the folder.
        on_step: receives the model after each step.
        overwrite: replace what the folder holds.

    Raises:
        OccupiedFolder: where the folder holds another training or a model.
        UserFault: for a state that cannot be read.
    """
    from genevolve_ray.learning.distributed import Ranks
    from genevolve_ray.learning.sft import build_optimizers, train_sft
    from genevolve_ray.learning.sft_state import load_state, save_state

    optimizers = build_optimizers(model, settings)
    training = TrainingFolder(
        folder, {"cold_start": type(recipe).__name__, **recipe.model_dump(mode="json")}, overwrite
    )
    try:
        training.begin({})
        newest = training.newest()
        progress = SftProgress() if newest is None else SftProgress.read(newest[1])
        if newest is not None:
            load_state(model, optimizers, newest[0])

        def after(step: SftStep) -> None:
            progress.history.append(step)
            if on_step is not None:
                on_step(model, step)
            if progress.steps % CHECKPOINT_EVERY == 0:
                with training.state(progress.steps, progress.values(0.0)) as target:
                    save_state(model, optimizers, Ranks(), target)

        train_sft(model, batches(progress.steps), settings, after, optimizers=optimizers, first=progress.steps)
        with training.result() as target:
            save(target)
        training.finish(_provenance(recipe, progress.history), PROVENANCE_FILE)
    finally:
        training.release()


def _provenance(recipe: Config, history: Sequence[SftStep]) -> dict[str, Any]:
    """Return what made a checkpoint: the recipe, the loss at its end, and its cost."""
    last = history[-50:]
    return {
        "recipe": recipe.model_dump(mode="json"),
        "package": __version__,
        "final_loss": sum(step.loss for step in last) / len(last),
        "seconds": round(sum(step.seconds for step in history), 1),
        "tokens": sum(step.tokens for step in history),
    }
