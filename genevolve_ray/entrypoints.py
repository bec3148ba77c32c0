"""The project's own plug-ins by role and name, as in pyproject.toml: found also where the installed metadata is older."""

from __future__ import annotations

from collections.abc import Mapping

DISTRIBUTION = "genevolve_ray"
OWN: Mapping[str, Mapping[str, str]] = {
    "requests": {
        "atlas": "genevolve_ray.atlas.sources:AtlasRequests",
        "published": "genevolve_ray.data.requests:PublishedRequests",
    },
    "tools": {
        "atlas": "genevolve_ray.atlas.sources:AtlasTools",
        "local": "genevolve_ray.tools.toolbox:LocalTools",
        "web": "genevolve_ray.tools.web:WebTools",
    },
    "renderer": {
        "atlas": "genevolve_ray.atlas.renderer:AtlasRenderer",
        "diffusers": "genevolve_ray.renderers.diffusers:DiffusersRenderer",
        "gemini": "genevolve_ray.renderers.gemini:GeminiRenderer",
        "images-api": "genevolve_ray.renderers.images_api:ImagesApiRenderer",
        "preset": "genevolve_ray.renderers.presets:Named",
        "qwen-service": "genevolve_ray.renderers.qwen_service:QwenServiceRenderer",
    },
    "judge": {
        "atlas": "genevolve_ray.atlas.judge:AtlasJudge",
        "endpoint": "genevolve_ray.judges.endpoint_judge:EndpointJudge",
        "local": "genevolve_ray.judges.local_judge:LocalVlmJudge",
    },
    "summariser": {
        "atlas": "genevolve_ray.atlas.summariser:AtlasSummariser",
        "endpoint": "genevolve_ray.judges.endpoint_summariser:EndpointSummariser",
        "rules": "genevolve_ray.judges.summariser:RuleSummariser",
    },
    "embedder": {
        "endpoint": "genevolve_ray.experience.embed_endpoint:EndpointEmbedder",
        "hashing": "genevolve_ray.experience.embed:HashingEmbedder",
        "transformers": "genevolve_ray.experience.embed_transformers:TransformersEmbedder",
    },
}
