"""Names under which published tools look for a row's request, type, case, picture and truth, in their order.

A name whose value is missing, empty or of another kind passes the search on to the next name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from genevolve_ray.records.published.rejections import RejectionReason, RowFault
from genevolve_ray.records.published.rows import identifier, mapping, text_of
from genevolve_ray.records.request import EvalType

PROMPT_NAMES = ("prompt", "question")
TRUTH_NAMES = ("gt_image", "ground_truth", "target_image", "reference_image")
META_TRUTH_NAMES = ("gt_image", "ground_truth", "target_image", "gt_copied_path", "reference_image")
IMAGE_NAMES = ("output_path", "image_path", "generated_image", "gen_image")
CASE_ID_NAMES = ("case_id", "source_id")
TYPE_NAMES = ("eval_type", "tier", "prompt_type")
SHARED_NAME = "gen_image"
"""The picture for GenEvolve's scorer, the truth for Gen-Searcher's agent and renderer."""
_STAGE_NAMES = ("success", "image_status", "eval_success", "scores")
"""Fields of rows that were rendered or judged."""
QUALITY_PREFIX = "grounded_"
KNOWLEDGE_CATEGORIES = frozenset(
    {
        "architecture_landmark",
        "city_street_scene",
        "event_stage_sports",
        "historical_artifact_object",
        "product_retro_device",
        "public_figure_longtail",
        "science_biology_microscopy",
        "vehicle_transport",
    }
)
QUALITY_CATEGORIES = frozenset(
    QUALITY_PREFIX + name
    for name in (
        "aesthetic_lighting",
        "anatomy_pose",
        "attribute_binding",
        "creative_transfer",
        "material_physics",
        "quantity_scene",
        "spatial_composition",
        "text_layout",
    )
)
_TYPES = {
    "t1": EvalType.KNOWLEDGE,
    "t3": EvalType.QUALITY,
    **{kind.value.lower(): kind for kind in EvalType},
}
Field = tuple[str, object]
"""A name as a message shows it, and the value under it."""


def texts(fields: Iterable[Field]) -> tuple[str, ...]:
    """Return the texts of fields in order, each once, without empty ones.

    Raises:
        RowFault: when there is no text, but a value of another kind.
    """
    found: list[str] = []
    fault: RowFault | None = None
    for name, value in fields:
        try:
            if text := text_of(value, name).strip():
                found.append(text)
        except RowFault as error:
            fault = fault or error
    if fault is not None and not found:
        raise fault
    return tuple(dict.fromkeys(found))


def first_text(fields: Iterable[Field]) -> str:
    """Return the first text of fields, "" for none. Raises RowFault as `texts` does."""
    return next(iter(texts(fields)), "")


def under(place: Mapping[str, Any], names: Iterable[str], head: str = "") -> Iterator[Field]:
    """Yield the fields of a mapping under the given names."""
    return ((head + name, place.get(name)) for name in names)


def request_text(values: Mapping[str, Any]) -> str:
    """Return the text of a row's request, "" for none. Raises RowFault for a value that is not text."""
    return first_text(under(values, PROMPT_NAMES))


def meta_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the free-form object of a row, {} for none and for a value that is none, as published tools do."""
    try:
        return mapping(values.get("meta"), "meta")
    except RowFault:
        return {}


def facet(values: Mapping[str, Any], meta: Mapping[str, Any], name: str) -> str:
    """Return the category or the difficulty of a row, "" for none; a number counts as text."""
    return next((text for place in (values, meta) if (text := _label(place.get(name)))), "")


def type_text(values: Mapping[str, Any], meta: Mapping[str, Any], category: str) -> str:
    """Return the type of a row as it is written, else the one that its category implies, "" for none."""
    inner, *others = TYPE_NAMES
    places = [(meta, inner), *((values, name) for name in TYPE_NAMES), *((meta, name) for name in others)]
    if written := next((text for place, name in places if (text := _label(place.get(name)))), ""):
        return written
    if category in QUALITY_CATEGORIES:
        return EvalType.QUALITY.value
    return EvalType.KNOWLEDGE.value if category in KNOWLEDGE_CATEGORIES else ""


def _label(value: object) -> str:
    """Return a text or a number as text, "" for anything else."""
    known = isinstance(value, str | int | float) and not isinstance(value, bool) and value == value
    return str(value).strip().encode(errors="replace").decode() if known else ""


def type_of(text: str) -> EvalType | None:
    """Return the type that a text names, None for another one; T1 is Knowledge-Anchored, T3 is Quality-Anchored."""
    return _TYPES.get(text.strip().lower())


def case_of(meta: Mapping[str, Any]) -> str | None:
    """Return the case id in a row's `meta`, None for none."""
    return next((case for name in CASE_ID_NAMES if (case := _case(meta.get(name)))), None)


def _case(value: object) -> str | None:
    try:
        return identifier(value, "case id")
    except RowFault:
        return None


def picture_texts(values: Mapping[str, Any], meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths of a row's picture, in the order in which they are looked for; other values are no paths."""
    names = [name for name in IMAGE_NAMES if name != SHARED_NAME or not _shared_is_truth(values, meta)]
    try:
        return texts(under(values, names))
    except RowFault:
        return ()


def truth_texts(values: Mapping[str, Any], meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths of a row's ground-truth image, in the order in which they are looked for."""
    shared = under(values, (SHARED_NAME,)) if _shared_is_truth(values, meta) else ()
    return texts((*_truth_fields(values, meta), *shared))


def _truth_fields(values: Mapping[str, Any], meta: Mapping[str, Any]) -> Iterator[Field]:
    prediction = values.get("prediction")
    inner = prediction if isinstance(prediction, Mapping) else {}
    fields = (
        *under(values, TRUTH_NAMES),
        *under(meta, META_TRUTH_NAMES, "meta."),
        *under(inner, (SHARED_NAME,), "prediction."),
    )
    return ((name, _path_of(value)) for name, value in fields)


def _path_of(value: object) -> object:
    """Return the path inside the image value of a data set, `{bytes, path}`, and any other value as it is."""
    path = value.get("path") if isinstance(value, Mapping) else None
    return path if isinstance(path, str) and path else value


def _shared_is_truth(values: Mapping[str, Any], meta: Mapping[str, Any]) -> bool:
    """Return whether `gen_image` is the truth of a row: it has no other one, and the picture is another or none yet."""
    if _any_text(_truth_fields(values, meta)):
        return False
    named = _any_text(under(values, [name for name in IMAGE_NAMES if name != SHARED_NAME]))
    return named or not any(name in values for name in _STAGE_NAMES)


def _any_text(fields: Iterable[Field]) -> bool:
    return any(isinstance(value, str) and value.strip() for _, value in fields)


def flag(value: object, name: str) -> bool | None:
    """Return a boolean, also where it is written as 0 or 1 or as text; None for a missing one.

    Raises:
        RowFault: for any other value.
    """
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else value
    if word in (1, "1", "true"):
        return True
    if word in (0, "0", "false"):
        return False
    raise RowFault(RejectionReason.BAD_FIELD, f"{name} is {str(value)[:40]!r}, not a boolean")
