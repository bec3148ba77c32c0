"""Text form of observations: the published wire protocol, with neutralized external text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from genevolve_ray.records.observation import ImageHit, QueryResult
from genevolve_ray.records.texts import HIDDEN, IMAGE_MARK, without_image_ids
from genevolve_ray.records.texts import neutralise as neutralise

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")
"""Terminal control sequences: colors, cursor, titles, links."""
_MARKER = re.compile(
    r"(?<![-\u2010-\u2015\u2212])[-\u2010-\u2015\u2212]{2,}+"
    r"(?=\s*+(?:end\s++of\s++)?+(?:(?:image\s++)?+search|tool)\s++(?:result|error))",
    re.IGNORECASE,
)


def one_line(text: str, max_chars: int) -> str:
    """Return external text as one line of at most `max_chars` characters that cannot imitate a block.

    Invisible text is removed: control characters, terminal sequences, and characters that change the direction of
    writing or hide text. Dashes before the words of a block marker become one.
    """
    seen = HIDDEN.sub("", _ANSI.sub("", text))
    line = _MARKER.sub("—", " ".join(neutralise(seen).split()))
    return line if len(line) <= max_chars else line[: max_chars - 1].rstrip() + "…"


def foreign_line(text: str, max_chars: int) -> str:
    """Return a title or snippet as one safe line without image ids: IMG_001 becomes IMG-001."""
    return without_image_ids(one_line(text, max_chars))


def foreign_text(text: str, max_line: int, max_chars: int) -> str:
    """Return external text of several lines, each as safe as `foreign_line`, of at most `max_chars` characters."""
    # Tags and markers are looked for before the lines are parted: one may span two of them.
    seen = _MARKER.sub("—", neutralise(HIDDEN.sub("", _ANSI.sub("", text[: 4 * max_chars]))))
    lines = [line for raw in seen.splitlines() if (line := foreign_line(raw, max_line))]
    whole = "\n".join(lines)
    return whole if len(whole) <= max_chars else whole[: max_chars - 1].rstrip() + "…"


def tool_error(error: str, max_chars: int) -> str:
    """Return the text of a call that failed, of a tool without a form of its own."""
    return f"--- tool error: {foreign_line(error, max_chars)} ---"


def link_line(text: str, max_chars: int) -> str:
    """Return an external address as one safe word."""
    return one_line(text, max_chars).replace(" ", "%20")


def wrap(body: str) -> str:
    """Return the user message that carries an observation."""
    return f"<tool_response>\n{body}\n</tool_response>"


def wrap_first(messages: Sequence[str]) -> list[str]:
    """Return user messages of which the first carries an observation."""
    return [wrap(messages[0]), *messages[1:]]


_WRITERS = {"title": foreign_line, "snippet": foreign_line, "url": link_line, "page_url": link_line}
"""Formatters of external fields; `local_path` is the project's own."""


def _entry(head: str, fields: Iterable[tuple[str, str]], max_chars: int, all_fields: bool) -> str:
    """Return the lines of one result; `all_fields` keeps those without a value, but for the space at their end."""
    lines = [(name, _WRITERS.get(name, one_line)(value, max_chars)) for name, value in fields]
    if all_fields:
        shown = [f"{name}: {value}".rstrip() for name, value in lines]
    else:
        shown = [f"{name}: {value}" for place, (name, value) in enumerate(lines) if value or place == 0]
    return "\n".join([head + shown[0], *("  " + line for line in shown[1:])])


def text_block(results: Sequence[QueryResult], fields: Sequence[str], max_chars: int, all_fields: bool = True) -> str:
    """Return the digest of a `search` call: one block per query; a failed query is shown as an error."""
    blocks = []
    for result in results:
        query = one_line(result.query, max_chars)
        if result.error:
            blocks.append(f"--- search error for [{query}]: {one_line(result.error, max_chars)} ---")
            continue
        lines = [
            _entry(f"{number}. ", [(name, getattr(hit, name)) for name in fields], max_chars, all_fields)
            for number, hit in enumerate(result.hits, 1)
        ]
        blocks.append("\n".join([f"--- search result for [{query}] ---", *lines, "--- end of search result ---"]))
    return "\n".join(blocks)


