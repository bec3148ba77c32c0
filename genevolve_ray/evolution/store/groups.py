"""Judged groups as files: one Parquet file per group, named by its request and its content."""

from __future__ import annotations

import json
import re

from genevolve_ray.evolution.store.documents import from_parquet, to_parquet
from genevolve_ray.evolution.store.files import StoreError, sha256
from genevolve_ray.evolution.store.manifest import GroupFile, step_name
from genevolve_ray.records.arrow import table_to_trajectories, trajectories_to_table
from genevolve_ray.records.trajectory import Group

_KEY = b"genevolve_ray.group"


def groups_folder(step: int) -> str:
    """Return the folder of a step's groups, relative to the run."""
    return f"steps/{step_name(step)}/groups"


def encode_group(group: Group, policy_version: int) -> tuple[GroupFile, bytes]:
    """Return a group's file and its content; the same group gives the same file.

    Args:
        group: the group; its ledgers must be consistent (ValueError otherwise).
        policy_version: the oldest version that sampled it.
    """
    description = {"request_id": group.request_id, "step": group.step, "policy_version": policy_version}
    data = to_parquet(trajectories_to_table(group.trajectories), {_KEY: json.dumps(description).encode()})
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", group.request_id)[:80]
    return _file(f"{groups_folder(group.step)}/{safe}-{sha256(data)[:16]}.parquet", data, group, policy_version), data


def decode_group(name: str, data: bytes, path: str) -> tuple[GroupFile, Group]:
    """Return the group of a file.

    Args:
        name: the file, relative to the run.
        data: its content.
        path: the file, as errors name it.

    Raises:
        StoreError: when the file is corrupt or not a group.
    """
    table = from_parquet(data, path)
    try:
        description = json.loads(table.schema.metadata[_KEY])
        group = Group(description["request_id"], description["step"], table_to_trajectories(table))
        return _file(name, data, group, description["policy_version"]), group
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} is not a judged group: {error}") from error


def _file(name: str, data: bytes, group: Group, policy_version: int) -> GroupFile:
    return GroupFile(
        path=name,
        sha256=sha256(data),
        size=len(data),
        request_id=group.request_id,
        trajectories=len(group.trajectories),
        policy_version=policy_version,
    )
