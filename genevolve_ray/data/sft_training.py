"""Supervised fine-tuning of a model folder on published SFT rows, with a held-out loss and a report of rejected rows.

The policy, its ranks and its adapter are built by the code of the learner of a run. A training that ended in any way
resumes from its newest state when the same call is made again.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from genevolve_ray import __version__
from genevolve_ray.agent.chat import load_tokenizer
from genevolve_ray.agent.profile import ProtocolProfile
from genevolve_ray.agent.trained_prompt import keep_trained_prompt
from genevolve_ray.data.sft_config import SftRowsConfig, learner_config, sft_config
from genevolve_ray.data.sft_folder import TrainingFolder, model_identity
from genevolve_ray.data.sft_pictures import RowExamples, RowPictures
from genevolve_ray.data.sft_progress import SftProgress
from genevolve_ray.data.sft_rows import RowEncoder, epochs_of
from genevolve_ray.data.sft_sets import RowSets, compare_words, describe, load_rows, same_rows
from genevolve_ray.engines.checks import check_vocabulary
from genevolve_ray.errors import UserFault
from genevolve_ray.models.companions import check_companions
from genevolve_ray.records.published.rejections import DataError, RejectionReport

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from genevolve_ray.learning.distributed import Ranks
    from genevolve_ray.learning.sft import SftEvaluation, SftExample, SftStep

_LOG = logging.getLogger(__name__)
REPORT_FILE = "rejections.json"


class SftWatcher(Protocol):
    """Define an observer of a training."""

    def start(self, report: RejectionReport, train: int, heldout: int, steps: int) -> None:
        """Receive the report of the rows, the numbers of rows to train and evaluate on, and the number of steps."""
        ...

    def resumed(self, done: int) -> None:
        """Receive the number of steps that were taken before, where a training resumes."""
        ...

    def step(self, step: SftStep) -> None:
        """Receive the result of a step."""
        ...

    def heldout(self, done: int, evaluation: SftEvaluation) -> None:
        """Receive the held-out loss after `done` steps."""
        ...


def train_on_rows(
    paths: Sequence[Path],
    model_dir: Path,
    out: Path,
    config: SftRowsConfig,
    monitor: SftWatcher,
    *,
    ranks: Ranks | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fine-tune the model in `model_dir` on rows and write it to `out` in HF layout; return the provenance.

    The folder of the checkpoint also holds `rejections.json` (rows that were left out, with reasons) and `sft.json`
    (settings, counts, losses), and the system prompt of the rows as `system_prompt.md`. Where `out` holds the same
    training unfinished, it resumes from its newest state. Over several ranks this is a collective, and `out` is a
    folder that all of them see.

    Raises:
        DataError: for unusable data, a tokenizer without a usable chat template, or `images=vision` for a model that
            does not see.
        FileNotFoundError: for a model folder without config.json or tokenizer.
        PermissionError: for a file of the model folder that cannot be copied.
        OccupiedFolder: where `out` holds another training, or a finished one without `overwrite`.
        UserFault: for settings that do not fit the model, or a state that cannot be read.
    """
    from genevolve_ray.learning.distributed import Ranks, lone_rank
    from genevolve_ray.learning.policy import has_tokenizer

    if ranks is None or not ranks.sharded:
        ranks = lone_rank(config.device) if learner_config(config).shards else Ranks()
    if not has_tokenizer(model_dir):
        raise FileNotFoundError(f"no tokenizer files in {str(model_dir)!r}")
    check_companions(model_dir)
    settings = config.model_dump(mode="json")
    folder = TrainingFolder(out, {"model": model_identity(model_dir), **settings}, overwrite)
    folder.check()
    started, report = time.perf_counter(), RejectionReport()
    encoder, pictures = _encoder(model_dir, config, folder.date())
    rows = load_rows(paths, encoder, config, report, ranks)
    words = compare_words(rows.prompts, config)
    monitor.start(report, len(rows.train), len(rows.heldout), sft_config(config, len(rows.train)).steps)
    training = _Training(model_dir, config, folder, monitor, ranks)
    try:
        training.begin(rows, RowExamples(pictures, report, ranks), encoder.date)
        training.run(started)
        facts = {"date": encoder.date, "rows": [str(path) for path in paths], **words}
        provenance = training.finish(facts, started)
    finally:
        folder.release()
        if pictures is not None:
            pictures.close()
    return provenance


