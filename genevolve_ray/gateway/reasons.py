"""Why the gateway refuses: one reason for each thing that can be wrong, told to the worker and counted."""

from __future__ import annotations

from enum import StrEnum

from genevolve_ray.errors import UserFault


class Reason(StrEnum):
    """The reasons. What is a forgery counts against the worker; the rest happens to honest ones too."""

    NO_TOKEN = "no_token"  # noqa: S105
    """No bearer token came with the request."""
    BAD_TOKEN = "bad_token"  # noqa: S105
    """The token is unknown, or was revoked."""
    TOKEN_EXPIRED = "token_expired"  # noqa: S105
    SCOPE = "scope"
    """The token does not allow this."""
    QUARANTINED = "quarantined"
    """The worker was shut out."""
    RATE_LIMITED = "rate_limited"
    OVERSIZED = "oversized"
    """The body is too large, as it arrived or decompressed."""
    TOO_SLOW = "too_slow"
    MALFORMED = "malformed"
    """The body does not fit its schema."""
    REWARD_CLAIMED = "reward_claimed"
    """The worker sent a reward, a verdict or an outcome: those are made inside."""
    UNKNOWN_LEASE = "unknown_lease"
    OTHERS_LEASE = "others_lease"
    """The lease was given to another worker."""
    LEASE_EXPIRED = "lease_expired"
    REPLAYED = "replayed"
    """The lease was answered before."""
    WITHDRAWN = "withdrawn"
    """The lease was given back, refused, or is no longer wanted."""
    BAD_RANGE = "bad_range"
    UNKNOWN_FILE = "unknown_file"
    """No such file, or of a version that is not kept."""
    CALL_ORDER = "call_order"
    """A tool call out of turn, beyond the episode's limit, or told again with other arguments."""
    TOKEN_OUT_OF_RANGE = "token_out_of_range"  # noqa: S105
    BANNED_TOKEN = "banned_token"  # noqa: S105
    """A token that no engine of the run may emit."""
    BAD_LOGPROB = "bad_logprob"
    """A log-prob above 0, or not a number."""
    VERSION_NOT_ISSUED = "version_not_issued"
    VERSION_STALE = "version_stale"
    """A token of a version older than the one that the lease was given for, or no longer kept."""
    FOREIGN_TOKENS = "foreign_tokens"
    """Context that the gateway's own template and tools do not produce."""
    SHIFTED_MASKS = "shifted_masks"
    """The policy mask (or what must be empty outside it) is not where the gateway's parser finds policy tokens."""
    SHIFTED_SPANS = "shifted_spans"
    BROKEN_TURN = "broken_turn"
    """A turn that ends neither with a stop token nor at its limit."""
    INVENTED_OBSERVATION = "invented_observation"
    """A tool call that never went through the gateway."""
    WRONG_LOGPROBS = "wrong_logprobs"
    """The run's weights give other log-probs."""
    MISCALIBRATED = "miscalibrated"
    """Over many tokens the sampling is not that of the stated temperature."""


FORGERIES = frozenset(
    {
        Reason.REWARD_CLAIMED,
        Reason.OTHERS_LEASE,
        Reason.TOKEN_OUT_OF_RANGE,
        Reason.BANNED_TOKEN,
        Reason.BAD_LOGPROB,
        Reason.VERSION_NOT_ISSUED,
        Reason.FOREIGN_TOKENS,
        Reason.SHIFTED_MASKS,
        Reason.SHIFTED_SPANS,
        Reason.BROKEN_TURN,
        Reason.INVENTED_OBSERVATION,
        Reason.WRONG_LOGPROBS,
        Reason.MISCALIBRATED,
    }
)
_STATUS = {
    Reason.NO_TOKEN: 401,
    Reason.BAD_TOKEN: 401,
    Reason.TOKEN_EXPIRED: 401,
    Reason.SCOPE: 403,
    Reason.QUARANTINED: 403,
    Reason.OTHERS_LEASE: 403,
    Reason.UNKNOWN_LEASE: 404,
    Reason.UNKNOWN_FILE: 404,
    Reason.TOO_SLOW: 408,
    Reason.REPLAYED: 409,
    Reason.CALL_ORDER: 409,
    Reason.LEASE_EXPIRED: 410,
    Reason.WITHDRAWN: 410,
    Reason.OVERSIZED: 413,
    Reason.BAD_RANGE: 416,
    Reason.RATE_LIMITED: 429,
}


class GatewayRefusal(UserFault):
    """A request that is not granted; `evidence` is what a quarantine keeps, and never leaves the gateway."""

    def __init__(self, reason: Reason, detail: str = "", evidence: dict[str, object] | None = None) -> None:
        """Say why."""
        self.why = f"{reason.value}{': ' + detail if detail else ''}"
        super().__init__(f"the gateway refuses: {self.why}")
        self.reason, self.detail, self.evidence = reason, detail, evidence or {}
        self.worker: str | None = None

    @property
    def status(self) -> int:
        """The HTTP status."""
        return _STATUS.get(self.reason, 422)
