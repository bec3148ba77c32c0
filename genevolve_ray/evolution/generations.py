"""Which renderer each group draws with, while renderers are replaced under a running evolution."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class RendererGenerations:
    """Renderers come in numbered generations: a group keeps the one it began with, new groups take the current one.

    Generation 0 is what the process started with; a swap is the generation of its number.
    """

    def __init__(self) -> None:
        """Begin with generation 0."""
        self.current = 0
        self._held: Counter[int] = Counter()
        self._changed = asyncio.Event()

    @contextmanager
    def hold(self) -> Iterator[int]:
        """Keep the current generation for as long as a group, or a whole evaluation, needs it; yields its number."""
        generation = self.current
        self._held[generation] += 1
        try:
            yield generation
        finally:
            self._held[generation] -= 1
            self._changed.set()

    def switch(self, generation: int) -> None:
        """Whatever begins from now on takes another generation."""
        self.current = generation

    async def drained(self, generation: int) -> None:
        """Wait until nobody holds a generation; only a former one comes to that for good."""
        while self._held[generation]:
            self._changed.clear()
            await self._changed.wait()
