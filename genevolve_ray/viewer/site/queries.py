"""SQL of the index: its tables, and the statements that list, filter and total trajectories. Values are always bound."""

from __future__ import annotations

import json
import re
import sqlite3
from typing import Any, NamedTuple

from genevolve_ray.records.trajectory import Outcome
from genevolve_ray.viewer.site.columns import IndexedRow
from genevolve_ray.viewer.site.entries import EntryFilter, EntryOrder, EntryPage, GroupEntry, TrajectoryEntry

SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -8000;
DROP TABLE IF EXISTS trajectories;
DROP TABLE IF EXISTS files;
DROP TABLE IF EXISTS tools;
DROP TABLE IF EXISTS usage;
DROP TABLE IF EXISTS tokens;
DROP TABLE IF EXISTS timings;
DROP TABLE IF EXISTS words;
CREATE TABLE files (id INTEGER PRIMARY KEY, path TEXT UNIQUE, stamp TEXT, trained INTEGER);
CREATE TABLE trajectories (
    id INTEGER PRIMARY KEY, address TEXT UNIQUE, grp TEXT, file INTEGER, place INTEGER, part TEXT, step INTEGER,
    request_id TEXT, sample INTEGER, attempt INTEGER, prompt TEXT, outcome TEXT, reward REAL, tools TEXT,
    oldest INTEGER, newest INTEGER, picture TEXT, reason TEXT, engine TEXT, turns INTEGER, seconds REAL
);
CREATE INDEX by_group ON trajectories (grp, sample, attempt);
CREATE INDEX by_step ON trajectories (step);
CREATE INDEX by_file ON trajectories (file);
CREATE TABLE tools (trajectory INTEGER, tool TEXT, PRIMARY KEY (tool, trajectory)) WITHOUT ROWID;
CREATE TABLE usage (
    file INTEGER, service TEXT, calls INTEGER, failed_calls INTEGER, cached INTEGER, prompt_tokens INTEGER,
    completion_tokens INTEGER, images INTEGER, seconds REAL, money REAL
);
CREATE TABLE tokens (file INTEGER, version INTEGER, count INTEGER);
CREATE TABLE timings (file INTEGER, part TEXT, count INTEGER, seconds REAL, longest REAL);
CREATE INDEX usage_by_file ON usage (file);
CREATE INDEX tokens_by_file ON tokens (file);
CREATE INDEX timings_by_file ON timings (file);
CREATE VIRTUAL TABLE words USING fts5(body, detail = 'full');
"""
"""`files` are those that are read; `trained` is the step that trained on a group. `part` is the set of a trajectory. `usage`,
`tokens` and `timings` are totals of a file: use by service, tokens by the version that sampled them, and seconds by the part
of a rollout."""

_ENTRY = "SELECT t.*, f.trained FROM trajectories t JOIN files f ON f.id = t.file"
_STORED = "SELECT t.address, t.part, f.path, t.place FROM trajectories t JOIN files f ON f.id = t.file"
_ORDERS = {
    EntryOrder.NEWEST: "t.step DESC, t.grp, t.sample, t.attempt",
    EntryOrder.OLDEST: "t.step, t.grp, t.sample, t.attempt",
    EntryOrder.BEST: "t.reward IS NULL, t.reward DESC, t.step DESC, t.address",
    EntryOrder.WORST: "t.reward IS NULL, t.reward, t.step DESC, t.address",
}
_GROUP_ORDERS = {
    EntryOrder.NEWEST: "max(t.step) DESC, t.grp",
    EntryOrder.OLDEST: "min(t.step), t.grp",
    EntryOrder.BEST: "max(t.reward) IS NULL, max(t.reward) DESC, max(t.step) DESC, t.grp",
    EntryOrder.WORST: "min(t.reward) IS NULL, min(t.reward), max(t.step) DESC, t.grp",
}


class StoredRow(NamedTuple):
    """Say where a trajectory is stored: its address, its set, the path of the file and the row there."""

    address: str
    set: str
    path: str
    row: int


def trajectories(
    connection: sqlite3.Connection, chosen: EntryFilter, order: EntryOrder, page: int, size: int
) -> EntryPage[TrajectoryEntry]:
    """Return a page of trajectories."""
    where, values = _where(chosen)
    (total,) = connection.execute(f"SELECT count(*) FROM trajectories t {where}", values).fetchone()  # noqa: S608
    rows = connection.execute(
        f"{_ENTRY} {where} ORDER BY {_ORDERS[order]} LIMIT ? OFFSET ?", (*values, size, (page - 1) * size)
    )
    return EntryPage(tuple(map(_entry, rows)), total, page, size)


def groups(
    connection: sqlite3.Connection, chosen: EntryFilter, order: EntryOrder, page: int, size: int
) -> EntryPage[GroupEntry]:
    """Return a page of groups with at least one trajectory that the filter selects."""
    where, values = _where(chosen)
    (total,) = connection.execute(f"SELECT count(DISTINCT grp) FROM trajectories t {where}", values).fetchone()  # noqa: S608
    found = connection.execute(
        f"SELECT t.grp FROM trajectories t {where} GROUP BY t.grp ORDER BY {_GROUP_ORDERS[order]} LIMIT ? OFFSET ?",  # noqa: S608
        (*values, size, (page - 1) * size),
    ).fetchall()
    members = [group(connection, row[0]) for row in found]
    return EntryPage(tuple(g for g in members if g is not None), total, page, size)


def group(connection: sqlite3.Connection, address: str) -> GroupEntry | None:
    """Return a group with all of its members, None for an unknown address."""
    rows = connection.execute(f"{_ENTRY} WHERE t.grp = ? ORDER BY t.sample, t.attempt", (address,))
    members = tuple(map(_entry, rows))
    if not members:
        return None
    rewards = [m.reward for m in members if m.reward is not None]
    first = members[0]
    return GroupEntry(
        address=address,
        set=first.set,
        step=first.step,
        request_id=first.request_id,
        prompt=first.prompt,
        best=max(rewards, default=None),
        worst=min(rewards, default=None),
        mean=sum(rewards) / len(rewards) if rewards else None,
        members=members,
    )


def trained_group(connection: sqlite3.Connection, step: int, request_id: str, of_set: str) -> str | None:
    """Return the address of the group of a request that a step trained on, None where it is not known."""
    row = connection.execute(
        "SELECT t.grp FROM files f JOIN trajectories t ON t.file = f.id WHERE f.trained = ? AND t.request_id = ? AND t.part = ?",
        (step, request_id, of_set),
    ).fetchone()
    return None if row is None else str(row[0])


def entry(connection: sqlite3.Connection, address: str) -> TrajectoryEntry | None:
    """Return an entry, None for an unknown address."""
    row = connection.execute(f"{_ENTRY} WHERE t.address = ?", (address,)).fetchone()
    return None if row is None else _entry(row)


def place(connection: sqlite3.Connection, address: str) -> StoredRow | None:
    """Return where a trajectory is stored, None for an unknown address."""
    row = connection.execute(f"{_STORED} WHERE t.address = ?", (address,)).fetchone()
    return None if row is None else StoredRow(*row)


def places(connection: sqlite3.Connection, group: str) -> list[StoredRow]:
    """Return where the members of a group are stored, in its order; none for an unknown group."""
    rows = connection.execute(f"{_STORED} WHERE t.grp = ? ORDER BY t.sample, t.attempt", (group,))
    return [StoredRow(*row) for row in rows]


def choices(connection: sqlite3.Connection) -> dict[str, list[Any]]:
    """Return the values that occur, by the field of a filter."""
    asked = {
        "set": "SELECT DISTINCT part FROM trajectories ORDER BY part != 'train', part",
        "step": "SELECT DISTINCT step FROM trajectories WHERE part = 'train' ORDER BY step",
        "outcome": "SELECT DISTINCT outcome FROM trajectories ORDER BY outcome",
        "tool": "SELECT DISTINCT tool FROM tools ORDER BY tool",
    }
    return {name: [row[0] for row in connection.execute(statement)] for name, statement in asked.items()}


def forget(connection: sqlite3.Connection, name: str) -> None:
    """Remove a file with its rows and totals."""
    row = connection.execute("SELECT id FROM files WHERE path = ?", (name,)).fetchone()
    if row is not None:
        for (number,) in connection.execute("SELECT id FROM trajectories WHERE file = ?", (row[0],)).fetchall():
            _remove(connection, number)
        for table in ("usage", "tokens", "timings"):
            connection.execute(f"DELETE FROM {table} WHERE file = ?", (row[0],))  # noqa: S608
        connection.execute("DELETE FROM files WHERE id = ?", (row[0],))


def add(
    connection: sqlite3.Connection,
    file: int | None,
    place: int,
    of_set: str,
    group: str,
    address: str,
    row: IndexedRow,
) -> None:
    """Add a trajectory; a later file replaces one of the same address, which was drawn for a step that began again."""
    earlier = connection.execute("SELECT id FROM trajectories WHERE address = ?", (address,)).fetchone()
    if earlier is not None:
        _remove(connection, earlier[0])
    oldest, newest = (row.versions[0], row.versions[-1]) if row.versions else (None, None)
    values: tuple[Any, ...] = (
        *(address, group, file, place, of_set, row.step, row.request_id, row.sample, row.attempt, row.prompt),
        *(row.outcome.value, row.reward, json.dumps(row.tools), oldest, newest, row.picture, row.reason, row.engine),
        *(row.turns, row.seconds),
    )
    number = connection.execute(
        f"INSERT INTO trajectories VALUES (NULL{', ?' * 20})",  # noqa: S608
        tuple(map(_storable, values)),
    ).lastrowid
    connection.execute("INSERT INTO words (rowid, body) VALUES (?, ?)", (number, _storable(row.words)))
    connection.executemany("INSERT INTO tools VALUES (?, ?)", ((number, tool) for tool in row.tools))


def _remove(connection: sqlite3.Connection, number: int) -> None:
    connection.execute("DELETE FROM trajectories WHERE id = ?", (number,))
    connection.execute("DELETE FROM tools WHERE trajectory = ?", (number,))
    connection.execute("DELETE FROM words WHERE rowid = ?", (number,))


def _storable(value: Any) -> Any:
    """Return a value that SQLite can hold: text from a broken decode may have half surrogate pairs."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _entry(row: sqlite3.Row) -> TrajectoryEntry:
    oldest, newest = row["oldest"], row["newest"]
    return TrajectoryEntry(
        address=row["address"],
        group=row["grp"],
        set=row["part"],
        step=row["step"],
        request_id=row["request_id"],
        sample=row["sample"],
        attempt=row["attempt"],
        prompt=row["prompt"],
        outcome=Outcome(row["outcome"]),
        reward=row["reward"],
        tools=tuple(json.loads(row["tools"])),
        versions=() if oldest is None else tuple(sorted({oldest, newest})),
        picture=row["picture"],
        reason=row["reason"],
        engine=row["engine"],
        turns=row["turns"],
        seconds=row["seconds"],
        trained=row["trained"],
    )


def _where(chosen: EntryFilter) -> tuple[str, tuple[Any, ...]]:
    """Return a WHERE clause and its values."""
    conditions = {
        "t.part = ?": chosen.set or None,
        "t.step = ?": chosen.step,
        "t.request_id = ?": chosen.request or None,
        "t.outcome = ?": chosen.outcome.value if chosen.outcome else None,
        "t.reward >= ?": chosen.low,
        "t.reward <= ?": chosen.high,
        "t.id IN (SELECT trajectory FROM tools WHERE tool = ?)": chosen.tool or None,
        "t.id IN (SELECT rowid FROM words WHERE words MATCH ?)": _match(chosen.text) if chosen.text else None,
    }
    used = {condition: value for condition, value in conditions.items() if value is not None}
    return (f"WHERE {' AND '.join(used)}" if used else ""), tuple(used.values())


def _match(text: str) -> str:
    """Return a full-text query: all words, each as the beginning of one, so that no operator of a user has an effect."""
    words = re.findall(r"\w+", text)
    return " ".join(f'"{word}"*' for word in words) or '""'
