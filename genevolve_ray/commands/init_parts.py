"""The parts of a new run: what a choice such as `vllm:MODEL` writes, downloads, serves and needs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genevolve_ray.engines.checks import read_model_config, sees
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.plugins import Role, registered
from genevolve_ray.models.hub import is_hub_id

ATLAS = "atlas"
FILL_IN = "FILL_IN"
_RENDERER_PORT, _JUDGE_PORT = 8001, 8002
_CHOICE = re.compile(r"^(?P<name>[\w.-]+)(?:[: ](?P<what>\S.*))?$")
_IMPORT_PATH = re.compile(r"^\w+(?:\.\w+)+:\w+$")
_GEMINI_CHAT = "https://generativelanguage.googleapis.com/v1beta/openai"
_GEMINI_JUDGE = "gemini-3.1-pro-preview"
_EDITOR = "Qwen/Qwen-Image-Edit-2511"
CHOICES: Mapping[str, str] = {
    "policy": "atlas, a model folder, or ORG/NAME of a hub",
    "renderer": "atlas, qwen-service[:URL], diffusers:MODEL, preset:NAME, gemini[:MODEL], images-api:MODEL@URL",
    "judge": "atlas, gemini[:MODEL], endpoint:MODEL@URL, vllm:MODEL",
    "tools": "atlas, serper, brave, searxng:URL, folder:FOLDER, local:FOLDER",
}
"""What each option takes, besides the name or the import path of any other plug-in."""
_PLAIN = (ATLAS, "serper", "web", "brave")
"""Choices without a model or an address."""


@dataclass(frozen=True)
class SideService:
    """Describe a service to start beside the run: its role, port, and the configuration that it serves."""

    role: str
    port: int
    config: Mapping[str, Any]
    instead: str = ""
    """Another program with which the same model can be served."""


@dataclass(frozen=True)
class RunPart:
    """Describe what one choice contributes to a run."""

    values: Mapping[str, Any]
    """Keys of the run's YAML."""
    comment: str = ""
    downloads: tuple[tuple[str, str], ...] = ()
    """Models of a hub, `ORG/NAME` or `ORG/NAME@REVISION`, and the folders that they are downloaded to."""
    server: SideService | None = None
    inside_gpus: int = 0
    """GPUs that a replica inside the run takes."""
    variables: tuple[str, ...] = ()
    """Environment variables that hold keys."""


