"""Supervised fine-tuning of a model folder on published SFT rows, with a held-out loss and a report of rejected rows."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field, field_validator, model_validator

from genevolve_ray import __version__
from genevolve_ray.agent.chat import load_tokenizer
from genevolve_ray.agent.profile import ProtocolProfile
from genevolve_ray.agent.profile_source import DEFAULT, read_profile
from genevolve_ray.agent.trained_prompt import keep_trained_prompt, prompt_difference
from genevolve_ray.data.sft_pictures import RowExamples, RowPictures
from genevolve_ray.data.sft_rows import ImageMode, RowEncoder, TokenizedRow, epochs_of
from genevolve_ray.engines.checks import check_vocabulary
from genevolve_ray.models.companions import check_companions
from genevolve_ray.records.base import Config
from genevolve_ray.records.published.exclusion import read_exclusion
from genevolve_ray.records.published.rejections import DataError, Rejection, RejectionReason, RejectionReport
from genevolve_ray.records.published.splits import Split, SplitConfig, split_keys
from genevolve_ray.records.published.trajectories import SftReadConfig, SftRow, read_sft

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from genevolve_ray.learning.sft import SftConfig, SftEvaluation, SftStep

_LOG = logging.getLogger(__name__)
REPORT_FILE = "rejections.json"
PROVENANCE_FILE = "sft.json"


class SftRowsConfig(Config):
    """Configure fine-tuning on rows; defaults are the paper's figures (PAPER section 5) where they are known.

    Held-out rows come from `heldout_paths`, or are split off by request (the published split is 8,800 + 200).
    """

    epochs: int = Field(default=2, ge=1)
    """Passes over the rows."""
    global_batch: int = Field(default=32, ge=1)
    """Rows of one step."""
    max_steps: int | None = Field(default=None, ge=1)
    """Ends the training early; the schedule covers the steps that are really taken."""
    lr: float = Field(default=1e-5, ge=0)
    """Learning rate of AdamW after the warm-up."""
    weight_decay: float = Field(default=1e-6, ge=0)
    """AdamW's decoupled weight decay."""
    warmup_fraction: float = Field(default=0.02, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    """Final learning rate of the cosine schedule, as a fraction of `lr`; the paper does not state it."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's usual values; the paper does not state them."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; the paper does not state it."""
    cutoff: int = Field(default=32768, ge=2)
    """Most tokens of a row; longer rows are rejected, not cut."""
    token_budget: int = Field(default=32768, ge=1)
    """Padded tokens of a micro-batch; it changes memory and speed, not the result."""
    gradient_checkpointing: bool = False
    """Compute the decoder layers again in the backward pass in place of keeping their activations; same result."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Data type of forward and backward passes and of the saved weights; master weights and optimizer are float32."""
    device: str = "cpu"
    """Torch device, such as `cpu` or `cuda`."""
    threads: int = Field(default=0, ge=0)
    """Torch threads; 0 keeps torch's setting."""
    seed: int = Field(default=1, ge=0)
    """Order of the rows, and the split."""
    images: ImageMode = "text"
    """`text`: images stay `<image>` placeholders; `vision`: the policy sees them, scaled by `profile.observations`."""
    tower: Literal["frozen", "trained"] = "frozen"
    """Whether the vision tower stays as it is. With `images: vision` it may be trained, which a random one needs."""
    exclude_paths: tuple[Path, ...] = ()
    """Rows of benchmarks: their requests are kept out of training."""
    heldout_paths: tuple[Path, ...] = ()
    """Files of rows for the held-out loss; their requests are kept out of training."""
    heldout_fraction: float = Field(default=200 / 9000, ge=0, lt=1)
    """Share of requests held out where there are no `heldout_paths`; 0 disables the held-out loss."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between held-out losses; 0 means once an epoch. There is always one before the first step and at the end."""
    reading: SftReadConfig = SftReadConfig()
    """Reading of the rows."""
    profile: str | ProtocolProfile = Field(default=DEFAULT, validate_default=True)
    """Protocol of the runs that will start from the result, as in a run: a warning tells where its system prompt is not
    that of the rows."""

    @field_validator("profile", mode="before")
    @classmethod
    def _profile(cls, value: Any) -> Any:
        return read_profile(value)

    @model_validator(mode="after")
    def _consistent(self) -> SftRowsConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        if self.tower == "trained" and self.images != "vision":
            raise ValueError(f"tower=trained needs images=vision, got images={self.images}: no picture would reach it")
        return self


class SftWatcher(Protocol):
    """Define an observer of a training."""

    def start(self, report: RejectionReport, train: int, heldout: int, steps: int) -> None:
        """Receive the report of the rows, the numbers of rows to train and evaluate on, and the number of steps."""
        ...

    def step(self, step: SftStep) -> None:
        """Receive the result of a step."""
        ...

    def heldout(self, done: int, evaluation: SftEvaluation) -> None:
        """Receive the held-out loss after `done` steps."""
        ...


@dataclass(frozen=True)
class RowSets:
    """Hold rows as tokens, for training and for the held-out loss."""

    train: list[TokenizedRow]
    heldout: list[TokenizedRow]
    prompts: Counter[str] = field(default_factory=Counter)
    """System prompts of the rows to train on, by their number of rows."""


def load_rows(paths: Sequence[Path], encoder: RowEncoder, config: SftRowsConfig, report: RejectionReport) -> RowSets:
    """Read, split and tokenize rows. A request that is held out is never trained on.

    Raises:
        DataError: for a file that is missing or broken, or when no row is left to train on.
    """
    rows, away = RowSets([], []), set[str]()
    for row in read_sft(config.heldout_paths, report, config.reading):
        away.add(row.key)
        rows.heldout.extend(encoder.encode_all([row], report))
    if config.heldout_paths and not away:
        raise DataError(f"no row to evaluate on in {', '.join(map(str, config.heldout_paths))}: {report.text()}")
    split = None if away else SplitConfig(validation=config.heldout_fraction, seed=config.seed)
    excluded = set(read_exclusion(config.exclude_paths, report).keys) if config.exclude_paths else set()
    if config.exclude_paths and not excluded:
        raise DataError(
            f"{', '.join(map(str, config.exclude_paths))} exclude no request from training: {report.text()}"
        )
    for row in _without(away | excluded, read_sft(paths, report, config.reading), report):
        if split is not None and split_keys([row.key], split)[row.key] is Split.VALIDATION:
            rows.heldout.extend(encoder.encode_all([row], report))
        else:
            _count_prompt(row, rows.prompts)
            rows.train.extend(encoder.encode_all([row], report))
    if not rows.train:
        raise DataError(f"no row to train on in {', '.join(map(str, paths))}: {report.text()}")
    return rows


def _count_prompt(row: SftRow, prompts: Counter[str]) -> None:
    if row.messages[0].role == "system":
        prompts[row.messages[0].content] += 1


def prompt_fault(prompts: Counter[str], profile: ProtocolProfile) -> str:
    """Return how the system prompts of rows differ from a profile's and from each other, "" where all are the same."""
    if not prompts:
        return ""
    [(most, rows)] = prompts.most_common(1)
    faults = [f"{len(prompts)} different system prompts, {rows} of {prompts.total()} rows have the first"] * (
        len(prompts) > 1
    )
    if difference := prompt_difference(most, profile):
        faults.append(f"the system prompt is not that of profile {profile.name!r}: {difference}")
    return "; ".join(faults)


def _compare_words(prompts: Counter[str], config: SftRowsConfig) -> dict[str, str]:
    """Return what the provenance records of the rows' system prompt, after a warning where it is another one."""
    assert isinstance(config.profile, ProtocolProfile), "validated"
    if fault := prompt_fault(prompts, config.profile):
        _LOG.warning("rows to train on: %s", fault)
    return {"profile": config.profile.label, "prompt_difference": fault}


def _without(keys: set[str], rows: Iterator[SftRow], report: RejectionReport) -> Iterator[SftRow]:
    for row in rows:
        if row.key in keys:
            report.reject(Rejection(str(row.source), row.number, RejectionReason.HELD_OUT_REQUEST, row.id))
        else:
            yield row


def train_on_rows(
    paths: Sequence[Path], model_dir: Path, out: Path, config: SftRowsConfig, monitor: SftWatcher
) -> dict[str, Any]:
    """Fine-tune the model in `model_dir` on rows and write it to `out` in HF layout; return the provenance.

    The folder of the checkpoint also holds `rejections.json` (rows that were left out, with reasons) and `sft.json`
    (settings, counts, losses), and the system prompt of the rows as `system_prompt.md`.

    Raises:
        DataError: for unusable data, a tokenizer without a usable chat template, or `images=vision` for a model that
            does not see.
        FileNotFoundError: for a model folder without config.json or tokenizer.
        PermissionError: for a file of the model folder that cannot be copied.
    """
    from genevolve_ray.learning.policy import has_tokenizer, save_policy, use_threads
    from genevolve_ray.learning.sft import train_sft

    if config.threads:
        use_threads(config.threads)
    if not has_tokenizer(model_dir):
        raise FileNotFoundError(f"no tokenizer files in {str(model_dir)!r}")
    check_companions(model_dir)
    started, report = time.perf_counter(), RejectionReport()
    encoder, pictures = _encoder(model_dir, config)
    rows = load_rows(paths, encoder, config, report)
    words, settings = _compare_words(rows.prompts, config), sft_config(config, len(rows.train))
    monitor.start(report, len(rows.train), len(rows.heldout), settings.steps)
    out.mkdir(parents=True, exist_ok=True)  # A folder that cannot be written fails before the training, not after it.
    model = _trainable(model_dir, config)
    examples, every = RowExamples(pictures, report), math.ceil(len(rows.train) / config.global_batch)
    losses = _HeldOutLosses(model, rows.heldout, examples, config, monitor)

    def after(step: SftStep) -> None:
        monitor.step(step)
        if (step.step + 1) % (config.evaluate_every or every) == 0:
            losses.evaluate(step.step + 1)

    losses.evaluate(0)
    batches = epochs_of(rows.train, epochs=config.epochs, batch=config.global_batch, seed=config.seed)
    history = train_sft(model, (made for batch in batches if (made := examples.of(batch))), settings, after)
    if not history:
        raise DataError(f"no row is left to train on: {report.text()}")
    losses.evaluate(len(history))
    save_policy(model.bfloat16() if config.dtype == "bfloat16" else model, model_dir, out)
    report.write(out / REPORT_FILE)
    keep_trained_prompt(out, rows.prompts)
    provenance = {
        "package": __version__,
        "model": str(model_dir),
        "date": encoder.date,
        "rows": [str(path) for path in paths],
        "settings": config.model_dump(mode="json", exclude={"profile"}),
        **words,
        "trained_on": len(rows.train),
        "held_out": len(rows.heldout),
        "longest": max(map(len, rows.train)),
        "steps": len(history),
        "loss": [step.loss for step in history],
        "heldout": [{"steps": done, **asdict(evaluation)} for done, evaluation in losses.found],
        "seconds": round(time.perf_counter() - started, 1),
    }
    if pictures is not None:
        provenance |= _seen(rows, config)
        pictures.close()
    (out / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    return provenance


def _trainable(model_dir: Path, config: SftRowsConfig) -> PreTrainedModel:
    """Return the model as it is trained."""
    from genevolve_ray.learning.build import checkpoint_layers
    from genevolve_ray.learning.policy import load_policy, vision_tower

    model = load_policy(model_dir, device=config.device)
    if config.tower == "trained" and (tower := vision_tower(model)) is not None:
        tower.requires_grad_(True)
    if config.gradient_checkpointing:
        checkpoint_layers(model)
    return model


def _encoder(model_dir: Path, config: SftRowsConfig) -> tuple[RowEncoder, RowPictures | None]:
    """Return what encodes rows, and what opens their pictures where the policy sees them. Raises DataError."""
    assert isinstance(config.profile, ProtocolProfile), "validated"
    observations, sees = config.profile.observations, config.images == "vision"
    if sees != observations.images:
        _LOG.warning(
            "images=%s, but runs of profile %r show the policy %s (profile.observations.images)",
            config.images,
            config.profile.name,
            "no pictures" if sees else "pictures",
        )
    try:
        tokenizer = load_tokenizer(model_dir)
        check_vocabulary(model_dir, tokenizer)
        pictures = RowPictures(model_dir, observations) if sees else None
        return RowEncoder(tokenizer, config.cutoff, pictures), pictures
    except Exception as error:  # Files of others: tokenizers raises plain exceptions.
        raise DataError(f"{model_dir}: {' '.join(str(error).split())}") from error


def _seen(rows: RowSets, config: SftRowsConfig) -> dict[str, Any]:
    """Return what the provenance records of pictures: how they were scaled, and how many there were."""
    assert isinstance(config.profile, ProtocolProfile), "validated"
    scaled = config.profile.observations.model_dump(include={"max_side", "max_pixels"})
    return {"pictures": scaled | {"trained_on": sum(len(row.pictures) for row in rows.train)}}


@dataclass
class _HeldOutLosses:
    """Collect the held-out losses of a training as (steps done, loss)."""

    model: PreTrainedModel
    rows: Sequence[TokenizedRow]
    examples: RowExamples
    config: SftRowsConfig
    monitor: SftWatcher
    found: list[tuple[int, SftEvaluation]] = field(default_factory=list)

    def evaluate(self, done: int) -> None:
        """Add the loss after `done` steps, once; nothing where no row is held out."""
        if self.found and self.found[-1][0] == done:
            return
        if (loss := self._loss()) is not None:
            self.found.append((done, loss))
            self.monitor.heldout(done, loss)

    def _loss(self) -> SftEvaluation | None:
        """Return the loss on the rows. Those with pictures are opened one batch at a time."""
        from genevolve_ray.learning.sft import SftEvaluation, evaluate_sft

        rows, config = self.rows, self.config
        size = config.global_batch if any(row.pictures for row in rows) else max(1, len(rows))
        parts = []
        for start in range(0, len(rows), size):
            if batch := self.examples.of(rows[start : start + size]):
                parts.append(evaluate_sft(self.model, batch, config.token_budget, config.dtype))
        if len(parts) < 2:
            return parts[0] if parts else None
        count = sum(part.target_tokens for part in parts)
        loss = sum(part.loss * part.target_tokens for part in parts) / count
        return SftEvaluation(loss=loss, target_tokens=count, perplexity=math.exp(loss))


def sft_config(config: SftRowsConfig, rows: int) -> SftConfig:
    """Return the settings of `learning.sft` for a number of rows: the number of steps follows from epochs and batch."""
    from genevolve_ray.learning.sft import SftConfig

    steps = math.ceil(config.epochs * rows / config.global_batch)
    return SftConfig(
        steps=min(steps, config.max_steps or steps),
        lr=config.lr,
        warmup_fraction=config.warmup_fraction,
        final_lr_fraction=config.final_lr_fraction,
        betas=config.betas,
        weight_decay=config.weight_decay,
        grad_clip=config.grad_clip,
        token_budget=config.token_budget,
        dtype=config.dtype,
    )
