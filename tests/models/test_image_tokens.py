"""Image tokens as a model folder states them, and what its config.json must not hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve_ray.models.image_tokens import load_image_tokens, within_aspect


def written(folder: Path, config: str) -> Path:
    (folder / "config.json").write_bytes(config.encode("latin-1"))
    return folder


def test_a_model_that_sees_names_its_image_token(tmp_path: Path) -> None:
    tokens = load_image_tokens(written(tmp_path, '{"vision_config": {}, "image_token_id": 7}'))
    assert tokens is not None and tokens.id == 7


@pytest.mark.parametrize("config", ["{}", '{"image_token_id": 7}', '{"vision_config": {}}'])
def test_a_model_without_vision_has_none(tmp_path: Path, config: str) -> None:
    assert load_image_tokens(tmp_path) is None
    assert load_image_tokens(written(tmp_path, config)) is None


@pytest.mark.parametrize("token", ['"x"', "[1]", "true", "-1", "1.5"])
def test_an_image_token_that_is_no_token_is_named(tmp_path: Path, token: str) -> None:
    written(tmp_path, f'{{"vision_config": {{}}, "image_token_id": {token}}}')
    with pytest.raises(ValueError, match=rf"{tmp_path}/config\.json has image_token_id=.*, which is no token"):
        load_image_tokens(tmp_path)


@pytest.mark.parametrize("config", ["[]", "{", "\xff", "null"])
def test_a_config_that_is_no_object_is_named(tmp_path: Path, config: str) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}/config\.json (is not valid JSON|must hold a JSON object)"):
        load_image_tokens(written(tmp_path, config))


def test_sides_may_differ_by_a_factor_of_200() -> None:
    assert within_aspect(200, 1) and within_aspect(1, 200) and not within_aspect(201, 1)
