"""Settings of Visual Experience Distillation. Importing this module is cheap: no torch."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, WrapValidator, model_validator

from genevolve_ray.records.base import Config


class VedForm(StrEnum):
    """Select the differentiated form of the divergence from the teacher (see `learning.ved`)."""

    SCORE = "score"
    """The score function of the reverse KL on sampled tokens: its gradient keeps its sign under cap and clip."""
    PAPER = "paper"
    """The importance-weighted k3 with gradient through the ratio, reported as the paper's form."""
    REVERSE_KL = "reverse_kl"
    """KL(student || teacher), exact over the vocabulary."""
    FORWARD_KL = "forward_kl"
    """KL(teacher || student), exact over the vocabulary."""
    JSD = "jsd"
    """The generalized Jensen-Shannon divergence of GKD, exact over the vocabulary."""

    @property
    def exact(self) -> bool:
        """True where the whole distribution of the next token is compared, and not only the sampled token."""
        return self in (VedForm.REVERSE_KL, VedForm.FORWARD_KL, VedForm.JSD)


class VedGate(StrEnum):
    """Select the tokens that are taught, and their weights, by the gap log pi - log q of the sampled token."""

    TOP = "top"
    """The `gate_fraction` of a sequence's policy tokens with the largest |gap|."""
    ALL = "all"
    """Every policy token."""
    SIGMOID = "sigmoid"
    """Every policy token, weighted by sigmoid(-gate_slope * gap), as in SDAR (arXiv 2605.15155): fully where the teacher
    endorses the sampled token, hardly where it rejects it."""


class TokenAggregation(StrEnum):
    """Select how the losses of the gated tokens become one number (always over the GLOBAL batch)."""

    SUM = "sum"
    """Their sum in each sequence, averaged over the sequences that have a bundle."""
    MEAN = "mean"
    """Their mean in each sequence, averaged over the sequences that have a bundle."""
    BATCH_TOKEN_MEAN = "batch_token_mean"  # noqa: S105
    """One mean over all gated tokens of the batch, as reading notes of the paper state (PAPER section 9)."""


class GradientRatio(Config):
    """Configure a coefficient that keeps a ratio of gradient norms at any scale of the losses.

    In a step that measures, it is ratio_to_grpo * |g_grpo| / |g_ved|. g_ved is the gradient of the distillation loss at
    coefficient 1, and g_grpo that of the policy loss and the KL term; guided re-draws enter neither. Other steps keep the
    last value, and so does a step in which one of the two gradients is zero.
    """

    ratio_to_grpo: float = Field(gt=0)
    """Norm of the distillation's part of the gradient, over that of policy loss and KL term."""
    every: int = Field(default=1, ge=1)
    """Steps from one measurement to the next. A step that measures computes taught sequences once more, forward and
    backward, and holds two gradients."""
    minimum: float = Field(default=1e-4, gt=0)
    """Least coefficient; also that of a run which could not measure yet."""
    maximum: float = Field(default=100.0, gt=0)
    """Greatest coefficient."""

    @model_validator(mode="after")
    def _bounds(self) -> GradientRatio:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum={self.minimum:g} is above maximum={self.maximum:g}")
        return self

    def __format__(self, spec: str) -> str:
        """Return the setting as `--set` takes it; a number in its place is formatted by `spec`."""
        return f"{{ratio_to_grpo: {self.ratio_to_grpo:{spec}}}}"


_NUMBER: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(ge=0, allow_inf_nan=False)])


def _chosen(value: Any, _: object) -> float | GradientRatio:
    """Return the coefficient; which of the two it is decides its errors, which would else be those of both."""
    if isinstance(value, dict | GradientRatio):
        return GradientRatio.model_validate(value)
    return _NUMBER.validate_python(value)


_ONLY_SAMPLED = {"rho_cap": 2.0, "gap_clip": 10.0}
"""Settings of the forms on sampled tokens alone, with their defaults."""


