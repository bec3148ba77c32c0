"""The prompt-reference program z = (g, R): the agent's output and the generator's input (PAPER section 1)."""

from __future__ import annotations

import re
import unicodedata
from enum import StrEnum

from pydantic import Field

from genevolve_ray.errors import PolicyFault
from genevolve_ray.records.base import Record

IMAGE_ID = re.compile(r"IMG_\d{3,}")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
_ORDINAL_PHRASE = re.compile(rf"\b({'|'.join(ORDINALS)})\s+reference\s+image\b", re.IGNORECASE)
_NAMED_ID = re.compile(r"IMG[_\s-]*\d{3,}", re.IGNORECASE)
"""An image id in any spelling that a reader would take for one."""
_LINK = re.compile(
    r"(?:https?|ftp|file|data|atlas)://|\bwww\.|\b(?:file:/|javascript:|data:[\w.+-]+/[\w.+-]+[;,])"
    r"|(?:^|[\s\"'(\[])(?:\.{0,2}/[\w.-]+/|~/[\w.-]|//\w|\\\\\w|[a-z]:\\)",
    re.IGNORECASE,
)


_DETAIL_CHARS = 160


class ProgramFault(StrEnum):
    """Name the reason why an answer is not a program that a generator may run."""

    NOT_JSON = "answer is not a JSON object"
    FIELDS = "answer needs exactly gen_prompt (text) and reference_images (list of img_id and note)"
    EMPTY_PROMPT = "gen_prompt is empty"
    REFERENCE_COUNT = "number of reference images is out of bounds"
    UNKNOWN_REFERENCE = "img_id was never returned by image_search in this trajectory"
    DUPLICATE_REFERENCE = "the same img_id is listed twice"
    UNSORTED = "reference_images are not sorted by img_id"
    LEAKED_ID = "gen_prompt names an image id"
    LEAKED_LINK = "gen_prompt holds a link or a path"
    ORDINALS = "ordinal phrases in gen_prompt do not match the reference images"
    NO_IMAGE_SEARCH = "no image_search call before the answer"


class ProgramError(PolicyFault):
    """Report an invalid program; `fault` is the rule it breaks, `detail` the invalid value."""

    def __init__(self, fault: ProgramFault, detail: str = "") -> None:
        """Keep the fault and the value, cut to a length that can be shown."""
        detail = detail[:_DETAIL_CHARS]
        super().__init__(f"{fault.value}{': ' + detail if detail else ''}")
        self.fault = fault
        self.detail = detail


class ReferenceImage(Record):
    """Represent one reference of a program: an image id of this trajectory and the reason for it."""

    img_id: str = Field(pattern=r"^IMG_\d{3,}$")
    note: str = ""


class Program(Record):
    """Hold a prompt and 1-2 references; the prompt names references by ordinal phrase only."""

    gen_prompt: str
    reference_images: tuple[ReferenceImage, ...]


def image_number(img_id: str) -> int:
    """Return the number inside an image id, so that IMG_1000 sorts after IMG_999."""
    return int(img_id.removeprefix("IMG_"))


def _as_seen(text: str) -> str:
    """Return a text as it reads: look-alike letters folded to plain ones, without invisible characters."""
    return "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")


def check_program(program: Program, *, known_ids: set[str], max_references: int = 2) -> None:
    """Check a program against the rules of the protocol.

    Raises:
        ProgramError: naming the first rule that is broken and the invalid value.
    """
    prompt, ids = program.gen_prompt, [r.img_id for r in program.reference_images]
    if not prompt.strip():
        raise ProgramError(ProgramFault.EMPTY_PROMPT)
    if not 1 <= len(ids) <= max_references:
        raise ProgramError(ProgramFault.REFERENCE_COUNT, f"{len(ids)}, allowed 1 to {max_references}")
    for img_id in ids:
        if img_id not in known_ids:
            raise ProgramError(ProgramFault.UNKNOWN_REFERENCE, img_id)
    if len(set(ids)) != len(ids):
        raise ProgramError(ProgramFault.DUPLICATE_REFERENCE, ", ".join(ids))
    if ids != sorted(ids, key=image_number):
        raise ProgramError(ProgramFault.UNSORTED, ", ".join(ids))
    seen = _as_seen(prompt)
    if leaked := _NAMED_ID.search(seen):
        raise ProgramError(ProgramFault.LEAKED_ID, leaked.group())
    if leaked := _LINK.search(seen):
        raise ProgramError(ProgramFault.LEAKED_LINK, leaked.group())
    named = {m.group(1).lower() for m in _ORDINAL_PHRASE.finditer(prompt)}
    if named != set(ORDINALS[: len(ids)]):
        raise ProgramError(ProgramFault.ORDINALS, f"prompt names {sorted(named)}, program has {len(ids)} references")
