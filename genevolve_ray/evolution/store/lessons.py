"""The lessons and guided re-draws of a committed step, named by its manifest: applying the step again needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genevolve_ray.evolution.store.manifest import GroupFile
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.experience import Lesson, MovedToken
from genevolve_ray.records.trajectory import Group


def lesson_state(lessons: Sequence[Lesson], moved: Sequence[MovedToken]) -> dict[str, Any]:
    """Return the part of a step's manifest about its lessons, for applying the step again and for displays."""
    return {name: [r.model_dump(mode="json") for r in rs] for name, rs in (("lessons", lessons), ("moved", moved))}


def stored_lessons(store: RunStore, step: int) -> list[Lesson]:
    """Return the lessons of a committed step, in the order of its requests."""
    return [Lesson.model_validate(lesson) for lesson in store.manifest(step).loop.get("lessons", ())]


def stored_moved(store: RunStore, step: int) -> list[MovedToken]:
    """Return the tokens on which the teacher of a committed step disagreed most."""
    return [MovedToken.model_validate(token) for token in store.manifest(step).loop.get("moved", ())]


def redraw_state(store: RunStore, step: int, redraws: Sequence[Group]) -> dict[str, Any]:
    """Persist the re-draws of a step, and return the part of its manifest that names them; empty without any."""
    files = [store.put_redraws(step, group).model_dump(mode="json") for group in redraws]
    return {"redraws": files} if files else {}


def stored_redraws(store: RunStore, step: int) -> list[Group]:
    """Return the re-draws of a committed step, in the order of its requests. Raises StoreError as `RunStore.groups`."""
    return [store.read_group(GroupFile.model_validate(file)) for file in store.manifest(step).loop.get("redraws", ())]