def _model_place(named: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the folder of a model, and its download: an id of a hub gets a folder below `models/`."""
    if not is_hub_id(named):
        return str(Path(named).expanduser().resolve()), ()
    folder = f"./models/{named.partition('@')[0].partition('/')[2]}"
    return folder, ((named, folder),)


def split_choice(option: str, text: str) -> tuple[str, str]:
    """Return the name and the rest of a choice such as `vllm:MODEL`. Raises UserFault."""
    if _IMPORT_PATH.fullmatch(text):
        return text, ""
    found = _CHOICE.fullmatch(text.strip())
    if found is None:
        raise UserFault(f"--{option} {text!r}: choose {CHOICES[option]}")
    name, what = found["name"], found["what"] or ""
    if what and name in _PLAIN:
        raise UserFault(f"--{option} {text!r}: {name} takes nothing more, choose {CHOICES[option]}")
    return name, what


def renderer_part(text: str, *, gpu: bool) -> RunPart:
    """Return the part of `--renderer`. Raises UserFault for an unknown choice."""
    name, what = split_choice("renderer", text)
    if name == ATLAS:
        return RunPart({"renderer": {"type": ATLAS}})
    if name == "qwen-service" and what:
        urls = what.split(",")
        return RunPart({"renderer": {"type": name, "config": {"url": urls, "health_path": "health"}}}, "already served")
    if name == "qwen-service":
        folder, downloads = _model_place(_EDITOR)
        served = {
            "renderer": {"type": "preset", "config": {"name": "qwen-image-edit-2511", "overrides": {"model": folder}}},
            "cluster": {"renderer": {"timeout": 2700}},
        }
        called = {"url": f"http://127.0.0.1:{_RENDERER_PORT}", "health_path": "health", "model": _EDITOR.split("/")[1]}
        server = SideService("renderer", _RENDERER_PORT, served)
        return RunPart({"renderer": {"type": name, "config": called}}, "serve_renderer.sh", downloads, server)
    if name in ("diffusers", "preset"):
        return _diffusers(name, _needed("renderer", text, what), gpu)
    if name == "gemini":
        config = {"model": what} if what else {}
        return RunPart({"renderer": {"type": name, "config": config}}, variables=("GEMINI_API_KEY",))
    if name == "images-api":
        model, url = _model_at(what)
        return RunPart({"renderer": {"type": name, "config": {"url": url, "model": model}}}, "url ends in /v1")
    return RunPart({"renderer": _other(Role.RENDERER, "renderer", name, text)})


def _diffusers(name: str, what: str, gpu: bool) -> RunPart:
    cluster: dict[str, Any] = {"cluster": {"renderer": {"gpus": 1}}} if gpu else {}
    if name == "preset":
        from genevolve_ray.renderers.presets import renderer_preset

        try:
            renderer_preset(what)
        except ValueError as error:
            raise UserFault(f"--renderer preset:{what}: {error}") from error
        values: dict[str, Any] = {"renderer": {"type": name, "config": {"name": what}}}
        return RunPart(values | cluster, "in a replica of the run", inside_gpus=int(gpu))
    folder, downloads = _model_place(what)
    values = {"renderer": {"type": name, "config": {"model": folder}}}
    return RunPart(values | cluster, "in a replica of the run", downloads, inside_gpus=int(gpu))


def judge_part(text: str, *, gpu: bool) -> RunPart:
    """Return the part of `--judge`, with the summarizer of best-worst pairs. Raises UserFault for an unknown choice."""
    name, what = split_choice("judge", text)
    if name == ATLAS:
        # The reward of the preset `paper` has this formula; a verdict must have the same.
        return RunPart({"judge": {"type": ATLAS}, "summariser": {"type": ATLAS}})
    if name == "gemini":
        called = {"url": _GEMINI_CHAT, "model": what or _GEMINI_JUDGE, "token_env": "GEMINI_API_KEY"}
        return RunPart(_asked(called), variables=("GEMINI_API_KEY",))
    if name == "endpoint":
        model, url = _model_at(_needed("judge", text, what))
        return RunPart(_asked({"url": url, "model": model, "token_env": ""}), "token_env: NAME sends the token in NAME")
    if name in ("vllm", "local"):
        folder, downloads = _model_place(_needed("judge", text, what))
        backend, dtype, device = ("vllm", "bfloat16", "cuda") if gpu else ("transformers", "float32", "cpu")
        chat = {"model": folder, "device": device, "dtype": dtype, "max_model_len": 16384}
        served = {
            "judge": {"type": "local", "config": {"backend": backend, "model": chat}},
            "cluster": {"judge": {"timeout": 1800}},
        }
        called = {"url": f"http://127.0.0.1:{_JUDGE_PORT}/v1", "model": f"{Path(folder).name}:{dtype}", "token_env": ""}
        words = ("--model", folder, "--port", str(_JUDGE_PORT), "--served-model-name", str(called["model"]))
        instead = shlex.join(["python", "-m", "vllm.entrypoints.openai.api_server", *words]) if gpu else ""
        server = SideService("judge", _JUDGE_PORT, served, instead)
        return RunPart(_asked(called), "serve_judge.sh", downloads, server)
    return RunPart({"judge": _other(Role.JUDGE, "judge", name, text), "summariser": {"type": "rules"}})


def _asked(called: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "judge": {"type": "endpoint", "config": {"kscore": dict(called)}},
        "summariser": {"type": "endpoint", "config": dict(called)},
    }


def tools_part(text: str) -> RunPart:
    """Return the part of `--tools`. Raises UserFault for an unknown choice."""
    name, what = split_choice("tools", text)
    if name == ATLAS:
        return RunPart({"tools": {"type": ATLAS, "config": {"seed": 1}}})
    if name in ("serper", "web"):
        return RunPart({"tools": {"type": "web"}}, "search by Serper", variables=("SERPER_API_KEY",))
    if name == "brave":
        return RunPart({"tools": {"type": name}}, "search by Brave", variables=("BRAVE_API_KEY",))
    if name == "searxng":
        urls = _needed("tools", text, what).split(",")
        return RunPart({"tools": {"type": name, "config": {"searxng": {"url": urls}}}}, "your own SearXNG instance")
    if name == "folder":
        folder = Path(_needed("tools", text, what)).expanduser().resolve()
        return RunPart({"tools": {"type": name, "config": {"folder": str(folder)}}}, "your own texts and pictures")
    if name == "local":
        folder = Path(_needed("tools", text, what)).expanduser().resolve()
        config = {"texts": str(folder / "texts.jsonl"), "pictures": str(folder / "pictures.jsonl")}
        return RunPart({"tools": {"type": name, "config": config}}, "your own corpus, see docs/tools.md")
    return RunPart({"tools": _other(Role.TOOLS, "tools", name, text)})


def policy_part(text: str) -> RunPart:
    """Return the part of `--policy`."""
    if text == ATLAS:
        return RunPart({})
    folder, downloads = _model_place(text)
    values: dict[str, Any] = {"policy": {"model": folder}}
    if _blind(Path(folder)):
        # The profile of the preset `paper` shows pictures.
        values["profile"] = {"observations": {"images": False}}
    return RunPart(values, "after its cold start: genevolve sft", downloads)


def _blind(folder: Path) -> bool:
    """Return whether a model folder is known to be one without vision; a model that is not here yet is not."""
    try:
        return not sees(read_model_config(folder))
    except (OSError, ValueError):
        return False


def _needed(option: str, text: str, what: str) -> str:
    if not what:
        raise UserFault(f"--{option} {text!r}: needs more, choose {CHOICES[option]}")
    return what


def _model_at(what: str) -> tuple[str, str]:
    """Return model and address of MODEL@URL, or of one of them; what is not given is to be filled in."""
    model, at, url = what.rpartition("@")
    if not at and "://" not in what:
        model, url = what, ""
    return model or FILL_IN, url or f"http://{FILL_IN}/v1"


def _other(role: Role, option: str, name: str, text: str) -> dict[str, Any]:
    """Return the plug-in of another package. Raises UserFault for a name that is not registered."""
    if not _IMPORT_PATH.fullmatch(name) and text.strip() not in {plugin.name for plugin in registered(role)}:
        raise UserFault(f"--{option} {text!r}: choose {CHOICES[option]}, or a name of `genevolve plugins list {role}`")
    return {"type": name}
