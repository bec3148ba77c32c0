"""`genevolve export`: the policy of a run as a folder that others can load, with a model card, and onto a hub."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import file_digest
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from genevolve_ray import __version__
from genevolve_ray.commands.model_card import CardFacts, card_text
from genevolve_ray.commands.uploads import check_target, upload
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.store.manifest import Checkpoint
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.models.companions import copy_companions
from genevolve_ray.models.hub import is_hub_id, local_model

RECORD = "genevolve_export.json"
"""File that marks a folder as an export: its origin, and the SHA-256 of every other file."""
CARD, BASE_CARD = "README.md", "README.base.md"
"""The model card, and the one of the base, which stays beside it."""
NULL_FILE = "null.json"
_NOT_EXPORTED = (NULL_FILE, "optimizer.pt", "optimizer-*-of-*.pt", CARD)
"""Patterns of the files of a checkpoint that a run resumes from."""
_ADAPTER_CONFIG = "adapter_config.json"
_BASE_KEY = "base_model_name_or_path"
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_LICENCE = re.compile(r"^[a-z0-9][a-z0-9.+-]*$")
_SHOWN = 3


@dataclass(frozen=True)
class ExportOptions:
    """Hold the options of an export."""

    step: int | None = None
    best: bool = False
    merge: bool = False
    base: str | None = None
    licence: str | None = None
    push: str | None = None
    public: bool = False


def export_run(run: Path, out: Path, options: ExportOptions) -> list[str]:
    """Write the policy of a run's checkpoint to a folder, upload it where asked, and return lines for the user.

    Raises:
        UserFault: for a checkpoint that does not exist, a folder that holds anything else than an earlier export, an
            adapter that nobody else can load, or a hub that refuses.
        StoreError: for a run that cannot be read, or a corrupt checkpoint.
    """
    _check(options)
    store = RunStore.read(str(run))
    checkpoint = _checkpoint(store, options)
    _check_target(out)
    if options.push is not None:
        check_target(options.push)
    with store.open_checkpoint(checkpoint.step) as folder:
        adapter = (folder / _ADAPTER_CONFIG).is_file()
        if options.merge and not adapter:
            raise UserFault(f"--merge-lora: the checkpoint of step {checkpoint.step} holds whole weights, no adapter")
        kept_adapter = adapter and not options.merge
        base = options.base or hub_base(store)
        if kept_adapter and options.push is not None and base is None:
            raise UserFault(
                f"--push {options.push}: the adapter names its base as {_described_base(folder)!r}, which nobody else "
                "has: name it with --base ORG/NAME, or export whole weights with --merge-lora"
            )
        place = out.resolve()
        scratch = Path(mkdtemp(dir=_parent(place), prefix=f".{place.name}-"))
        try:
            _write_policy(folder, scratch, adapter=adapter, merge=options.merge, base=base)
            facts = CardFacts(store, checkpoint, adapter=kept_adapter, merged=options.merge, base=base)
            (scratch / CARD).write_text(card_text(facts, options.licence), encoding="utf-8")
            _write_record(scratch, store, checkpoint)
            _replace(scratch, place)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    lines = [f"step {checkpoint.step} of {run} -> {out} ({'adapter' if kept_adapter else 'whole weights'})"]
    if options.licence is None:
        lines.append("the model card names no license: state one with --licence before you publish it")
    if options.push is not None:
        lines.append(upload(out, options.push, public=options.public, message=lines[0].partition(" -> ")[0]))
    return lines


def _check(options: ExportOptions) -> None:
    if options.step is not None and options.best:
        raise UserFault("--step and --best exclude each other")
    if options.licence is not None and not _LICENCE.fullmatch(options.licence):
        raise UserFault(f"--licence {options.licence!r}: write an identifier as hubs use it, such as apache-2.0")
    if options.base is not None and not _HUB_ID.fullmatch(options.base):
        raise UserFault(f"--base {options.base!r}: write ORG/NAME")


def hub_base(store: RunStore) -> str | None:
    """Return ORG/NAME of the model that a run started from, None where it was a folder."""
    named = str((store.config.get("policy") or {}).get("model") or "")
    return named.partition("@")[0] if is_hub_id(named) else None


def _checkpoint(store: RunStore, options: ExportOptions) -> Checkpoint:
    known = {checkpoint.step: checkpoint for checkpoint in store.checkpoints()}
    if not known:
        raise UserFault(f"run {store.root} has no checkpoint yet")
    if options.step is not None:
        if options.step not in known:
            there = "is committed, but has no checkpoint" if options.step in store.committed_steps() else "has none"
            raise UserFault(f"--step {options.step}: that step {there}; checkpoints: {', '.join(map(str, known))}")
        return known[options.step]
    if options.best:
        if (best := store.best_checkpoint()) is None:
            raise UserFault(f"--best: no checkpoint of {store.root} was validated (loop.validate_every)")
        return best
    return known[max(known)]


def _described_base(folder: Path) -> str:
    """Return the base that an adapter names."""
    return str(json.loads((folder / _ADAPTER_CONFIG).read_text(encoding="utf-8")).get(_BASE_KEY, ""))


def _write_policy(folder: Path, target: Path, *, adapter: bool, merge: bool, base: str | None) -> None:
    """Write weights, tokenizer and companions to an empty folder; an adapter names `base`, where there is one."""
    if adapter and merge:
        from genevolve_ray.learning.lora import export_merged

        # The tokenizer of the checkpoint is that of the run.
        export_merged(folder, target, local_model(_described_base(folder), "--merge-lora"))
    else:
        copy_companions(folder, target)
        for file in folder.iterdir():
            kept = any(fnmatchcase(file.name, pattern) for pattern in _NOT_EXPORTED)
            if file.is_file() and not kept and not (target / file.name).exists():
                shutil.copyfile(file, target / file.name)
    if (target / CARD).is_file():
        (target / CARD).rename(target / BASE_CARD)
    (target / NULL_FILE).unlink(missing_ok=True)
    if adapter and not merge and base is not None:
        path = target / _ADAPTER_CONFIG
        described = json.loads(path.read_text(encoding="utf-8")) | {_BASE_KEY: base}
        path.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


# --- the folder ---


def _parent(out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.parent


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if not path.is_dir())


def _check_target(out: Path) -> None:
    """Check that a folder is missing, empty, or holds an earlier export alone. Raises UserFault."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserFault(f"--out {out}: is a file")
    there = {path.relative_to(out).as_posix() for path in _files(out)}
    if not there:
        return
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        written = {RECORD, *record["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserFault(
            f"--out {out}: exists and was not written by an export, so it is not overwritten: name another folder"
        ) from None
    foreign = sorted(there - written)
    changed = [name for name in sorted(there & set(record["files"])) if _digest(out / name) != record["files"][name]]
    if foreign or changed:
        named = ", ".join((foreign or changed)[:_SHOWN])
        what = "files of another origin" if foreign else "files that were changed since its export"
        raise UserFault(f"--out {out}: holds {what} ({named}), so it is not overwritten: name another folder")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _write_record(folder: Path, store: RunStore, checkpoint: Checkpoint) -> None:
    files = {path.relative_to(folder).as_posix(): _digest(path) for path in _files(folder)}
    record: dict[str, Any] = {
        "package": __version__,
        "run": str(store.config.get("name", "")),
        "created": store.info.created,
        "step": checkpoint.step,
        "state_hash": checkpoint.state_hash,
        "files": files,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _replace(scratch: Path, out: Path) -> None:
    """Put a finished folder into its place, which holds an earlier export at most.

    A folder that is there stays, because it may be the working directory; the record of the export comes last.
    """
    if not out.exists():
        scratch.chmod(0o755)
        os.replace(scratch, out)
        return
    for old in out.iterdir():
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    for new in sorted(scratch.iterdir(), key=lambda path: path.name == RECORD):
        os.replace(new, out / new.name)
