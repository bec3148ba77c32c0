"""Published results, for comparison with one's own. This project measured none of them.

The KScore table is consistent with itself to rounding in two ways. Each overall value is the weighted sum of its four
dimensions. It is also the mean of its two splits, weighted by their 335 and 259 cases (except one row, off by .0003).
Both hold together only for an average of per-row scores whose text mean is over all rows. The table is therefore read
as `release-summary`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from genevolve_ray.records.base import Record
from genevolve_ray.records.published.aliases import KNOWLEDGE_CATEGORIES, QUALITY_CATEGORIES, type_of
from genevolve_ray.records.published.cases import ResultRow
from genevolve_ray.records.request import EvalType

KSCORE_SOURCE = "GenEvolve project page (arXiv 2605.21605 v2), GenEvolve-Bench; judge and seeds are the authors'"
WISE_SOURCE = "GenEvolve project page (arXiv 2605.21605 v2), WISE legacy (WiScore)"


class PublishedKScore(Record):
    """Hold a row of the KScore table on GenEvolve-Bench; all values are in [0, 1]."""

    method: str
    generator: str
    faithfulness: float
    visual_correctness: float
    text_accuracy: float
    aesthetics: float
    overall: float
    knowledge: float
    quality: float
    source: str = KSCORE_SOURCE


class PublishedWise(Record):
    """Hold an overall WiScore, with the six categories where they were published."""

    method: str
    overall: float
    categories: dict[str, float] = {}
    source: str = WISE_SOURCE


def _kscore(method: str, generator: str, figures: str) -> PublishedKScore:
    names = [*PublishedKScore.model_fields][2:9]
    values = {name: float(text) for name, text in zip(names, figures.split(), strict=True)}
    return PublishedKScore.model_validate({"method": method, "generator": generator, **values})


BENCH_TYPES = {EvalType.KNOWLEDGE: 335, EvalType.QUALITY: 259}
BENCH_DIFFICULTIES = {"medium": 219, "hard": 375}
"""What GenEvolve-Bench holds: 594 cases."""


def is_genevolve_bench(rows: Sequence[ResultRow]) -> bool:
    """Return whether rows are the cases of GenEvolve-Bench: their number, distinct ids, types, difficulties, categories.

    Only a score over all of them can be compared with the published ones.
    """
    if len({row.id for row in rows}) < len(rows) or len({row.case_id for row in rows}) < len(rows):
        return False
    types = Counter(type_of(row.eval_type) for row in rows)
    difficulties = Counter(row.difficulty for row in rows)
    categories = {row.category for row in rows}
    return (
        types == BENCH_TYPES
        and difficulties == BENCH_DIFFICULTIES
        and categories <= KNOWLEDGE_CATEGORIES | QUALITY_CATEGORIES
    )


KSCORE: tuple[PublishedKScore, ...] = (
    _kscore("direct", "Lumina-Image 2.0", ".1044 .0000 .3308 .2694 .1697 .1528 .1915"),
    _kscore("direct", "BAGEL", ".1212 .0059 .3721 .4082 .2041 .1684 .2504"),
    _kscore("direct", "SD-3.5-Large", ".1456 .0135 .3872 .4865 .2235 .1943 .2612"),
    _kscore("direct", "FLUX.1-dev", ".1574 .0059 .4150 .5556 .2396 .2097 .2784"),
    _kscore("direct", "FLUX.2 Klein 4B", ".2525 .0059 .3847 .5648 .2380 .2004 .2865"),
    _kscore("direct", "Z-Image-Turbo", ".2837 .0396 .4369 .6187 .2808 .2340 .3413"),
    _kscore("direct", "FLUX.2 Klein 9B", ".3662 .0210 .4192 .6599 .2787 .2327 .3382"),
    _kscore("direct", "Z-Image", ".3333 .0278 .4352 .5429 .2728 .2203 .3407"),
    _kscore("direct", "Qwen-Image", ".3729 .0623 .4226 .6751 .2987 .2384 .3768"),
    _kscore("direct", "Nano Banana Pro", ".7761 .2837 .6178 .9158 .5298 .5160 .5477"),
    _kscore("Gen-Searcher 8B", "Qwen-Image-Edit-2511", ".5284 .1050 .4768 .6377 .3493 .3293 .3745"),
    _kscore("Gen-Searcher 8B", "Nano Banana Pro", ".7465 .3378 .6198 .9036 .5481 .5472 .5492"),
    _kscore("GenEvolve", "Qwen-Image-Edit-2511", ".5303 .1338 .4907 .6347 .3663 .3410 .3990"),
    _kscore("GenEvolve", "Nano Banana Pro", ".7970 .3832 .6218 .9222 .5739 .5669 .5830"),
)
"""KScore on GenEvolve-Bench, columns: faithfulness, visual correctness, text, aesthetics, KScore, knowledge, quality."""

WISE: tuple[PublishedWise, ...] = (
    PublishedWise(method="Qwen-Image", overall=0.62),
    PublishedWise(method="GPT-4o", overall=0.80),
    PublishedWise(method="GenAgent", overall=0.72),
    PublishedWise(method="Gen-Searcher-8B + Qwen-Image", overall=0.77),
    PublishedWise(method="Mind-Brush", overall=0.78),
    PublishedWise(
        method="GenEvolve + Qwen-Image-Edit",
        overall=0.82,
        categories={"culture": 0.84, "time": 0.74, "space": 0.87, "biology": 0.83, "physics": 0.81, "chemistry": 0.83},
    ),
)
"""Overall WiScore (legacy)."""