class VedConfig(Config):
    """Configure Visual Experience Distillation (PAPER section 4). Coefficient 0 means no teacher pass.

    The paper's coefficient is 2.0. It belongs to one aggregation: reading notes give `batch_token_mean`. Under `sum`
    the same coefficient weighs about as many times more as a sequence has gated tokens.
    """

    coefficient: Annotated[float | GradientRatio, WrapValidator(_chosen)] = 0.0
    """Weight lambda of the distillation loss, at least 0; 0 runs no teacher. `{ratio_to_grpo: R}` sets it by the norms
    of the gradients."""
    form: VedForm = VedForm.SCORE
    """Divergence from the teacher, and how its gradient is estimated. The last three are exact over the vocabulary."""
    rho_cap: float = Field(default=2.0, gt=0)
    """Greatest importance weight pi / mu of a sampled token; exact forms have none."""
    gap_clip: float = Field(default=10.0, gt=0)
    """Bound b: of |log pi - log q| in the `score` form, of k3 in the `paper` form."""
    token_cap: float | None = Field(default=None, gt=0)
    """c_tok of the `paper` form; its value is not known."""
    beta: float | None = Field(default=None, gt=0, lt=1)
    """Weight of the teacher in the mixture of the form `jsd`; None: 0.5. It tends to the forward KL at 0, and to the
    reverse KL at 1."""
    gate: VedGate = VedGate.TOP
    """Which tokens are taught, and with which weights."""
    gate_fraction: float = Field(default=0.10, gt=0, le=1)
    """Share of a sequence's policy tokens that the gate `top` selects: those with the largest |log pi - log q|."""
    gate_slope: float | None = Field(default=None, gt=0)
    """Slope of the gate `sigmoid`; None: 5, as in reading notes of SDAR."""
    gate_kinds: tuple[Literal["think", "tool_call", "answer", "text"], ...] = ()
    """Kinds of span whose tokens may be taught; empty means all."""
    aggregation: TokenAggregation = TokenAggregation.SUM
    """How the losses of gated tokens are combined."""

    @property
    def teaches(self) -> bool:
        """True when there is a teacher."""
        return isinstance(self.coefficient, GradientRatio) or self.coefficient > 0

    @property
    def selected_fraction(self) -> float:
        """Share of a sequence's tokens that the gate selects."""
        return self.gate_fraction if self.gate is VedGate.TOP else 1.0

    @property
    def jsd_beta(self) -> float:
        """Weight of the teacher in the mixture of the form `jsd`."""
        return 0.5 if self.beta is None else self.beta

    @property
    def sigmoid_slope(self) -> float:
        """Slope of the gate `sigmoid`."""
        return 5.0 if self.gate_slope is None else self.gate_slope

    @model_validator(mode="after")
    def _settings_belong_to_the_form(self) -> VedConfig:
        if self.token_cap is not None and self.form is not VedForm.PAPER:
            raise ValueError(f"token_cap={self.token_cap} belongs to form 'paper', form is {self.form.value!r}")
        if self.beta is not None and self.form is not VedForm.JSD:
            raise ValueError(f"beta={self.beta} belongs to form 'jsd', form is {self.form.value!r}")
        for name, default in _ONLY_SAMPLED.items():
            if self.form.exact and (value := getattr(self, name)) != default:
                raise ValueError(
                    f"{name}={value:g} belongs to forms 'score' and 'paper', form is {self.form.value!r}: an exact form "
                    "has neither an importance weight nor a clip"
                )
        return self

    @model_validator(mode="after")
    def _settings_belong_to_the_gate(self) -> VedConfig:
        if self.gate_slope is not None and self.gate is not VedGate.SIGMOID:
            raise ValueError(f"gate_slope={self.gate_slope:g} belongs to gate 'sigmoid', gate is {self.gate.value!r}")
        if self.gate_fraction != 0.10 and self.gate is not VedGate.TOP:
            raise ValueError(f"gate_fraction={self.gate_fraction:g} belongs to gate 'top', gate is {self.gate.value!r}")
        return self
