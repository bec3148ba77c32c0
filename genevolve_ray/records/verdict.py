"""A judge's verdict, the named KScore formulas, and the reward."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, model_validator

from genevolve_ray.errors import UserFault
from genevolve_ray.records.base import Config, Record

WEIGHTS = {"faithfulness": 0.1, "visual_correctness": 0.4, "text_accuracy": 0.4, "aesthetics": 0.1}
"""KScore weights (PAPER section 2)."""
NO_TEXT_VALUE = 0.5
ROW_DIGITS = 2
"""Decimals of the scores of a row in published files."""


class ScoreFormula(StrEnum):
    """Name how a row without required text enters the overall score (FORMATS, KScore)."""

    RELEASE_SUMMARY = "release-summary"
    """Mean of per-row overall; a no-text row counts text as 0.5."""
    RELEASE_EVAL = "release-eval"
    """Dimension means first; the text mean is over rows with text only, 0.5 if there are none."""
    PAPER = "paper"
    """A no-text row is renormalized over the other three dimensions."""


class ImageScores(Record):
    """Hold the four KScore dimensions, each in [0, 1] (the published judge uses 0, 0.5, 1).

    The text dimension is None when the request contains no text.
    """

    faithfulness: float = Field(ge=0, le=1)
    visual_correctness: float = Field(ge=0, le=1)
    text_accuracy: float | None = Field(default=None, ge=0, le=1)
    aesthetics: float = Field(ge=0, le=1)


class Sufficiency(Record):
    """Record whether the program alone states what the picture needs.

    There are four checks, so five bins of 0.25 (PAPER section 2).
    """

    facts: bool
    reference_binding: bool
    skill_knowledge: bool
    executable_constraints: bool

    @property
    def score(self) -> float:
        """R_text in {0, 0.25, 0.5, 0.75, 1}."""
        return (self.facts + self.reference_binding + self.skill_knowledge + self.executable_constraints) / 4


BINS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The five values that either form of the sufficiency has."""


class SufficiencyBin(Record):
    """Record the sufficiency as one grade: how well the program would lead to the ground-truth picture.

    The judge that gives it sees that picture (PAPER section 9).
    """

    score: float
    """R_text, one of `BINS`."""

    @model_validator(mode="after")
    def _in_a_bin(self) -> SufficiencyBin:
        if self.score not in BINS:
            raise ValueError(f"score={self.score} is none of {', '.join(f'{value:g}' for value in BINS)}")
        return self


UNEXAMINED = "unexamined:sufficiency"
"""Flag of a verdict on the picture alone."""
EXAMINATION_FAILED = "failed:sufficiency"
"""Flag, besides UNEXAMINED, where the program should have been examined."""
NOT_EXAMINED = Sufficiency(facts=False, reference_binding=False, skill_knowledge=False, executable_constraints=False)
"""Stands in for the sufficiency of a program that was not examined; no score."""


class Verdict(Record):
    """Hold a judge's view of one rendered program, and the judge's identity."""

    image: ImageScores
    text: Sufficiency | SufficiencyBin
    """No judgment in a verdict that is not `examined`."""
    rationale: str = ""
    """The judge's reasons for the scores of the picture."""
    text_rationale: str = ""
    """Its reasons for the sufficiency of the program."""
    judge: str
    formula: ScoreFormula
    flags: tuple[str, ...] = ()
    """Anomalies of the judgment, as `code` or `code:field`: a score off the grid or clipped, a salvaged answer."""

    @property
    def examined(self) -> bool:
        """True where the judge examined the program, not only the picture."""
        return UNEXAMINED not in self.flags


def kscore(scores: ImageScores, formula: ScoreFormula) -> float:
    """Return one row's KScore in [0, 1].

    For `release-eval` a single row equals `release-summary`; the formulas differ in how rows are averaged (`mean_kscore`).
    """
    values = {name: getattr(scores, name) for name in WEIGHTS}
    if values["text_accuracy"] is None:
        if formula is ScoreFormula.PAPER:
            rest = {n: w for n, w in WEIGHTS.items() if n != "text_accuracy"}
            return float(sum(w * values[n] for n, w in rest.items()) / sum(rest.values()))
        values["text_accuracy"] = NO_TEXT_VALUE
    return float(sum(w * values[n] for n, w in WEIGHTS.items()))


def mean_kscore(rows: list[ImageScores], formula: ScoreFormula) -> float:
    """Return the KScore of a set of rows under a named formula. Raises ValueError on an empty set."""
    if not rows:
        raise ValueError("mean_kscore needs at least one scored row")
    if formula is not ScoreFormula.RELEASE_EVAL:
        return sum(kscore(r, formula) for r in rows) / len(rows)
    total = 0.0
    for name, weight in WEIGHTS.items():
        values = [v for r in rows if (v := getattr(r, name)) is not None]
        total += weight * (sum(values) / len(values) if values else NO_TEXT_VALUE)
    return total


_FUNCTION = r"[A-Za-z_]\w*(\.\w+)*:\w+"
COMBINATIONS = ("weighted_sum", "product", "minimum")
"""Named ways to combine components."""


class MissingValue(Config):
    """Configure the value of a component that was not measured."""

    value: float = Field(ge=0, le=1)
    """On the scale from 0 (worst) to 1 (best)."""


