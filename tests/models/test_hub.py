"""Models by hub id, from a hub on the loopback and from its cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from genevolve_ray.config import load_config
from genevolve_ray.doctor import parts
from genevolve_ray.doctor.machine import Status
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.hub_models import pin_models
from genevolve_ray.models.hub import is_hub_id, local_model, pinned

NAME, COMMIT = "someone/tiny-policy", "a" * 40
FILES = {"config.json": b'{"model_type": "qwen3"}', "model.safetensors": b"weights", "pytorch_model.bin": b"old"}


class Hub(BaseHTTPRequestHandler):
    """Answer as the hub does for one model at one commit; other models do not exist."""

    def do_GET(self) -> None:
        parts_ = self.path.split("?")[0].strip("/").split("/")
        if parts_[:5] == ["api", "models", *NAME.split("/"), "tree"]:
            tree = [{"type": "file", "path": name, "size": len(text), "oid": name} for name, text in FILES.items()]
            self._send(json.dumps(tree).encode())
        elif parts_[:4] == ["api", "models", *NAME.split("/")]:
            siblings = [{"rfilename": name} for name in FILES]
            self._send(json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode())
        elif "/".join(parts_[:2]) == NAME and parts_[2] == "resolve" and parts_[4] in FILES:
            self._send(FILES[parts_[4]])
        else:
            self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _send(self, body: bytes, status: int = 200, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            "ETag": f'"{hashlib.sha256(body).hexdigest()[:40]}"',
            "X-Repo-Commit": COMMIT,
            **(more or {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the hub's client, which reads its variables at import, to an empty cache and to no network."""
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the model on the loopback."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", url)
    yield url
    server.shutdown()
    server.server_close()


def test_a_hub_id_is_downloaded_once_and_pinned_to_its_commit(
    hub: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    assert pinned(NAME, "policy.model") == f"{NAME}@{COMMIT}"
    folder = local_model(f"{NAME}@{COMMIT}", "policy.model")
    assert folder.is_relative_to(cache)
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_model(f"{NAME}@{COMMIT}", "policy.model") == folder


def test_an_id_that_the_hub_does_not_know_is_one_line(hub: str) -> None:
    for ask in (pinned, local_model):
        with pytest.raises(UserFault, match=r"^--policy: 'no/such' is no folder here, and .* refuses it") as raised:
            ask("no/such", "--policy")
        assert "\n" not in str(raised.value)


def test_a_model_that_is_not_here_offline_is_named_with_the_remedy(cache: Path) -> None:
    message = (
        r"^policy\.model: 'someone/tiny-policy' is neither a folder here nor in the cache of Hugging Face, and "
        r"HF_HUB_OFFLINE is set; use `hf download someone/tiny-policy` on a machine with network, or the path"
    )
    with pytest.raises(UserFault, match=message):
        local_model(NAME, "policy.model")


def test_the_cache_serves_a_model_offline(cache: Path) -> None:
    root = cache / "models--someone--tiny-policy"
    (root / "snapshots" / COMMIT).mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    (root / "snapshots" / COMMIT / "config.json").write_text("{}")
    assert pinned(NAME, "policy.model") == f"{NAME}@{COMMIT}"
    assert local_model(NAME, "policy.model") == root / "snapshots" / COMMIT


def test_a_local_folder_of_that_name_comes_first(hub: str, tmp_path: Path) -> None:
    assert is_hub_id(NAME)
    (tmp_path / NAME).mkdir(parents=True)
    assert not is_hub_id(NAME)
    assert pinned(NAME, "policy.model") == NAME
    assert local_model(NAME, "policy.model") == Path(NAME)
    shutil.rmtree(tmp_path / NAME)
    assert is_hub_id(NAME)


@pytest.mark.parametrize("text", ["/models/policy", "policy", "./a/b", "a/b/c", "genevolve_ray.atlas:cold_start"])
def test_paths_are_no_hub_ids(text: str) -> None:
    assert not is_hub_id(text)


def test_a_run_pins_every_model_and_a_resumed_one_keeps_its_commits(hub: str) -> None:
    config = load_config(
        "atlas",
        [
            f"policy.model={NAME}",
            "experience.embedder.kind=transformers",
            f"experience.embedder.transformers.model={NAME}@main",
            f"judge={{type: local, config: {{model: {{model: {NAME}}}}}}}",
            "reward.formula=paper",
        ],
    )
    made = pin_models(config, {})
    assert made.policy.model == f"{NAME}@{COMMIT}"
    assert made.experience.embedder.transformers.model == f"{NAME}@{COMMIT}"
    assert made.judge.config == {"model": {"model": f"{NAME}@{COMMIT}"}}
    older = f"{NAME}@{'b' * 40}"
    again = pin_models(config, {"policy": {"model": older}})
    assert again.policy.model == older


def test_the_doctor_downloads_nothing(hub: str, cache: Path) -> None:
    [found], _ = parts.policy(load_config("atlas", [f"policy.model={NAME}"]), deep=False)
    assert (found.status, found.remedy) == (Status.NOTE, f"hf download {NAME}")
    assert not list(cache.glob("models--*/snapshots/*/*"))
