"""The rows of a fine-tuning as tokens: split, compared with the profile, and found again when a training resumes."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genevolve_ray.agent.profile import ProtocolProfile
from genevolve_ray.agent.trained_prompt import prompt_difference
from genevolve_ray.data.sft_config import SftRowsConfig
from genevolve_ray.data.sft_folder import OccupiedFolder, digest_of
from genevolve_ray.data.sft_rows import RowEncoder, RowOutcome, TokenizedRow
from genevolve_ray.records.published.exclusion import read_exclusion
from genevolve_ray.records.published.rejections import DataError, Rejection, RejectionReason, RejectionReport
from genevolve_ray.records.published.splits import Split, SplitConfig, split_keys
from genevolve_ray.records.published.trajectories import SftRow, read_sft
from genevolve_ray.records.seeds import derive_seed

if TYPE_CHECKING:
    from genevolve_ray.learning.distributed import Ranks

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowSets:
    """Hold rows as tokens, for training and for the held-out loss."""

    train: list[TokenizedRow]
    heldout: list[TokenizedRow]
    prompts: Counter[str] = field(default_factory=Counter)
    """System prompts of the rows to train on, by their number of rows before `max_rows`."""


class SharedEncoding:
    """Encode rows on all ranks, each an equal share of them, and give every rank all of them in order.

    All ranks add the same rows. A step needs all rows of its batch on every rank, which divides them by their tokens.
    """

    def __init__(self, encoder: RowEncoder, ranks: Ranks | None) -> None:
        """Encode on these ranks, None for this process alone."""
        self._encoder, self._ranks = encoder, ranks
        self._targets: list[list[TokenizedRow]] = []
        self._own: dict[int, RowOutcome] = {}

    def add(self, row: SftRow, target: list[TokenizedRow]) -> None:
        """Encode a row that will be appended to a list, or leave it to another rank."""
        number, ranks = len(self._targets), self._ranks
        self._targets.append(target)
        if ranks is None or number % ranks.size == ranks.rank:
            self._own[number] = self._encoder.outcome(row)

    def finish(self, report: RejectionReport) -> None:
        """Append all rows that are kept, and report the others. Raises DataError where ranks read different files."""
        own = len(self._targets), self._own
        found = [own] if self._ranks is None else self._ranks.exchange(own)
        if len(counts := [count for count, _ in found]) != counts.count(counts[0]):
            raise DataError(f"the ranks read different files: {', '.join(map(str, counts))} rows")
        outcomes = {number: outcome for _, its in found for number, outcome in its.items()}
        for number, target in enumerate(self._targets):
            target.extend(outcomes[number].reported(report))


def load_rows(
    paths: Sequence[Path],
    encoder: RowEncoder,
    config: SftRowsConfig,
    report: RejectionReport,
    ranks: Ranks | None = None,
) -> RowSets:
    """Read, split and tokenize rows. A request that is held out is never trained on.

    Over several ranks a collective: each tokenizes a share, and all return the same rows.

    Raises:
        DataError: for a file that is missing or broken, or when no row is left to train on.
    """
    rows, away, encoding = RowSets([], []), set[str](), SharedEncoding(encoder, ranks)
    for row in read_sft(config.heldout_paths, report, config.reading):
        away.add(row.key)
        encoding.add(row, rows.heldout)
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
            encoding.add(row, rows.heldout)
        else:
            _count_prompt(row, rows.prompts)
            encoding.add(row, rows.train)
    encoding.finish(report)
    if not rows.train:
        raise DataError(f"no row to train on in {', '.join(map(str, paths))}: {report.text()}")
    if config.max_rows is not None and config.max_rows < len(rows.train):
        order = np.random.default_rng(derive_seed(config.seed, "sft-rows")).permutation(len(rows.train))
        rows.train[:] = [rows.train[place] for place in sorted(order[: config.max_rows].tolist())]
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


def compare_words(prompts: Counter[str], config: SftRowsConfig) -> dict[str, str]:
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


def describe(rows: RowSets) -> dict[str, list[list[Any]]]:
    """Return the file, the number and a digest of every row, in order, as plain values."""
    return {name: [_described(row) for row in its] for name, its in _sets(rows)}


def same_rows(rows: RowSets, before: Mapping[str, Any], lost: Sequence[Rejection], out: Path) -> RowSets:
    """Return the rows of a training that resumes, after a comparison with those that it began with.

    A row that was left out during the training, because its pictures changed, may be missing now. An empty row then
    takes its place, so that the order of the others stays the same.

    Args:
        rows: the rows as they are read now.
        before: what `describe` returned at the start.
        lost: rows that were left out since.
        out: the folder of the training, for the message.

    Raises:
        OccupiedFolder: naming the first row that is another one.
    """
    gone = {(rejection.source, rejection.number) for rejection in lost}
    found = {name: _aligned(name, its, before.get(name), gone, out) for name, its in _sets(rows)}
    return RowSets(found["train"], found["heldout"], rows.prompts)


def _aligned(
    name: str, rows: Sequence[TokenizedRow], before: Any, gone: set[tuple[str, int]], out: Path
) -> list[TokenizedRow]:
    aligned, left = list[TokenizedRow](), list(reversed(rows))
    for source, number, digest in before or ():
        now = left[-1] if left else None
        if now is not None and _described(now)[2] == digest:
            aligned.append(left.pop())
        elif (source, number) in gone:
            aligned.append(TokenizedRow("", array("i"), (), (), source, number))
            if now is not None and (now.source, now.number) == (source, number):
                left.pop()
        else:
            raise _other_rows(name, f"row {number} of {source} is another one now", out)
    if left:
        raise _other_rows(name, f"row {left[-1].number} of {left[-1].source} is new", out)
    return aligned


def _other_rows(name: str, what: str, out: Path) -> OccupiedFolder:
    purpose = "train on" if name == "train" else "hold out"
    return OccupiedFolder(f"--out {out} holds a training with other rows to {purpose}: {what}; name another --out")


def _described(row: TokenizedRow) -> list[Any]:
    return [row.source, row.number, digest_of(row.tokens.tobytes(), row.spans, [p.grid for p in row.pictures])]


def _sets(rows: RowSets) -> tuple[tuple[str, list[TokenizedRow]], ...]:
    return ("train", rows.train), ("heldout", rows.heldout)