class RewardConfig(Config):
    """Configure the reward: max(0, image_weight * R_image + text_weight * R_text - call_cost * tool calls).

    The paper's reward is the default (0.5, 0.5, no cost). With `components`, the first two terms are replaced by a
    combination of any components of any judges.
    """

    image_weight: float = Field(default=0.5, ge=0)
    """Weight of the picture's KScore; not used with `components`."""
    text_weight: float = Field(default=0.5, ge=0)
    """Weight of the program's sufficiency; not used with `components`."""
    call_cost: float = Field(default=0.0, ge=0)
    """Cost of each tool call."""
    formula: ScoreFormula = ScoreFormula.RELEASE_SUMMARY
    """How a request without text enters the KScore; in a run that of the judge, where it is not given."""
    components: dict[str, float] = Field(default_factory=dict)
    """Weight of each component, by `JUDGE.COMPONENT`, or by `COMPONENT` where one judge alone has it. Each counts on the
    scale from 0 (worst) to 1 (best). Empty: the reward of the paper."""
    combine: str = Field(default="weighted_sum", pattern=rf"^({'|'.join(COMBINATIONS)}|{_FUNCTION})$")
    """`weighted_sum`; `product` of the components, with weights as exponents; `minimum` of weight times component; or
    `module:function`, which gets the components by name and returns a number."""
    gates: dict[str, float] = Field(default_factory=dict)
    """Least value of a component, in its own unit; below it the reward is 0."""
    missing: Literal["infra_failure", "leave_out"] | MissingValue = "infra_failure"
    """A component without a value, because its judge failed or had nothing to judge: `infra_failure` draws the sample
    again; `leave_out` spreads its weight over the others; `{value: X}` takes X, from 0 to 1. It never counts as 0 unasked."""
    normalise: Literal["none", "zscore", "rank"] = "none"
    """What the learner compares: the rewards, or the weighted sum of components that are normalized within each group
    (`zscore`, or `rank` from 0 to 1). The rewards themselves are kept as they are."""

    @property
    def named(self) -> tuple[str, ...]:
        """The components that the reward needs, as they are written."""
        return tuple(dict.fromkeys((*self.components, *self.gates)))

    @property
    def examines(self) -> bool:
        """True where a sample without its program's sufficiency has no reward."""
        if not self.components:
            return self.text_weight > 0
        return self.missing == "infra_failure" and bool({"sufficiency", "judge.sufficiency"} & {*self.named})

    @model_validator(mode="after")
    def _weights(self) -> RewardConfig:
        if self.image_weight + self.text_weight <= 0 and not self.components:
            raise ValueError(
                f"reward needs a positive weight: image_weight={self.image_weight}, text_weight={self.text_weight}"
            )
        return self

    @model_validator(mode="after")
    def _open(self) -> RewardConfig:
        if not self.components:
            given = {name: getattr(self, name) for name in ("combine", "gates", "missing", "normalise")}
            for name, value in given.items():
                if value != type(self).model_fields[name].get_default(call_default_factory=True):
                    raise ValueError(f"reward.{name}={value} needs reward.components")
            return self
        weights = self.components
        if self.combine == "weighted_sum":
            wrong = "" if max(weights.values()) > 0 else "one of them must be positive"
        else:
            wrong = "" if min(weights.values()) > 0 else f"each must be positive for reward.combine={self.combine}"
        if wrong:
            raise ValueError(f"reward.components={weights}: {wrong}")
        if self.missing == "leave_out" and min(weights.values()) <= 0:
            raise ValueError(f"reward.missing=leave_out needs positive weights: reward.components={weights}")
        # A failure of the policy is worth 0 in every component, which is the best value of a penalty.
        if self.normalise != "none" and min(weights.values()) <= 0:
            raise ValueError(f"reward.normalise={self.normalise} needs positive weights: reward.components={weights}")
        if self.normalise != "none" and (self.combine != "weighted_sum" or self.call_cost):
            raise ValueError(
                f"reward.normalise={self.normalise} needs reward.combine=weighted_sum and reward.call_cost=0, "
                f"got {self.combine} and {self.call_cost:g}"
            )
        return self


class Reward(Record):
    """Hold a scored trajectory's reward and its parts, all logged.

    `image` and `text` are KScore and sufficiency, 0 where no judge gives them. With `parts`, a 0 may thus be no measured
    one, and no metric counts them.
    """

    total: float
    image: float
    text: float
    cost: float = 0.0
    parts: dict[str, float] = {}
    """With `reward.components`: each component that counts, from 0 to 1."""
    closed: str = ""
    """The gate that made the reward 0."""
    normalised: float | None = None
    """What the learner compares in place of `total`, with `reward.normalise`."""


def combine_reward(verdict: Verdict, tool_calls: int, config: RewardConfig) -> Reward:
    """Combine a verdict into R (PAPER section 2).

    Raises:
        UserFault: when the program counts and the judge does not examine programs.
    """
    if config.text_weight and not verdict.examined:
        raise UserFault(
            f"reward.text_weight is {config.text_weight}, but {verdict.judge} does not examine programs: "
            "set judge.config.sufficiency_check to required"
        )
    image, text, cost = kscore(verdict.image, config.formula), verdict.text.score, config.call_cost * tool_calls
    total = max(0.0, config.image_weight * image + config.text_weight * text - cost)
    return Reward(total=total, image=image, text=text, cost=cost)
