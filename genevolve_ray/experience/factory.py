"""Construction of the configured embedder."""

from __future__ import annotations

from genevolve_ray.experience.config import EmbedderConfig
from genevolve_ray.experience.protocol import Embedder


def build_embedder(config: EmbedderConfig) -> Embedder:
    """Build the configured built-in embedder; heavy dependencies of the other ones are not imported.

    Raises:
        ValueError: when the model cannot be loaded, or a class of the user's own is configured, which
            `evolution.experience.build_run_embedder` builds.
    """
    if config.type:
        raise ValueError(
            f"embedder.type={config.type!r} is a class of its own, which this place does not take: use kind"
        )
    if config.kind == "transformers":
        from genevolve_ray.experience.embed_transformers import TransformersEmbedder

        return TransformersEmbedder(config.transformers)
    if config.kind == "endpoint":
        from genevolve_ray.experience.embed_endpoint import EndpointEmbedder

        assert config.endpoint is not None
        return EndpointEmbedder(config.endpoint)
    from genevolve_ray.experience.embed import HashingEmbedder

    return HashingEmbedder(config.hashing)
