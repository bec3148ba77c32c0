"""`python -m benchmarks.scaling_pictures`: tokens, memory and operations of the pictures that an 8B policy sees.

By arithmetic alone, with the constants of `benchmarks.scaling`; docs/scaling.md holds the printed table.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.scaling import BLOCKS, CONTEXT, GB, HIDDEN, KV_BYTES, VISION, P, T, cache_tokens, forward_flops

# --- published -------------------------------------------------------------------------------------------------------
PATCH_VALUES, MERGE, DEEPSTACK = 3 * 2 * 16 * 16, 4, 3
"""Values of a patch, patches of a token, and layers of the decoder that get features of their own (its config.json)."""
TOWER_LAYERS, TOWER_HIDDEN, TOWER_MLP = 27, 1152, 4304
SEARCHES, HITS, RESPONSE = 10, 5, 30_000
"""Most searches of an episode, hits of a search, and tokens of a response, in the profile of the preset `paper`."""
REQUESTS, ROLLOUTS = 8, 6
"""Requests of a step and rollouts of each."""

# --- of the preset ---------------------------------------------------------------------------------------------------
PICTURE = 270 + 2
"""Most tokens of a picture with max_side 640 and max_pixels 262,144, and the two tokens around them."""

# --- assumed ---------------------------------------------------------------------------------------------------------
USUAL = 3
"""Image searches of a usual episode."""
DISTINCT = 0.5
"""Share of the pictures of a step that differ: the rollouts of a group find the same ones."""


@dataclass(frozen=True)
class Pictures:
    """Hold a number of pictures, with what they cost."""

    count: float

    @property
    def tokens(self) -> float:
        """Tokens in the context."""
        return self.count * PICTURE

    @property
    def cache_gb(self) -> float:
        """GB of keys and values in the engine's cache."""
        return self.tokens * KV_BYTES / GB

    @property
    def input_gb(self) -> float:
        """GB of the tower's input, float32."""
        return self.count * (PICTURE - 2) * MERGE * PATCH_VALUES * 4 / GB

    @property
    def feature_gb(self) -> float:
        """GB of the tower's output, bfloat16: the features of the tokens, and those for the first layers."""
        return self.count * (PICTURE - 2) * (1 + DEEPSTACK) * HIDDEN * 2 / GB

    @property
    def pass_gb(self) -> float:
        """GB that one pass of the frozen tower holds at once: one layer, as nothing is kept for a gradient."""
        return self.count * (PICTURE - 2) * MERGE * (8 * TOWER_HIDDEN + 2 * TOWER_MLP) * 2 / GB

    @property
    def tower_flops(self) -> float:
        """Operations of one pass of the tower; a picture attends to itself alone."""
        patches = (PICTURE - 2) * MERGE
        return self.count * (2 * VISION * patches + 4 * TOWER_LAYERS * TOWER_HIDDEN * patches**2)

    @property
    def decoder_flops(self) -> float:
        """Operations of one pass of the decoder over the tokens, attention left out."""
        return 2 * BLOCKS * self.tokens


SEARCH, EPISODE, LONGEST = Pictures(HITS), Pictures(USUAL * HITS), Pictures(SEARCHES * HITS)
STEP = Pictures(REQUESTS * ROLLOUTS * USUAL * HITS * DISTINCT)
"""The distinct pictures of a usual step."""


def pictures_table() -> list[str]:
    """Return tokens, memory and operations of pictures, from one picture to the longest episode."""
    rows = {
        "a picture": Pictures(1),
        f"a search ({HITS})": SEARCH,
        f"an episode of {USUAL} searches": EPISODE,
        f"an episode of {SEARCHES} searches": LONGEST,
    }
    lines = [
        "| pictures | tokens | cache, GB | input, GB | features, GB | tower pass, GB | tower, 1e12 | decoder, 1e12 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, of in rows.items():
        sizes = (of.cache_gb, of.input_gb, of.feature_gb, of.pass_gb)
        work = (of.tower_flops / 1e12, of.decoder_flops / 1e12)
        cells = [f"{of.tokens:,.0f}", *(f"{size:.2f}" for size in sizes), *(f"{flops:,.0f}" for flops in work)]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def sequences(share: float = 0.85) -> tuple[int, int]:
    """Return the sequences that an engine's cache holds without pictures, and with half of an episode's."""
    tokens = cache_tokens(share)
    return int(tokens / CONTEXT), int(tokens / (CONTEXT + EPISODE.tokens / 2))


def learner_share() -> tuple[float, float]:
    """Return how much longer a learner's pass is with an episode's pictures: features kept, and computed in each pass."""
    longer = forward_flops() * (T + EPISODE.tokens) / T
    return longer / forward_flops(), (longer + EPISODE.tower_flops) / forward_flops()


TABLES = {"pictures": pictures_table}


def main() -> None:
    """Print the table of docs/scaling.md, and the numbers of its text."""
    print("<!-- pictures -->", *pictures_table(), "", sep="\n")
    blind, seeing = sequences()
    kept, again = learner_share()
    print(f"sequences in the cache: {blind} without pictures, {seeing} with; policy tokens of an episode: {P}")
    print(f"features of a step's {STEP.count:.0f} distinct pictures: {STEP.feature_gb:.1f} GB")
    print(f"a learner's pass: {kept:.2f} times as long with features kept, {again:.2f} with the tower in each pass")


if __name__ == "__main__":
    main()
