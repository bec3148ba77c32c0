"""Settings of the gateway. Importing this module is cheap."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from genevolve_ray.records.base import Config

MIB = 1 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class LimitsConfig(Config):
    """Configure the limits of a token."""

    requests_per_second: float = Field(default=50.0, gt=0)
    """Mean rate of a token's calls."""
    burst: int = Field(default=200, ge=1)
    """Calls that a token may make at once, above that rate."""
    body_mib: float = Field(default=4.0, gt=0)
    """Largest trajectory or picture as it arrives, and after decompression times `expansion`; others: 256 KiB."""
    expansion: float = Field(default=3.0, ge=1)
    """How many times larger than `body_mib` a body may be once it is decompressed."""
    mib_per_second: float = Field(default=8.0, gt=0)
    """Mean rate of a token's bodies after decompression, MiB a second."""
    burst_mib: float = Field(default=64.0, gt=0)
    """Bodies that a token may send at once, above that rate, MiB after decompression."""
    body_seconds: float = Field(default=60.0, gt=0)
    """Seconds within which a body must have arrived."""
    open_leases: int = Field(default=256, ge=1)
    """Leases that a token may hold at once."""
    first_leases: int = Field(default=8, ge=1)
    """Leases that a token may hold before its first answer; each answer permits one more, each failure halves them."""
    connections: int = Field(default=2048, ge=1)
    """Connections of all tokens at once; fewer where the process may not open as many files."""
    token_connections: int = Field(default=320, ge=1)
    """Connections of one token at once, and so its requests in progress."""
    strangers: int = Field(default=2048, ge=1)
    """Connections that have sent no valid token; beyond that number, the oldest is closed."""
    head_seconds: float = Field(default=10.0, gt=0)
    """Seconds within which a connection must be encrypted, and then the head of a request must have arrived."""


class TrustConfig(Config):
    """Configure the checks of workers' data, and the thresholds of quarantine."""

    spot_check: float = Field(default=0.1, ge=0, le=1)
    """Fraction of a worker's trajectories whose log-probs are scored again."""
    probation: int = Field(default=8, ge=0)
    """First trajectories of every worker, all of which are scored again."""
    mean_tolerance: float | None = Field(default=None, gt=0)
    """Largest mean |log-prob difference| of a trajectory, None: by dtype (float32 1e-3, float16 0.02, bfloat16 0.05)."""
    token_tolerance: float | None = Field(default=None, gt=0)
    """Largest |log-prob difference| of a token, None: by dtype (float32 0.05, float16 0.7, bfloat16 1.5)."""
    calibration_bound: float = Field(default=5.0, gt=0)
    """Standard errors by which mean(log mu + entropy) may differ from 0."""
    calibration_drift: float = Field(default=0.02, ge=0)
    """Smallest drift (nats a token) that is held against a worker, however significant: sampling in half precision has some."""
    calibration_tokens: int = Field(default=400, ge=1)
    """Scored tokens before a worker's calibration is judged."""
    calibration_window: int = Field(default=64, ge=1)
    """Last scored trajectories that count."""
    quarantine_after: int = Field(default=1, ge=1)
    """Forged trajectories after which a worker is shut out."""
    own_tools: bool = False
    """Accept observations of workers whose token has the scope `own-tools`."""


class GatewayConfig(Config):
    """Configure rollouts from outside the cluster. Without a port there is no gateway."""

    port: int | None = Field(default=None, ge=0, le=65535)
    """Port to listen at; 0 takes a free one, None opens no gateway."""
    host: str = "127.0.0.1"
    """Address to listen at; beyond loopback it needs TLS or `plaintext`."""
    tokens: Path = Path("gateway-tokens.json")
    """File of hashed tokens, see `genevolve gateway token`; it is read again when it changes."""
    tls_certificate: Path | None = None
    """PEM file of the certificate; with `tls_key`."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key."""
    plaintext: bool = False
    """Listen beyond loopback without TLS: only behind a proxy that ends it."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Fraction of the training samples that go to the gateway while a worker is there; evaluations stay inside."""
    only: bool = False
    """No engine inside: every sample, those of evaluations too, is played outside."""
    patience: float = Field(default=60.0, gt=0)
    """Seconds that a sample waits for a worker before an engine inside plays it. A lease that shows no progress for as
    long is overdue, and another player receives its sample as well; once episodes were observed, after three times
    their usual time."""
    lease_seconds: float = Field(default=60.0, gt=0)
    """A lease that is not renewed within this is given to another worker."""
    lease_limit: float = Field(default=3600.0, gt=0)
    """Seconds after which a lease is not renewed any more."""
    lag: int = Field(default=0, ge=0)
    """Versions that a worker may be behind when it begins an episode: at most loop.max_staleness, or its work is discarded."""
    kept_versions: int = Field(default=4, ge=1)
    """Weights that stay for download and re-scoring; a token of an older version is refused."""
    zstd_level: int = Field(default=3, ge=1, le=19)
    """Compression level of weights on the wire."""
    limits: LimitsConfig = LimitsConfig()
    """What a token may ask."""
    trust: TrustConfig = TrustConfig()
    """How workers are checked."""

    @model_validator(mode="after")
    def _safe(self) -> GatewayConfig:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError(
                "gateway.tls_certificate and gateway.tls_key must be set together: "
                f"{self.tls_certificate} and {self.tls_key}"
            )
        if self.host not in LOOPBACK and self.tls_certificate is None and not self.plaintext:
            raise ValueError(
                f"gateway.host={self.host} would send tokens unencrypted: set gateway.tls_certificate and "
                "gateway.tls_key, or set gateway.plaintext=true behind a proxy that terminates TLS"
            )
        if self.lag >= self.kept_versions:
            raise ValueError(
                f"gateway.lag={self.lag} needs more versions than are kept: gateway.kept_versions={self.kept_versions}"
            )
        return self
