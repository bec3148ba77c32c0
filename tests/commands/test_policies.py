"""`--policy` names a run, a model folder, a hub id, an endpoint or its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve_ray.commands.policies import named_policy
from genevolve_ray.config import load_config
from genevolve_ray.errors import UserFault


def test_the_file_of_an_endpoint_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("url: http://127.0.0.1:1/v1\nattempts: 2\n")
    (tmp_path / "own.yaml").write_text("extends: base.yaml\nmodel: mine\nattempts: 3\n")
    with named_policy(str(tmp_path / "own.yaml"), load_config("atlas")) as source:
        assert source is not None
        assert source.endpoint is not None
        assert (source.endpoint.url, source.endpoint.model) == ("http://127.0.0.1:1/v1", "mine")
        assert source.endpoint.attempts == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("url: http://h/v1\nmodl: mine\n", r"own\.yaml: .*modl: unknown key \(value 'mine'\), did you mean model\?"),
        ("extends: nowhere.yaml\n", r"own\.yaml: line 1: extends: .*nowhere\.yaml"),
        ("- a\n", r"own\.yaml: a configuration is a mapping of keys, got list"),
    ],
)
def test_a_fault_of_the_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with (
        pytest.raises(UserFault, match=f"^--policy .*{message}"),
        named_policy(str(tmp_path / "own.yaml"), load_config("atlas")),
    ):
        pass


def test_a_hub_id_that_is_not_here_is_named_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(UserFault, match=r"^--policy: 'no/such' is neither a folder here nor in the cache"),
        named_policy("no/such", load_config("atlas")),
    ):
        pass
