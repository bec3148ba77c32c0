"""Fingerprints of rows by which copies are found: the shingles of a text, and the hash of a picture."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genevolve_ray.records.decoding import clean_apart
from genevolve_ray.records.pictures import PictureLimits, open_picture
from genevolve_ray.records.published.requests import normalise

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

SHINGLE = 4
"""Characters of a shingle."""
CELLS, CELL_BYTES = 8, 8 * 8 * 3
"""Cells of a picture along each side, and the bytes of their mean colors."""
SEEN = PictureLimits(max_bytes=64 << 20, long_side=256)
"""Pictures are compared at this size: the sizes of copies differ, their content at this size hardly."""
FLAT_SHARE = 0.6
"""A picture whose 16 most frequent colors cover this share of it is flat: a drawing or a diagram, not a photograph."""
_SIDE, _LOW = 32, 8
"""Side of the picture that the hash reads, and of the block of low frequencies that it keeps."""
_FLAT_COLORS = 16
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class PictureMark:
    """Describe a picture for comparison.

    Attributes:
        sha256: of the encoded bytes.
        bits: the perceptual hash, 64 bits.
        cells: mean colors of 8 x 8 cells in RGB, 192 bytes.
        flat: true for a drawing of few colors, whose hash alone says little.
    """

    sha256: str
    bits: int
    cells: bytes
    flat: bool


@dataclass(frozen=True, slots=True)
class RowMark:
    """Describe a row for comparison: its id, the text of its request, its entities, and its pictures."""

    id: str
    text: str
    entities: tuple[str, ...] = ()
    pictures: tuple[PictureMark, ...] = ()


@dataclass(frozen=True)
class RowVectors:
    """Hold embeddings of rows, of length 1 each: one of every text, and one of every picture in the order of the rows.

    None where there is no embedder; then nothing is compared by it.
    """

    texts: NDArray[np.float32] | None = None
    pictures: NDArray[np.float32] | None = None


def mark_picture(data: bytes) -> PictureMark:
    """Return the fingerprint of encoded bytes, which are untrusted.

    The hash is that of the package ImageHash (`phash`): the signs of the 8 x 8 lowest frequencies of a discrete cosine
    transform of the gray picture at 32 x 32 pixels, relative to their median. The package would bring PyWavelets along,
    for another hash.

    Raises:
        ImageRefused: for bytes that are no picture within the limits.
    """
    from PIL import Image
    from scipy.fft import dctn

    picture = open_picture(clean_apart(data, SEEN).data)
    gray = picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(gray, dtype=np.float64))[:_LOW, :_LOW]
    bits = int.from_bytes(np.packbits(low > np.median(low)).tobytes())
    cells = picture.resize((CELLS, CELLS), Image.Resampling.BOX).tobytes()
    return PictureMark(hashlib.sha256(data).hexdigest(), bits, cells, _palette_share(picture) >= FLAT_SHARE)


def _palette_share(picture: PillowImage) -> float:
    """Return the share of a picture that its most frequent colors cover, of 4,096 colors that are distinguished."""
    levels_H_W_3 = np.asarray(picture, dtype=np.int32) >> 4
    colors = (levels_H_W_3 @ np.array([256, 16, 1], dtype=np.int32)).ravel()
    counts = np.sort(np.bincount(colors, minlength=4096))
    return float(counts[-_FLAT_COLORS:].sum() / colors.size)


def shingles_of(text: str) -> NDArray[np.uint64]:
    """Return the hashes of the distinct shingles of a text in ascending order: runs of `SHINGLE` characters.

    Case, width, white space and punctuation do not count. A shorter text is one shingle.
    """
    plain = " ".join(_WORD.findall(normalise(text)))
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < SHINGLE:
        codes = np.pad(codes, (0, SHINGLE - len(codes)))
    windows = np.lib.stride_tricks.sliding_window_view(codes, SHINGLE)
    hashes = np.zeros(len(windows), dtype=np.uint64)
    for place in range(SHINGLE):
        hashes = mixed(hashes ^ windows[:, place])
    return np.unique(hashes)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64-bit integers whose bits all depend on all bits of the given ones (the finalizer of SplitMix64)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
