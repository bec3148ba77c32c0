from __future__ import annotations

import pytest

from genevolve_ray.experience.config import EmbedderConfig
from genevolve_ray.experience.embed import HashingEmbedder
from genevolve_ray.experience.factory import build_embedder


def test_hashing_is_the_default() -> None:
    assert isinstance(build_embedder(EmbedderConfig()), HashingEmbedder)


def test_a_class_of_its_own_is_never_replaced_by_another_embedder() -> None:
    with pytest.raises(ValueError, match="embedder.type='my:Embedder' is a class of its own"):
        build_embedder(EmbedderConfig(type="my:Embedder"))
