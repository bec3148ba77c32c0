"""Wire format: JSON bodies with strict schemas, optionally compressed, within fixed limits."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

import pyarrow as pa
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_serializer

from genevolve_ray.agent.profile import ProtocolProfile
from genevolve_ray.engines.protocol import Probe, SamplingParams
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.records.base import Record
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.ledger import MediaSpan, Span
from genevolve_ray.records.observation import Observation
from genevolve_ray.tools.protocol import ToolCard

PROTOCOL = 3
"""Protocol of this version: a policy may see pictures."""
BLIND_PROTOCOL = 2
"""Protocol of runs whose policy sees none; their cards and pushes are as before."""
MAX_TOKENS = 1 << 17
"""Most tokens of a trajectory."""
MAX_SPANS = 1 << 10
MAX_PICTURES = 1 << 10
"""Most pictures of a trajectory."""
MAX_CALLS = 128
MAX_DEPTH = 24
"""Deepest nesting of a body."""
MAX_STRUCTURES = 1 << 15
"""Most objects and arrays of a body; each costs far more than its two bytes."""
MAX_ENTRIES = 5 * MAX_TOKENS
"""Most entries of the objects and arrays of a body together."""
ZSTD = "zstd"
CLAIMS = ("reward", "verdict", "outcome", "score", "rendered", "termination")
"""Fields that the gateway computes and never accepts from a worker."""

Int32 = Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]


class Body(Record):
    """Define a body that a worker sends: no unknown keys, no conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


B = TypeVar("B", bound=Body)


class LeaseOrder(Body):
    """Request leases: their number, and the longest wait for the first."""

    count: int = Field(default=1, ge=1, le=64)
    wait: float = Field(default=0.0, ge=0, le=30)


class LeaseGrant(Record):
    """Grant a request to play. The worker receives its prompt and seed, but no data of the judges."""

    id: str
    prompt: str
    seed: int
    sampling: SamplingParams
    split: str
    experience: Experience | None
    version: int
    """Oldest policy version that may sample it."""
    seconds: float
    """Time until it expires, unless it is renewed."""


class ToolOrder(Body):
    """Order the `index`-th tool call of an episode; repeating the same call returns the same answer."""

    index: int = Field(ge=0, lt=MAX_CALLS)
    name: str = Field(max_length=256)
    arguments: dict[str, Any]


class ToolAnswer(Record):
    """Answer a tool call: an observation, or one of the two reasons for having none."""

    observation: Observation | None = None
    argument_error: str | None = None
    outage: str | None = None


class OwnAnswer(Body):
    """Carry the answer of a trusted worker's own tool, so that the gateway says what the policy sees of it."""

    answer: ToolAnswer


class OwnCall(Body):
    """Report a tool call that a trusted worker executed itself."""

    name: str = Field(max_length=256)
    arguments: dict[str, Any]
    answer: ToolAnswer


class LedgerBody(Body):
    """Carry a token ledger (see `records.ledger`), with columns of one length."""

    # Without `fail_fast`, each bad entry would become an error of its own.
    tokens: list[Int32] = Field(min_length=1, max_length=MAX_TOKENS, fail_fast=True)
    policy_mask: list[bool] = Field(max_length=MAX_TOKENS, fail_fast=True)
    logprobs: list[float] = Field(max_length=MAX_TOKENS, fail_fast=True)
    versions: list[Int32] = Field(max_length=MAX_TOKENS, fail_fast=True)
    spans: list[Span] = Field(max_length=MAX_SPANS, fail_fast=True)
    media: list[MediaSpan] = Field(
        default=[], max_length=MAX_PICTURES, fail_fast=True, exclude_if=lambda media: not media
    )
    """The pictures that the policy saw; not written where there are none."""


class Push(Body):
    """Push a played episode."""

    ledger: LedgerBody
    own_calls: list[OwnCall] = Field(default=[], max_length=MAX_CALLS)
    """For a trusted worker with tools of its own: all its calls, in order."""


