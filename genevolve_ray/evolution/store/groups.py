"""Judged groups as files: one Parquet file per group, named by its request and its content."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence, Set

from genevolve_ray.evolution.store.checkpoints import RunCheckpoints
from genevolve_ray.evolution.store.documents import from_parquet, to_parquet
from genevolve_ray.evolution.store.files import Folder, StoreError, sha256
from genevolve_ray.evolution.store.lock import RunLock
from genevolve_ray.evolution.store.manifest import CheckpointConfig, GroupFile, step_name
from genevolve_ray.records.arrow import table_to_trajectories, trajectories_to_table
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.records.trajectory import Group

_KEY = b"genevolve_ray.group"
_HASH = 16
"""Digits of the content's hash in the name of a file."""
_DAMAGED = ".damaged"
"""Suffix of an uncommitted group that cannot be read: it is kept, and not read again."""


class PictureUnread(StoreError):
    """Report that the store of pictures gives no answer, which says nothing about the picture."""


def groups_folder(step: int) -> str:
    """Return the folder of a step's groups, relative to the run."""
    return f"steps/{step_name(step)}/groups"


def redraws_folder(step: int) -> str:
    """Return the folder of a step's guided re-draws, relative to the run."""
    return f"steps/{step_name(step)}/redraws"


def encode_group(group: Group, policy_version: int, folder: str = "") -> tuple[GroupFile, bytes]:
    """Return a group's file and its content; the same group gives the same file.

    Args:
        group: the group; its ledgers must be consistent (ValueError otherwise).
        policy_version: the oldest version that sampled it.
        folder: where the file is, relative to the run; by default the folder of the groups of its round.
    """
    description = {"request_id": group.request_id, "step": group.step, "policy_version": policy_version}
    data = to_parquet(trajectories_to_table(group.trajectories), {_KEY: json.dumps(description).encode()})
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", group.request_id)[:80]
    name = f"{folder or groups_folder(group.step)}/{safe}-{sha256(data)[:_HASH]}.parquet"
    return _file(name, data, group, policy_version), data


def decode_group(name: str, data: bytes, path: str) -> tuple[GroupFile, Group]:
    """Return the group of a file.

    Args:
        name: the file, relative to the run.
        data: its content.
        path: the file, as errors name it.

    Raises:
        StoreError: when the file is corrupt or not a group. Its name has the hash of its content, so that even one
            flipped bit is found.
    """
    if not name.endswith(f"-{sha256(data)[:_HASH]}.parquet"):
        raise StoreError(f"{path} is corrupt: its content does not match the hash in its name")
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


