"""Reasons of refusals: one for each kind of error; workers receive them, and the gateway counts them."""

from __future__ import annotations

from enum import StrEnum

from genevolve_ray.errors import UserFault


class RefusalReason(StrEnum):
    """Name the reasons. A forgery counts against the worker; the other reasons also occur with honest workers."""

    NO_TOKEN = "no_token"  # noqa: S105
    """The request has no bearer token."""
    BAD_TOKEN = "bad_token"  # noqa: S105
    """The token is unknown, or was revoked."""
    TOKEN_EXPIRED = "token_expired"  # noqa: S105
    SCOPE = "scope"
    """The token does not allow this."""
    QUARANTINED = "quarantined"
    """The worker is in quarantine."""
    FINISHED = "finished"
    """The run has ended successfully: there is no more work."""
    RATE_LIMITED = "rate_limited"
    OVERSIZED = "oversized"
    """The body is too large, as it arrived or decompressed."""
    TOO_SLOW = "too_slow"
    MALFORMED = "malformed"
    """The body does not fit its schema."""
    REWARD_CLAIMED = "reward_claimed"
    """The worker sent a reward, a verdict or an outcome, which only the gateway computes."""
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
    """The file does not exist, or belongs to a version that is not kept."""
    CALL_ORDER = "call_order"
    """A tool call out of turn, beyond the episode's limit, or repeated with other arguments."""
    TOKEN_OUT_OF_RANGE = "token_out_of_range"  # noqa: S105
    BANNED_TOKEN = "banned_token"  # noqa: S105
    """A token that no engine of the run may emit."""
    BAD_LOGPROB = "bad_logprob"
    """A log-prob above 0, or not a number."""
    VERSION_NOT_ISSUED = "version_not_issued"
    VERSION_STALE = "version_stale"
    """A token of a version older than the lease's version, or no longer kept."""
    FOREIGN_TOKENS = "foreign_tokens"
    """Context that the gateway's own template and tools do not produce."""
    SHIFTED_MASKS = "shifted_masks"
    """The policy mask, or the columns that are empty outside it, disagree with the policy tokens that the gateway
    parses.
    """
    SHIFTED_SPANS = "shifted_spans"
    FOREIGN_PICTURES = "foreign_pictures"
    """Other pictures than those that the tools showed at these places."""
    SHIFTED_PICTURES = "shifted_pictures"
    """A picture at other tokens, or cut into another grid of patches."""
    BROKEN_TURN = "broken_turn"
    """A turn that ends neither with a stop token nor at its limit."""
    INVENTED_OBSERVATION = "invented_observation"
    """A tool call that did not pass through the gateway."""
    WRONG_LOGPROBS = "wrong_logprobs"
    """The run's weights give other log-probs."""
    MISCALIBRATED = "miscalibrated"
    """Over many tokens the sampling does not match the stated temperature."""


FORGERIES = frozenset(
    {
        RefusalReason.REWARD_CLAIMED,
        RefusalReason.OTHERS_LEASE,
        RefusalReason.TOKEN_OUT_OF_RANGE,
        RefusalReason.BANNED_TOKEN,
        RefusalReason.BAD_LOGPROB,
        RefusalReason.VERSION_NOT_ISSUED,
        RefusalReason.FOREIGN_TOKENS,
        RefusalReason.SHIFTED_MASKS,
        RefusalReason.SHIFTED_SPANS,
        RefusalReason.FOREIGN_PICTURES,
        RefusalReason.SHIFTED_PICTURES,
        RefusalReason.BROKEN_TURN,
        RefusalReason.INVENTED_OBSERVATION,
        RefusalReason.WRONG_LOGPROBS,
        RefusalReason.MISCALIBRATED,
    }
)
_STATUS = {
    RefusalReason.NO_TOKEN: 401,
    RefusalReason.BAD_TOKEN: 401,
    RefusalReason.TOKEN_EXPIRED: 401,
    RefusalReason.SCOPE: 403,
    RefusalReason.QUARANTINED: 403,
    RefusalReason.OTHERS_LEASE: 403,
    RefusalReason.UNKNOWN_LEASE: 404,
    RefusalReason.UNKNOWN_FILE: 404,
    RefusalReason.TOO_SLOW: 408,
    RefusalReason.REPLAYED: 409,
    RefusalReason.CALL_ORDER: 409,
    RefusalReason.FINISHED: 410,
    RefusalReason.LEASE_EXPIRED: 410,
    RefusalReason.WITHDRAWN: 410,
    RefusalReason.OVERSIZED: 413,
    RefusalReason.BAD_RANGE: 416,
    RefusalReason.RATE_LIMITED: 429,
}


class GatewayRefusal(UserFault):
    """Report a request that is not granted; `evidence` is stored in quarantine, and never leaves the gateway."""

    def __init__(self, reason: RefusalReason, detail: str = "", evidence: dict[str, object] | None = None) -> None:
        """Keep the reason."""
        self.why = f"{reason.value}{': ' + detail if detail else ''}"
        super().__init__(f"the gateway refuses: {self.why}")
        self.reason, self.detail, self.evidence = reason, detail, evidence or {}
        self.worker: str | None = None

    @property
    def status(self) -> int:
        """The HTTP status."""
        return _STATUS.get(self.reason, 422)