class FileCard(Record):
    """Describe a file to download."""

    name: str = Field(pattern=r"^[\w][\w.-]{0,127}$")
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class WeightsCard(Record):
    """Describe a version's files, and the probe by which an engine proves that it has loaded them."""

    version: int
    probe: Probe
    files: tuple[FileCard, ...]


class RunCard(Record):
    """Describe a run to a worker."""

    protocol: int
    package: str
    run: str
    profile: str
    protocol_profile: ProtocolProfile | None = None
    """The profile itself, where it is not the built-in one of that name."""
    date: str = ""
    """Day that the chat template and the profile show the policy."""
    engine: Literal["vllm", "transformers", "null"]
    dtype: str
    max_model_len: int | None
    tools: tuple[ToolCard, ...]
    model: tuple[FileCard, ...]
    base: tuple[FileCard, ...] = ()
    """Weights of the base, where versions are adapters: the worker has these exact files, or downloads them once."""
    turn_seconds: float = 0.0
    tool_calls: int = 0
    """The script of a rehearsal."""

    @field_serializer("protocol_profile")
    def _known_before(self, profile: ProtocolProfile | None) -> dict[str, Any] | None:
        """Write a profile without pictures as older workers read it."""
        blind = profile is not None and not profile.observations.images
        return None if profile is None else profile.model_dump(exclude={"observations"} if blind else None)


class Receipt(Record):
    """Confirm that a trajectory was accepted."""

    accepted: Literal[True] = True
    tokens: int


class RefusalBody(Record):
    """Report the reason of a refusal."""

    reason: str
    detail: str = ""


def compress(data: bytes, level: int | None = None) -> bytes:
    """Return a zstd frame, compressed at a level from 1 to 19 or at the library's own."""
    packed: bytes = pa.Codec(ZSTD, compression_level=level).compress(data, asbytes=True)
    return packed


def decompress(data: bytes, limit: int) -> bytes:
    """Return the content of zstd frames up to `limit` bytes. Raises GatewayRefusal beyond it, and for invalid data."""
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), ZSTD) as stream:
            plain: bytes = stream.read(limit + 1)
    except (OSError, pa.ArrowException) as error:
        raise GatewayRefusal(RefusalReason.MALFORMED, "the body is not zstd") from error
    if len(plain) > limit:
        raise GatewayRefusal(RefusalReason.OVERSIZED, f"more than {limit} bytes once decompressed")
    return plain


def read_json(data: bytes) -> Any:
    """Return a JSON value without NaN, duplicate keys, deep nesting or very many parts. Raises GatewayRefusal."""
    # Counting bytes is cheap, and an upper bound: text in strings counts as well.
    if data.count(b"{") + data.count(b"[") > MAX_STRUCTURES or data.count(b",") > MAX_ENTRIES:
        raise GatewayRefusal(
            RefusalReason.OVERSIZED, f"more than {MAX_STRUCTURES} objects and arrays, or {MAX_ENTRIES} entries"
        )
    try:
        value = json.loads(data, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise GatewayRefusal(RefusalReason.MALFORMED, f"not JSON: {str(error)[:120]}") from error
    if _too_deep(value):
        raise GatewayRefusal(RefusalReason.MALFORMED, f"nested more than {MAX_DEPTH} levels deep")
    return value


def read_push(data: bytes) -> Push:
    """Return a pushed episode. Raises GatewayRefusal naming the error."""
    value = read_json(data)
    if isinstance(value, dict) and (claimed := [name for name in CLAIMS if name in value]):
        raise GatewayRefusal(
            RefusalReason.REWARD_CLAIMED, f"{claimed[0]} is computed by the gateway", {"claimed": value[claimed[0]]}
        )
    return validate(Push, value)


def read_body(kind: type[B], data: bytes) -> B:
    """Return a body of a kind. Raises GatewayRefusal."""
    return validate(kind, read_json(data or b"{}"))


def validate(kind: type[B], value: Any) -> B:
    """Return a value as a body of a kind. Raises GatewayRefusal naming the first invalid place."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise GatewayRefusal(RefusalReason.MALFORMED, f"{where}: {first['msg']}"[:200]) from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