class RunGroups(RunCheckpoints):
    """Manage the judged groups of a run; the base of its store."""

    def __init__(self, folder: Folder, lock: RunLock | None, keep: CheckpointConfig) -> None:
        """Open a run's folder; `keep` selects the checkpoints that stay."""
        super().__init__(folder, lock, keep)
        self._used: set[str] = set()
        """Paths of the groups that a committed step was trained on or dropped."""
        self._dropped: set[str] = set()
        """Paths of the groups that were forgotten since the last commit."""
        self._persisted: dict[int, tuple[Group, GroupFile]] = {}  # by id(); the stored group keeps its id reserved

    @property
    def images(self) -> FilesystemImages:
        """The run's image store; its `uri` opens it in other processes, unless the run was given a filesystem object."""
        address = self._folder.address("images")
        by_name = self._folder.is_local or "://" in address
        return FilesystemImages(address, None if by_name else self._folder.fs)

    def put_group(self, group: Group, policy_version: int) -> GroupFile:
        """Persist a judged group; once this has returned, the group may be acknowledged.

        The same group put twice is one file. `policy_version` is the oldest version that sampled it.

        Raises:
            StoreError: when it cannot be written, or was used by a committed step.
        """
        self._writable()
        file, data = encode_group(group, policy_version)
        if file.path in self._used:
            raise StoreError(f"{file.path} is committed already: the group of {group.request_id} was generated twice")
        self._folder.put(file.path, data, f"group of request {group.request_id}")
        self._persisted[id(group)] = (group, file)
        return file

    def forget_group(self, group: Group) -> None:
        """Forget a persisted group that no step will use; its file stays, and the next step's manifest names it."""
        if (found := self._persisted.pop(id(group), None)) is not None:
            self._dropped.add(found[1].path)

    def withdraw_group(self, group: Group) -> None:
        """Delete a persisted group whose samples are drawn again. Raises StoreError when it cannot be deleted."""
        self._writable()
        _, file = self._persisted.pop(id(group))
        self._folder.delete(file.path)

    def pending_groups(self, on_damage: Callable[[str], None] | None = None) -> list[Group]:
        """Return groups that were persisted and that no step has used or dropped, ordered by file name.

        A group is trained on with the pictures that its policy saw, so one whose picture is missing counts as corrupt.

        Args:
            on_damage: called with the message about a corrupt file, which is renamed and left out.

        Raises:
            StoreError: naming a file that is corrupt, without `on_damage`, and a picture that cannot be read.
        """
        found, intact = [], set[str]()
        for base in sorted(self._folder.entries("steps", recursive=True)):
            name = f"steps/{base}"
            if name in self._used or not re.fullmatch(r"\d{6,}/groups/[^/]+\.parquet", base):
                continue
            try:
                file, group = decode_group(name, self._folder.get(name, "judged group"), self._folder.path(name))
                self._check_pictures(group, self._folder.path(name), intact)
            except PictureUnread:
                raise
            except StoreError as error:
                if on_damage is None:
                    raise
                self._writable()
                self._folder.move(name, f"{name}{_DAMAGED}")
                on_damage(f"{error}; it is not committed, and its samples are drawn again")
                continue
            self._persisted[id(group)] = (group, file)
            found.append(group)
        return found

    def _check_pictures(self, group: Group, path: str, intact: set[str]) -> None:
        """Check that the pictures that a group's policy saw are stored; `intact` are those that were checked before.

        Raises:
            StoreError: naming the first picture that is missing or damaged.
            PictureUnread: when the store gives no answer.
        """
        seen = {span.sha256: t for t in group.trajectories for span in t.ledger.media if span.sha256 not in intact}
        if not seen:
            return
        images = self.images
        for picture, trajectory in seen.items():
            try:
                images.get(trajectory.shown(picture))
            except (KeyError, FileNotFoundError) as error:
                raise StoreError(
                    f"{path} cannot be trained on: picture {picture[:12]}, which the policy saw, is missing or damaged"
                ) from error
            except OSError as error:
                raise PictureUnread(f"cannot read picture {picture[:12]} of {path}: {error}") from error
            intact.add(picture)

    def groups(self, step: int, requests: Collection[str] | None = None) -> list[Group]:
        """Return the groups of a committed step in the order in which the learner saw them.

        Args:
            step: the step.
            requests: with it, only the groups of these requests are read.

        Raises:
            StoreError: when the step is not committed, or naming a file that is missing or corrupt.
        """
        files = self.manifest(step).groups
        return [self.read_group(file) for file in files if requests is None or file.request_id in requests]

    def read_group(self, file: GroupFile) -> Group:
        """Return the group of a file that a manifest names. Raises StoreError naming one that is missing or corrupt."""
        data, path = self._folder.get(file.path, "judged group"), self._folder.path(file.path)
        if sha256(data) != file.sha256:
            raise StoreError(f"{path} is corrupt: {len(data)} bytes are not the {file.size} that the manifest names")
        return decode_group(file.path, data, path)[1]

    def put_redraws(self, step: int, redraws: Group) -> GroupFile:
        """Persist the re-draws of a group; they count once the manifest of their step names the file.

        Raises:
            StoreError: when it cannot be written.
        """
        self._writable()
        versions = (v for t in redraws.trajectories if (v := t.ledger.oldest_version) is not None)
        file, data = encode_group(redraws, min(versions, default=0), redraws_folder(step))
        self._folder.put(file.path, data, f"re-draws of request {redraws.request_id}")
        return file

    def _remove_round(self, step: int, used: Set[str], *, groups: bool) -> None:
        """Delete the re-draws of a step that is discarded, and with `groups` those of its round that are not in `used`."""
        self._folder.delete(redraws_folder(step))
        if not groups:
            return
        folder = groups_folder(step)
        files = [f"{folder}/{base}" for base in self._folder.entries(folder)]
        if used.isdisjoint(files):
            self._folder.delete(f"steps/{step_name(step)}")
            return
        for file in files:
            if file not in used:
                self._folder.delete(file)

    def _files_of(self, step: int, groups: Sequence[Group]) -> tuple[GroupFile, ...]:
        """Return the files of groups that may be committed. Raises StoreError for one that may not."""
        files: list[GroupFile] = []
        for group in groups:
            if id(group) not in self._persisted:
                raise StoreError(
                    f"step {step}: the group of request {group.request_id} was never persisted, or is already used"
                )
            file = self._persisted[id(group)][1]
            if file.path in self._used or file in files:
                raise StoreError(f"step {step} would use {file.path} twice")
            if (size := self._folder.size(file.path)) != file.size:
                raise StoreError(f"{self._folder.path(file.path)} should have {file.size} bytes, it has {size}")
            files.append(file)
        return tuple(files)
