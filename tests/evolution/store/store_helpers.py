"""Small runs for the tests of the run store."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.records.trajectory import Group, Outcome, Provenance, SampleKey, Termination, Trajectory
from genevolve_ray.records.verdict import Reward

CONFIG = {"seed": 1, "loop": {"steps": 4, "group_size": 2}}


def make_group(request_id: str, step: int, version: int | None = None) -> Group:
    """Two judged trajectories; the numbers depend on the arguments alone."""
    version = step - 1 if version is None else version
    trajectories = []
    for sample in range(2):
        ledger = TokenLedger()
        ledger.append_context([1, 2, 3], SpanKind.PROMPT)
        ledger.append_policy([4, 5 + sample], [-1 / 3, -0.1 * step], [version] * 2, SpanKind.ANSWER)
        trajectories.append(
            Trajectory(
                SampleKey(step=step, request_id=request_id, sample=sample),
                f"draw {request_id}",
                ledger,
                Provenance(profile="release", engine="fake"),
                outcome=Outcome.SCORED,
                termination=Termination.ANSWER,
                reward=Reward(total=0.5 * sample, image=0.25, text=0.25),
            )
        )
    return Group(request_id, step, trajectories)


def take_step(store: RunStore, step: int, **options: Any) -> list[Group]:
    """Persist and commit two groups as one step."""
    groups = [make_group(name, step) for name in ("b", "a")]
    for group in groups:
        store.put_group(group, step - 1)
    store.commit_step(step, groups, {"reward_mean": step / 10}, f"hash-{step}", **options)
    return groups


def save_checkpoint(store: RunStore, step: int, state_hash: str | None = None, reward: float | None = None) -> None:
    """Publish a checkpoint of two files, one of them in a sub-folder."""
    validation = None if reward is None else {"reward_mean": reward}
    with store.checkpoint(step, state_hash or f"hash-{step}", validation) as folder:
        (folder / "model.bin").write_bytes(b"weights %d" % step)
        (folder / "loop").mkdir()
        (folder / "loop" / "state.json").write_text("{}")


class Crash(Exception):
    """The process died here."""


class Fuse:
    """Lets n writing operations pass, then fails for ever, as a dead process or a full disk does."""

    def __init__(self, left: int, error: Callable[[], Exception] = Crash) -> None:
        self.left, self.error, self.burnt = left, error, False

    def __call__(self) -> None:
        if self.left <= 0:
            self.burnt = True
            raise self.error()
        self.left -= 1


def disk_full() -> OSError:
    """The error of a full disk."""
    return OSError(errno.ENOSPC, "No space left on device")


class FusedFiles(pafs.FileSystemHandler):
    """A filesystem over another one of which every writing operation goes through a fuse; streams may be cut short."""

    def __init__(self, inner: pafs.FileSystem, fuse: Fuse) -> None:
        self.inner, self.fuse = inner, fuse

    def get_type_name(self) -> str:
        return "fused"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return self.inner.get_file_info(paths)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return self.inner.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.fuse()
        self.inner.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self.fuse()
        self.inner.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.fuse()
        self.inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise AssertionError("the store must never empty a filesystem")

    def delete_file(self, path: str) -> None:
        self.fuse()
        self.inner.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        self.fuse()
        self.inner.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self.fuse()
        self.inner.copy_file(src, dest)

    def open_input_stream(self, path: str) -> Any:
        return self.inner.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        return self.inner.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self.fuse()
        import pyarrow as pa

        return pa.PythonFile(HalfWriter(self.inner.open_output_stream(path), self.fuse), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise AssertionError("object stores cannot append")


class HalfWriter:
    """A stream that writes half of a piece when its fuse burns."""

    def __init__(self, stream: Any, fuse: Fuse) -> None:
        self.stream, self.fuse, self.closed = stream, fuse, False

    def write(self, data: bytes) -> int:
        piece = bytes(data)
        if self.fuse.left <= 0:
            self.stream.write(piece[: len(piece) // 2])
        self.fuse()
        self.stream.write(piece)
        return len(piece)

    def flush(self) -> None:
        self.stream.flush()

    def close(self) -> None:
        self.closed = True
        self.stream.close()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
