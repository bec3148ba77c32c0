"""Assignment of renderers to groups, while renderers are replaced in a running evolution."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class RendererGenerations:
    """Number the renderers in generations: a group keeps the one it began with, new groups take the current one.

    Generation 0 is the renderer that the process started with; a swap is the generation of its number.
    """

    def __init__(self) -> None:
        """Begin with generation 0."""
        self.current = 0
        self._held: Counter[int] = Counter()
        self._changed = asyncio.Event()

    @contextmanager
    def hold(self) -> Iterator[int]:
        """Keep the current generation as long as a group or a whole evaluation needs it; yield its number."""
        generation = self.current
        self._held[generation] += 1
        try:
            yield generation
        finally:
            self._held[generation] -= 1
            self._changed.set()

    def switch(self, generation: int) -> None:
        """Make a generation current for all later groups and evaluations."""
        self.current = generation

    async def drained(self, generation: int) -> None:
        """Wait until a generation has no holder; for a former generation this is permanent."""
        while self._held[generation]:
            self._changed.clear()
            await self._changed.wait()
