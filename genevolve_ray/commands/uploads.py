"""Upload of a folder to a model hub, through huggingface_hub; the token comes from the environment alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

from genevolve_ray.errors import UserFault
from genevolve_ray.records.secrets import remember_secret
from genevolve_ray.remote.hub_rows import offline, refusal

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_TARGET = re.compile(r"^[\w.-]+/[\w.-]+$")


def check_target(target: str) -> str:
    """Check that a folder can be uploaded to a repository of models, and return the token.

    Raises:
        UserFault: for a name that is not ORG/NAME, without a token, and where a variable forbids the use of a hub.
    """
    if not _TARGET.fullmatch(target):
        raise UserFault(f"--push {target!r}: write ORG/NAME")
    if variable := offline():
        raise UserFault(f"--push {target}: {variable} forbids the use of a hub: unset it")
    token = next((value for name in TOKEN_VARIABLES if (value := os.environ.get(name, "").strip())), "")
    if not token:
        raise UserFault(f"--push {target}: set HF_TOKEN to a token that may write to it")
    remember_secret(token)
    return token


def upload(folder: Path, target: str, *, public: bool, message: str) -> str:
    """Upload a folder and return a line with its address. A repository that is created is private unless `public`.

    Raises:
        UserFault: when the hub refuses.
        InfraFailure: when it cannot be reached.
    """
    token = check_target(target)
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        api.create_repo(target, private=not public, exist_ok=True)
        commit = api.upload_folder(repo_id=target, folder_path=str(folder), commit_message=message)
    except Exception as error:
        raise refusal(error, f"--push {target}: the hub at {api.endpoint}") from error
    return f"uploaded to {api.endpoint}/{target} ({commit.oid[:8] if commit.oid else 'commit'})"
