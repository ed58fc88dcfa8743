"""The request log: raw replies of endpoints, one row a request, each durable the moment it has arrived.

One SQLite file in scratch (`requests.sqlite`, write-ahead log), table `replies`: `key` (what the reply depends on, as
tasks/core/asking/endpoint.py makes it) and `body` (the reply as it arrived, compressed; the compression's checksum finds a
flipped bit). A kill loses only what had not arrived. Several processes may use one log: the first reply to a request
stays, and everybody reads that one. A damaged reply counts as not there, and a file that is no database is
set aside: both cost new requests and nothing else. Safe to delete, at the price of asking again.
"""

import contextlib
import logging
import os
import shutil
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tasks.core.errors import StageFailed

log = logging.getLogger(__name__)

FILE = "requests.sqlite"
PATIENCE = 60.0  # seconds for another process to finish writing
AT_ONCE = 500  # keys in one query


class RequestLog:
    """An open log. Its methods may be called from any thread. Raises `StageFailed` where the file cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = self._opened()
        except sqlite3.OperationalError as error:
            raise self._failure(error) from error
        except sqlite3.DatabaseError as error:
            self._set_aside(error)
            self._database = self._opened()

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that have no reply, in their order."""
        known = {key for chunk in _chunks(keys) for (key,) in self._select("key", chunk)}
        return [key for key in keys if key not in known]

    def read(self, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Key and raw reply of every key that has one, in no particular order. Forgets damaged replies."""
        for chunk in _chunks(keys):
            damaged = []
            for key, body in self._select("key, body", chunk):
                try:
                    raw = zlib.decompress(body).decode()
                except (zlib.error, UnicodeDecodeError, TypeError):
                    damaged.append(key)
                else:
                    yield key, raw
            self.forget(damaged)

    def write(self, key: str, raw: str) -> None:
        """Keeps a reply, unless there is one already."""
        body = zlib.compress(raw.encode(), 1)
        self._execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", [(key, body)])

    def forget(self, keys: Iterable[str]) -> None:
        """Removes replies that cannot be read, so that they are asked for again."""
        if found := [(key,) for key in keys]:
            self._execute("DELETE FROM replies WHERE key = ?", found)

    def close(self) -> None:
        self._database.close()

    def _opened(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            _write_ahead(database)
            database.execute("PRAGMA synchronous = NORMAL")  # safe against a kill, not against a power cut
            database.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, body BLOB NOT NULL)")
            database.execute("SELECT count(*) FROM (SELECT 1 FROM replies LIMIT 1)").fetchone()
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _select(self, columns: str, keys: Sequence[str]) -> list[tuple[Any, ...]]:
        places = ", ".join("?" * len(keys))
        return self._done(f"SELECT {columns} FROM replies WHERE key IN ({places})", [tuple(keys)])

    def _execute(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        self._done(statement, rows)

    def _done(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return [found for row in rows for found in self._database.execute(statement, row).fetchall()]
            except sqlite3.OperationalError as error:
                raise self._failure(error) from error
            except sqlite3.DatabaseError as error:  # a page in the middle of the file is damaged
                with contextlib.suppress(sqlite3.Error):
                    self._database.close()
                self._set_aside(error)
                self._database = self._opened()
                return [found for row in rows for found in self._database.execute(statement, row).fetchall()]

    def _set_aside(self, error: sqlite3.Error) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged.{os.getpid()}")
        log.warning(
            "%s is damaged (%s); it is kept as %s, and its requests are asked again", self.path, error, aside.name
        )
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).replace(aside.with_name(aside.name + suffix))

    def _failure(self, error: sqlite3.Error) -> StageFailed:
        free = shutil.disk_usage(self.path.parent).free / 2**20
        return StageFailed(
            f"{self.path} cannot be written or read ({error}); {free:,.0f} MiB are free there: make room, lift the limit on "
            "the size of files, or end the process that holds it, and run it again; what had arrived before is kept"
        )


def _write_ahead(database: sqlite3.Connection) -> None:
    """Turns the write-ahead log on. Where another process does so at this moment, SQLite refuses without waiting."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)


def _chunks(keys: Sequence[str]) -> Iterator[list[str]]:
    several = iter(keys)
    while chunk := list(islice(several, AT_ONCE)):
        yield chunk