def image_block(
    query: str,
    hits: Sequence[tuple[str, ImageHit, str]],
    fields: Sequence[str],
    max_chars: int,
    all_fields: bool = True,
) -> str:
    """Return the digest of an `image_search` call from (image id, hit, shown path).

    A picture that the policy sees is `IMAGE_MARK`, on a line of its own after the entry; foreign text never contains it.
    """
    head = f"--- image search result for [{one_line(query, max_chars)}] ---"
    lines = image_lines(hits, fields, max_chars, all_fields)
    return "\n".join([head, *lines, "--- end of image search result ---"])


def image_lines(
    hits: Sequence[tuple[str, ImageHit, str]], fields: Sequence[str], max_chars: int, all_fields: bool = True
) -> list[str]:
    """Return the entries of pictures, as those of `image_block`."""
    lines = []
    for img_id, hit, path in hits:
        values = {"title": hit.title, "url": hit.url, "local_path": path, "page_url": hit.page_url}
        lines.append(_entry(f"{img_id}: ", [(name, values[name]) for name in fields], max_chars, all_fields))
        if hit.shown is not None:
            lines.append(f"  {IMAGE_MARK}")
        elif hit.unseen:
            lines.append("  " + not_shown(one_line(hit.unseen, max_chars)))
    return lines


def not_shown(reason: str) -> str:
    """Return the text in place of a picture that the policy cannot see."""
    return f"(picture not shown: {reason})"


def without_last(text: str, pictures: int, reason: str) -> str:
    """Return an observation in which only the first `pictures` are shown; `reason` stands in place of the others."""
    parts = text.split(IMAGE_MARK)
    kept, rest = parts[: pictures + 1], parts[pictures + 1 :]
    return "".join([IMAGE_MARK.join(kept), *(f"{not_shown(reason)}{part}" for part in rest)])


def image_error(query: str, error: str, max_chars: int) -> str:
    """Return the text of a refused image query: an error, never an empty result."""
    return f"--- image search error for [{one_line(query, max_chars)}]: {one_line(error, max_chars)} ---"


class ImageIds:
    """Assign ids IMG_001, IMG_002, ... within one trajectory.

    The same image (same content or same url) keeps its id, and is listed once. `by_url` counts as the published client
    does: only the url identifies an image, and one that a result repeats is listed again.
    """

    def __init__(self, by_url: bool = False) -> None:
        """Start without images."""
        self.images: dict[str, ImageHit] = {}
        self._ids_by_url_alone = by_url
        self._by_content: dict[str, str] = {}
        self._by_url: dict[str, str] = {}

    def assign(self, hits: Sequence[ImageHit]) -> list[tuple[str, ImageHit]]:
        """Return (id, hit) for the images of a result, in order of first appearance.

        The picture that a hit shows is the one that the id stands for.
        """
        listed = [(self._id(hit), hit) for hit in hits]
        listed = [(img_id, self._as_known(img_id, hit)) for img_id, hit in listed]
        if self._ids_by_url_alone:
            return listed
        assigned: dict[str, ImageHit] = {}
        for img_id, hit in listed:
            assigned.setdefault(img_id, hit)
        return list(assigned.items())

    def _as_known(self, img_id: str, hit: ImageHit) -> ImageHit:
        known = self.images[img_id]
        if hit.shown is None or hit.shown == known.shown:
            return hit
        unseen = "" if known.shown is not None else known.unseen or "another picture at a known address"
        return hit.model_copy(update={"shown": known.shown, "unseen": unseen})

    def _id(self, hit: ImageHit) -> str:
        alone = self._ids_by_url_alone and bool(hit.url)
        img_id = (None if alone else self._by_content.get(hit.image.sha256)) or self._by_url.get(hit.url)
        if img_id is None:
            img_id = f"IMG_{len(self.images) + 1:03d}"
            self.images[img_id] = hit
        known = self.images[img_id]
        if known.shown is None and hit.shown is not None and known.image == hit.image:
            # An earlier search listed it beyond the hits that are shown.
            self.images[img_id] = known.model_copy(update={"shown": hit.shown, "unseen": ""})
        self._by_content.setdefault(hit.image.sha256, img_id)
        if hit.url:
            self._by_url.setdefault(hit.url, img_id)
        return img_id
