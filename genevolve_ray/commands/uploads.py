"""Upload of a folder to a model hub, through huggingface_hub; the token comes from the environment alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

from genevolve_ray.errors import UserFault
from genevolve_ray.records.secrets import redacted, remember_secret

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_TRUE = frozenset({"1", "true", "yes", "on"})
_TARGET = re.compile(r"^[\w.-]+/[\w.-]+$")


def offline() -> str:
    """Return the variable that forbids the use of a hub, "" where none does."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if os.environ.get(name, "").strip().lower() in _TRUE), "")


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
        UserFault: when the hub refuses or cannot be reached.
    """
    token = check_target(target)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        api.create_repo(target, private=not public, exist_ok=True)
        commit = api.upload_folder(repo_id=target, folder_path=str(folder), commit_message=message)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = redacted(" ".join(str(error).split()))[:300] or type(error).__name__
        raise UserFault(f"--push {target}: the hub at {api.endpoint} refused or cannot be reached: {reason}") from error
    return f"uploaded to {api.endpoint}/{target} ({commit.oid[:8] if commit.oid else 'commit'})"
