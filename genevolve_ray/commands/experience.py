"""`genevolve experience`: the bundles of a run on the terminal."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.experience import build_run_embedder
from genevolve_ray.evolution.plugin_folders import look_beside
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.experience.config import ExperienceConfig, MemoryConfig
from genevolve_ray.experience.memory import Entry, ExperienceMemory, Hit, decode_memory
from genevolve_ray.experience.recall import embedded
from genevolve_ray.records.leaks import mask
from genevolve_ray.records.secrets import shown


@dataclass(frozen=True)
class StoredExperience:
    """Hold the experience memory of a run after its step `step`, and the settings it was made with."""

    step: int
    config: ExperienceConfig
    memory: ExperienceMemory

    def entry(self, number: int) -> Entry:
        """Return a bundle by its number. Raises UserFault when it does not exist (it never did, or it was evicted)."""
        for entry in self.memory.entries:
            if entry.number == number:
                return entry
        raise UserFault(
            f"no bundle {number} in the memory of step {self.step}: it was replaced, evicted or never created"
        )

    def search(self, text: str, top: int) -> list[Hit]:
        """Return the bundles nearest to a request. Raises UserFault when the run's embedder cannot be used here."""
        key = mask(text) if self.config.key.masked else text
        try:
            vectors = asyncio.run(embedded(build_run_embedder(self.config.embedder), [key]))
            return self.memory.search(vectors[0], top)
        except (ValueError, InfraFailure) as error:
            used = self.config.embedder.type or self.config.embedder.kind
            raise UserFault(f"cannot search with embedder {used!r}: {error}") from error


_PIPE_COLUMNS = 160


def load_experience(run: Path | str) -> StoredExperience:
    """Return the experience of a run as its last committed step left it.

    Raises:
        StoreError: when there is no run, or naming the corrupt snapshot.
        UserFault: when the run keeps no experience.
    """
    store = RunStore.read(str(run))
    steps = store.experience_steps()
    if not steps:
        raise UserFault(f"run {run} has no experience: it is disabled, or no step is committed yet")
    try:
        config = ExperienceConfig.model_validate(store.config.get("experience", {}))
    except ValidationError as error:
        raise UserFault(f"run {run}: its experience settings cannot be read: {error.errors()[0]['msg']}") from error
    look_beside(store.config.get("layers") or ())
    snapshot = store.get_experience(steps[-1])
    # The run's capacity does not matter: nothing is inserted here.
    size = MemoryConfig(capacity=max(1, len(decode_memory(snapshot).entries)))
    return StoredExperience(steps[-1], config, ExperienceMemory.restore(snapshot, size))


def _safe(text: str) -> str:
    """Return text of a summarizer or a request for the terminal: without markup, control sequences and secrets."""
    return escape(shown(text))


def _console() -> Console:
    """Return the console; rich would assume 80 columns where the output is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_COLUMNS)


def print_bundles(run: Path) -> None:
    """Print a table of all bundles, the youngest last."""
    found = load_experience(run)
    table = Table(title=f"{len(found.memory)} bundles after step {found.step}")
    for heading in ("bundle", "step", "gap", "uses", "of others"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("request", no_wrap=True)
    table.add_column("about", overflow="fold")
    for entry in found.memory.entries:
        bundle, others = entry.experience, sum(not use.own for use in entry.uses)
        numbers = (str(entry.number), str(bundle.step), f"{bundle.gap:.2f}", str(len(entry.uses)), str(others))
        table.add_row(*numbers, _safe(bundle.request_id), _safe(bundle.summary))
    _console().print(table)


def print_bundle(run: Path, number: int) -> None:
    """Print one bundle as a card. Raises UserFault when it does not exist."""
    entry = load_experience(run).entry(number)
    bundle, console = entry.experience, _console()
    console.rule(f"bundle {number}: step {bundle.step}, request {_safe(bundle.request_id)}, gap {bundle.gap:.2f}")
    for name, text in (("trigger", bundle.trigger), ("summary", bundle.summary), ("key", entry.key)):
        console.print(f"[bold]{name}[/bold] {_safe(text)}")
    console.print(f"[bold]format[/bold] {bundle.format.value}")
    for slot, bullets in bundle.guidance.items():
        console.print(f"[bold]{slot.replace('_', ' ')}[/bold]")
        for bullet in bullets:
            console.print(f"  - {_safe(bullet)}")
    console.print(f"[bold]best attempt[/bold] {_safe(bundle.best)}   [bold]worst attempt[/bold] {_safe(bundle.worst)}")
    console.print(f"[bold]used[/bold] {len(entry.uses)} times")
    for use in entry.uses:
        whose = "its own request" if use.own else _safe(use.request_id)
        console.print(f"  - step {use.step}: {whose}, cosine {use.similarity:.3f}")


def print_search(run: Path, text: str, top: int) -> None:
    """Print the bundles nearest to a request; those that a run would not have retrieved are dimmed."""
    found = load_experience(run)
    threshold = found.config.memory.least_cosine
    table = Table(title=f"nearest bundles; a run retrieves bundles above cosine {threshold:g}")
    for heading in ("bundle", "cosine", "step"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("request", no_wrap=True)
    table.add_column("about", overflow="fold")
    for hit in found.search(text, top):
        bundle = hit.experience
        numbers = (str(hit.number), f"{hit.similarity:.3f}", str(bundle.step))
        style = None if hit.similarity >= threshold else "dim"
        table.add_row(*numbers, _safe(bundle.request_id), _safe(bundle.summary), style=style)
    _console().print(table)
