"""Lock that gives a run one writer.

On local disks the lock is `flock` on the run's `.lock` file, through the package `filelock`. The kernel releases it
when the process ends in any way, so a lock file without a living holder is free. (Network file systems mounted locally
must support `flock`.)

Elsewhere it is a lease of our own, because `filelock` locks files and not the objects of a store. `.lease.json` names
the owner and an expiry, and the owner's heartbeat renews it. A writer that dies holds the run until its lease expires,
and every write first checks that the lease is still its own. pyarrow has no conditional put, so two writers that start
within one round trip may both write the lease. The one whose write is overwritten detects that when it reads the lease
back, at the latest before its first commit. The clocks of the writers must agree to within the lease's length.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import filelock
import psutil
from pydantic import ValidationError

from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.records.base import Record

LOCK_FILE = ".lock"
LEASE_FILE = ".lease.json"
LEASE_SECONDS = 120.0


class RunLockedError(StoreError):
    """Report that another writer holds the run; the message names it."""


class Holder(Record):
    """Identify the holder of a run.

    `process_started` is in seconds since the epoch and distinguishes processes of one pid.
    """

    host: str
    pid: int
    process_started: float
    since: str

    @classmethod
    def current(cls) -> Holder:
        """Return this process."""
        process = psutil.Process()
        return cls(
            host=socket.gethostname(),
            pid=process.pid,
            process_started=process.create_time(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class LockLease(Record):
    """Store the content of a lease file; `expires` is in seconds since the epoch."""

    holder: Holder
    token: str
    expires: float


class RunLock(Protocol):
    """Hold the right to write a run."""

    def check(self) -> None:
        """Check that the lock is still held. Raises RunLockedError when it is not."""
        ...

    def release(self) -> None:
        """Release the run; a second call does nothing."""
        ...


class FileLock:
    """Hold `flock` on a file of a local folder; it ends with the process, and a forked child does not inherit it."""

    def __init__(self, folder: Folder) -> None:
        """Take the lock. Raises RunLockedError naming the holder, StoreError when the file cannot be opened."""
        self._path = Path(folder.local(LOCK_FILE))
        # The file is never deleted: a holder of the deleted file and one of its successor would both own the run. Any
        # thread may release a lock that another one took.
        self._lock = filelock.FileLock(self._path, timeout=0, thread_local=False, preserve_lock_file=True)
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            holder = _describe(self._path.read_bytes())
            raise RunLockedError(f"run {folder.root} is being written by {holder}; stop it first") from error
        except OSError as error:
            raise StoreError(f"cannot open {self._path} (run lock): {error}") from error
        self._path.write_text(Holder.current().model_dump_json(), encoding="utf-8")

    def check(self) -> None:
        """Check that the lock was not released. Raises RunLockedError."""
        if not self._lock.is_locked:
            raise RunLockedError(f"{self._path} was released")

    def release(self) -> None:
        """Unlock; the empty file stays."""
        if self._lock.is_locked:
            self._path.write_bytes(b"")
            self._lock.release()


class LeaseLock:
    """Hold a lease object on a remote filesystem, renewed by a heartbeat."""

    def __init__(
        self, folder: Folder, *, seconds: float = LEASE_SECONDS, clock: Callable[[], float] = time.time
    ) -> None:
        """Take the lease. Raises RunLockedError naming the holder and when its lease expires."""
        self._folder, self._seconds, self._clock = folder, seconds, clock
        self._holder, self._token = Holder.current(), uuid.uuid4().hex
        self._stop, self._guard = threading.Event(), threading.Lock()
        if (lease := self._read()) is not None and (left := lease.expires - clock()) > 0:
            raise RunLockedError(
                f"run {folder.uri} is being written by {lease.holder}; its lease expires in {left:.0f} s unless renewed"
            )
        self.renew()
        self.check()
        self._heartbeat = threading.Thread(target=self._beat, name="run-lease", daemon=True)
        self._heartbeat.start()

    def _read(self) -> LockLease | None:
        if self._folder.size(LEASE_FILE) is None:
            return None
        try:
            return LockLease.model_validate_json(self._folder.get(LEASE_FILE, "run lease"))
        except ValidationError:
            return None  # an incompletely written lease has no holder

    def renew(self) -> None:
        """Extend the lease from now on. Raises StoreError when it cannot be written."""
        lease = LockLease(holder=self._holder, token=self._token, expires=self._clock() + self._seconds)
        self._folder.put(LEASE_FILE, lease.model_dump_json().encode(), "run lease")

    def _beat(self) -> None:
        while not self._stop.wait(self._seconds / 4):
            with self._guard:
                try:
                    self.check()
                    self.renew()
                except RunLockedError:
                    return  # the next commit reports it in the loop's own thread
                except StoreError:
                    continue  # an outage shorter than the lease does no harm, a longer one fails the next commit

    def check(self) -> None:
        """Check that the lease is ours and has not expired. Raises RunLockedError."""
        lease = self._read()
        if self._stop.is_set() or lease is None or lease.token != self._token:
            holder = lease.holder if lease else "nobody"
            raise RunLockedError(
                f"run {self._folder.uri} is no longer locked by this process: its lease is held by {holder}"
            )
        if lease.expires <= self._clock():
            raise RunLockedError(f"run {self._folder.uri} is no longer locked by this process: its lease expired")

    def release(self) -> None:
        """Delete the lease if it is still ours."""
        if self._stop.is_set():
            return
        with self._guard:
            lease = self._read()
            self._stop.set()
            if lease is not None and lease.token == self._token:
                self._folder.delete(LEASE_FILE)


def take_lock(folder: Folder) -> RunLock:
    """Take a run for writing. Raises RunLockedError when another process holds it."""
    return FileLock(folder) if folder.is_local else LeaseLock(folder)


def _describe(data: bytes) -> str:
    """Return the holder that a lock file names.

    A holder writes its name just after taking the lock, so it may be empty.
    """
    try:
        return str(Holder.model_validate(json.loads(data)))
    except ValueError:
        return "another process"