class _Training:
    """Hold one training: the policy and its optimizer, its rows, and what has happened so far."""

    rows: RowSets
    examples: RowExamples
    progress: SftProgress

    def __init__(
        self, model_dir: Path, config: SftRowsConfig, folder: TrainingFolder, monitor: SftWatcher, ranks: Ranks
    ) -> None:
        """Build the policy. Raises UserFault naming a setting that does not fit it."""
        self.model_dir, self.config, self.folder, self.monitor, self.ranks = model_dir, config, folder, monitor, ranks
        self.learner = learner_config(config)
        self.model, self.adapter = self._policy()

    def _policy(self) -> tuple[PreTrainedModel, Any]:
        """Return the policy as it is trained, and its adapter's description."""
        from genevolve_ray.learning.build import build_policy
        from genevolve_ray.learning.policy import vision_tower

        try:
            model, adapter = build_policy(self.model_dir, self.learner, self.ranks)
        except ValueError as error:
            raise UserFault(f"{self.model_dir}: {' '.join(str(error).split())}") from error
        if self.config.tower == "trained" and (tower := vision_tower(model)) is not None:
            tower.requires_grad_(True)
        return model, adapter

    def begin(self, rows: RowSets, examples: RowExamples, date: str | None) -> None:
        """Take the folder, and restore the newest state where it holds this training."""
        from genevolve_ray.learning.sft import build_optimizers
        from genevolve_ray.learning.sft_state import load_state

        self.rows, self.examples = rows, examples
        self.settings = sft_config(self.config, len(rows.train))
        self.optimizers = build_optimizers(self.model, self.settings)
        before = self.folder.begin({"date": date, **describe(rows)}) if self.ranks.first else None
        self.ranks.combine({"begun": 1.0}, frozenset())  # The others read what rank 0 has checked.
        if not self.ranks.first:
            before = self.folder.rows()
        newest = self.folder.newest()
        self.progress = SftProgress() if newest is None else SftProgress.read(newest[1])
        if before is not None:
            self.rows = same_rows(rows, before, self.progress.lost, self.folder.out)
            self.settings = sft_config(self.config, len(self.rows.train))
        examples.lose_again(self.progress.lost, [*rows.train, *rows.heldout])
        if newest is not None:
            load_state(self.model, self.optimizers, newest[0])
            self.monitor.resumed(self.progress.steps)

    def run(self, started: float) -> None:
        """Take the steps that are left. Raises DataError when no row is left."""
        from genevolve_ray.learning.sft import train_sft

        every = math.ceil(len(self.rows.train) / self.config.global_batch)

        def after(step: SftStep) -> None:
            done = step.step + 1
            self.progress.history.append(step)
            self.monitor.step(step)
            if done % (self.config.evaluate_every or every) == 0:
                self._evaluate(done)
            if done % self.config.checkpoint_every == 0:
                self._save(done, started)

        if not self.progress.history:
            self._evaluate(0)
        train_sft(
            self.model,
            self._batches(),
            self.settings,
            after,
            optimizers=self.optimizers,
            ranks=self.ranks,
            first=self.progress.steps,
        )
        if not self.progress.history:
            raise DataError(f"no row is left to train on: {self.examples.report.text()}")
        self._evaluate(self.progress.steps)

    def _batches(self) -> Iterator[list[SftExample]]:
        """Yield the batches that were not trained on yet."""
        config, drawn = self.config, self.progress.batches
        batches = epochs_of(self.rows.train, epochs=config.epochs, batch=config.global_batch, seed=config.seed)
        for number, batch in enumerate(islice(batches, drawn, None), drawn + 1):
            made = self.examples.of(batch)
            self.progress.batches = number
            if made:
                yield made

    def _save(self, done: int, started: float) -> None:
        """Write the state after a step."""
        from genevolve_ray.learning.sft_state import save_state

        if not self.ranks.first:
            save_state(self.model, self.optimizers, self.ranks, None)
            return
        self.progress.lost = list(self.examples.lost)
        seconds = self.progress.seconds + time.perf_counter() - started
        with self.folder.state(done, self.progress.values(seconds)) as target:
            save_state(self.model, self.optimizers, self.ranks, target)

    def finish(self, facts: dict[str, Any], started: float) -> dict[str, Any]:
        """Write the result with its reports, and return the provenance."""
        from genevolve_ray.learning.sft_state import save_result

        parts = (self.model, self.adapter, self.ranks, self.model_dir)
        provenance = self._provenance(facts, started)
        if not self.ranks.first:
            save_result(*parts, None, self.learner)
            return provenance
        with self.folder.result() as target:
            save_result(*parts, target, self.learner)
            self.examples.report.write(target / REPORT_FILE)
            keep_trained_prompt(target, self.rows.prompts)
            provenance["files"] = sorted(str(f.relative_to(target)) for f in target.rglob("*") if f.is_file())
        self.folder.finish(provenance)
        return provenance

    def _provenance(self, facts: dict[str, Any], started: float) -> dict[str, Any]:
        rows, progress = self.rows, self.progress
        provenance = {
            "package": __version__,
            "model": str(self.model_dir),
            "settings": self.config.model_dump(mode="json", exclude={"profile"}),
            **facts,
            "trained_on": len(rows.train),
            "held_out": len(rows.heldout),
            "longest": max(map(len, rows.train)),
            "steps": progress.steps,
            "loss": [step.loss for step in progress.history],
            "heldout": [{"steps": done, **asdict(evaluation)} for done, evaluation in progress.heldout],
            "seconds": round(progress.seconds + time.perf_counter() - started, 1),
        }
        return provenance | (_seen(rows, self.config) if self.config.images == "vision" else {})

    def _evaluate(self, done: int) -> None:
        """Add the held-out loss after `done` steps, once; nothing where no row is held out."""
        found = self.progress.heldout
        if found and found[-1][0] == done:
            return
        if (loss := self._heldout_loss()) is not None:
            found.append((done, loss))
            self.monitor.heldout(done, loss)

    def _heldout_loss(self) -> SftEvaluation | None:
        """Return the loss on the held-out rows. Those with pictures are opened one batch at a time."""
        from genevolve_ray.learning.sft import SftEvaluation, evaluate_sft

        rows, config = self.rows.heldout, self.config
        size = config.global_batch if any(row.pictures for row in rows) else max(1, len(rows))
        parts = []
        for start in range(0, len(rows), size):
            if batch := self.examples.of(rows[start : start + size]):
                settings = (config.token_budget, config.dtype, self.ranks, config.packed_rows)
                parts.append(evaluate_sft(self.model, batch, *settings))
        if len(parts) < 2:
            return parts[0] if parts else None
        count = sum(part.target_tokens for part in parts)
        loss = sum(part.loss * part.target_tokens for part in parts) / count
        return SftEvaluation(loss=loss, target_tokens=count, perplexity=math.exp(loss))


def _encoder(model_dir: Path, config: SftRowsConfig, date: str) -> tuple[RowEncoder, RowPictures | None]:
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
        return RowEncoder(tokenizer, config.cutoff, pictures, date), pictures
    except Exception as error:  # Files of others: tokenizers raises plain exceptions.
        raise DataError(f"{model_dir}: {' '.join(str(error).split())}") from error


def _seen(rows: RowSets, config: SftRowsConfig) -> dict[str, Any]:
    """Return what the provenance records of pictures: how they were scaled, and how many there were."""
    assert isinstance(config.profile, ProtocolProfile), "validated"
    scaled = config.profile.observations.model_dump(include={"max_side", "max_pixels"})
    return {"pictures": scaled | {"trained_on": sum(len(row.pictures) for row in rows.train)}}
