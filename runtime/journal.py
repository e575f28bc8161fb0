"""The journal of requests: what an engine owes its callers, on disk, so that the death of its process loses none of it.

A SQLite database in WAL mode. A committed write outlives the process; a loss of power may take the last of them, and
never leaves half of one. A request is written before its first step, the tokens of a step in one row for all requests,
and the end with everything that came of the request. What was handed to its caller is kept for a while, to look at.
"""

import contextlib
import ctypes
import json
import os
import sqlite3
import warnings
import weakref
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from echoc.errors import EchoError, JournalError
from echoc.runtime import journal_records as records
from echoc.runtime.outputs import Logprobs
from echoc.runtime.request import Request

APPLICATION = 0x6563686F  # "echo", in the file's header
LAYOUT = 1
KEPT = 256  # requests that were handed over and stay in the file
_CHECKPOINT = 4096  # pages of the log, after which a step waits for the disk; idle, a quarter of it
_OPEN, _FINISHED, _DELIVERED = 0, 1, 2
_TABLES = """
CREATE TABLE about(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE requests(number INTEGER PRIMARY KEY, request TEXT NOT NULL, result TEXT, state INTEGER NOT NULL);
CREATE TABLE steps(step INTEGER PRIMARY KEY, tokens BLOB NOT NULL, logprobs TEXT);
"""
_RESULT = "UPDATE requests SET result = ?, state = ? WHERE number = ?"
_STEP = "INSERT INTO steps(step, tokens, logprobs) VALUES (?, ?, ?)"
_REASONS = {
    sqlite3.SQLITE_BUSY: "another process, or another LLM of this one, has it open: give each its own",
    sqlite3.SQLITE_READONLY: "it cannot be written: let this user write the file and its folder, or name another file",
    sqlite3.SQLITE_PERM: "it cannot be written: let this user write the file and its folder, or name another file",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened or made: is there such a folder, and may this user write there?",
    sqlite3.SQLITE_FULL: "the disk is full: make room",
    sqlite3.SQLITE_IOERR: "the disk does not take it or give it back",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: move it away to begin a new one; sqlite3's .recover reads the rest",
    sqlite3.SQLITE_NOTADB: "the file is no journal, or its beginning is damaged: name another file",
}
_opened: "weakref.WeakSet[Journal]" = weakref.WeakSet()


class Journal:
    """The journal of one engine, open for it alone; use from one thread at a time.

    artifact: what identifies the artifact whose requests these are, with `name` for people to read. Raises JournalError
    for a file that is in use, damaged, foreign, of another artifact, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], artifact: str, name: str) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.owed: dict[int, str] = {}  # by number: requests that nobody in this process waits for
        self.fault: str | None = None  # why the last step could not be written
        self._live: dict[int, int] = {}  # number -> the first step that may have tokens of it
        self._tokens = array("q")  # of the step being made: number << 12 | index, position << 32 | token
        self._logprobs: list[Any] = []
        self._pending: list[tuple[str, tuple[Any, ...]]] = []
        self._step = self._delivered = self._checked = 0
        self._connection: sqlite3.Connection | None = None
        try:
            self._connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
            with contextlib.closing(self._connection.cursor()) as cursor:
                self._open(cursor, artifact, name)
                rows = cursor.execute("SELECT number, request FROM requests WHERE state < ?", (_DELIVERED,))
                self.owed = {number: self._name(number, text) for number, text in rows}
                self._fold(cursor)
                (highest,) = cursor.execute("SELECT max(number) FROM requests").fetchone()
                self.next_number: int = 0 if highest is None else highest + 1
        except sqlite3.Error as error:
            self.close()
            raise JournalError(self._explain(error)) from None
        except BaseException:
            self.close()
            raise
        _opened.add(self)

    # --- what the engine writes ---

    def accept(self, number: int, request: Request, seed: int) -> None:
        """Writes a request down before its first step. Raises JournalError when that cannot be done."""
        if self._connection is None:
            raise JournalError(f"the journal {self.path} is closed: no further request is taken")
        if request.request_id in self.owed.values():
            raise JournalError(
                f"the journal {self.path} has a request named {request.request_id!r} that is not finished: recover it, "
                "or give this one another request_id"
            )
        self.commit()
        try:
            text = records.accepted(request, seed)
            self._write([*self._pending, ("INSERT INTO requests VALUES (?, ?, NULL, ?)", (number, text, _OPEN))])
        except sqlite3.Error as error:
            reason = self._explain(error)
            raise JournalError(f"the request is not taken, for it cannot be written down: {reason}") from None
        self._pending.clear()
        self._live[number] = self._step
        self.next_number = max(self.next_number, number + 1)

    def token(self, number: int, index: int, position: int, token: int, logprobs: list[Logprobs] | None) -> None:
        """One token of output `index`, to be written with the step's others."""
        self._tokens.extend((number << 12 | index, position << 32 | token))
        if logprobs is not None:
            self._logprobs.append([number, index, position, records.encode_logprobs(logprobs[0])])

    def finish(self, request: Request) -> None:
        """The request came to an end; that of an interrupted one is none."""
        if self._live.pop(request.number, None) is not None:
            self._pending.append((_RESULT, (records.ended(request).text(), _FINISHED, request.number)))

    def interrupt(self, request: Request, error: EchoError | None) -> None:
        """The request was stopped, by the device or the process, and may be gone on with."""
        if self._live.pop(request.number, None) is not None:
            self._pending.append((_RESULT, (records.stopped(request, error).text(), _OPEN, request.number)))
            self.owed[request.number] = request.request_id

    def resume(self, number: int) -> None:
        """The engine goes on with a request of the journal."""
        self.owed.pop(number, None)
        self._live[number] = self._step

    def deliver(self, numbers: Iterable[int]) -> None:
        """Finished requests were handed to their callers. Others are not touched."""
        before = self._delivered
        for number in numbers:
            self._pending.append(
                ("UPDATE requests SET state = ? WHERE number = ? AND state = ?", (_DELIVERED, number, _FINISHED))
            )
            self._delivered += 1
        if self._delivered // KEPT > before // KEPT:
            self._pending.append(
                (
                    "DELETE FROM requests WHERE state = ? AND number <= (SELECT number FROM requests WHERE state = ? "
                    "ORDER BY number DESC LIMIT 1 OFFSET ?)",
                    (_DELIVERED, _DELIVERED, KEPT),
                )
            )
            oldest = min(self._live.values(), default=self._step)
            self._pending.append(("DELETE FROM steps WHERE step < ?", (oldest,)))
        self.commit()
        if not self._live and self._step - self._checked > _CHECKPOINT // 4:
            self._checkpoint()

    def commit(self) -> None:
        """Writes what came up since the last time: one write a step.

        Where that fails, running requests go on, a RuntimeWarning says so once, `fault` has the reason, and what could
        not be written stays in memory and is tried again with the next step; meanwhile no request is accepted.
        """
        if self._tokens:
            logprobs = json.dumps(self._logprobs) if self._logprobs else None
            self._pending.append((_STEP, (self._step, self._tokens.tobytes(), logprobs)))
            self._step += 1
            self._tokens, self._logprobs = array("q"), []
        if not self._pending:
            return
        if self._connection is None:  # another process's, or closed with nothing left running
            self._pending.clear()
            return
        try:
            self._write(self._pending)
        except sqlite3.Error as error:
            reason = self._explain(error)
            if self.fault is None:
                warnings.warn(
                    f"the journal cannot be written: {reason}. Running requests go on, their tokens are kept in memory "
                    "and written once that is possible; new requests are refused until then",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self.fault = reason
        else:
            self._pending.clear()
            self.fault = None

    # --- what is read back ---

    def entries(self) -> Iterator[records.Entry]:
        """The requests that nobody in this process waits for, in order of arrival, with what there is of them."""
        for number in sorted(self.owed):
            yield self.entry(number)

    def entry(self, number: int) -> records.Entry:
        """One of them. Raises JournalError when its text makes no request."""
        self.commit()
        if self._connection is None:
            raise JournalError(f"the journal {self.path} is closed")
        try:
            row = self._connection.execute(
                "SELECT request, result FROM requests WHERE number = ?", (number,)
            ).fetchone()
        except sqlite3.Error as error:
            raise JournalError(self._explain(error)) from None
        return records.read_entry(self.path, number, *row)

    def number_of(self, request_id: str) -> int:
        """Raises JournalError for a name that is not among the entries."""
        for number, name in self.owed.items():
            if name == request_id:
                return number
        names = ", ".join(self.owed.values()) or "no unfinished request"
        raise JournalError(f"the journal {self.path} has no unfinished request named {request_id!r}; it has {names}")

    def forget(self, request_id: str) -> None:
        """Gives up on one of the entries: it stays in the file for a while, and is not gone on with."""
        number = self.number_of(request_id)
        del self.owed[number]
        self._pending.append(("UPDATE requests SET state = ? WHERE number = ?", (_DELIVERED, number)))
        self.commit()

    def close(self) -> None:
        """Writes what is left, and lets others open the file."""
        if self._connection is not None:
            self.commit()
            if self._pending:
                warnings.warn(
                    f"the journal {self.path} is closed without what came last, which it does not take: {self.fault}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    # --- the file ---

    def _open(self, cursor: sqlite3.Cursor, artifact: str, name: str) -> None:
        """Takes the file for this process alone, and makes the tables of a new one."""
        cursor.execute("PRAGMA locking_mode = EXCLUSIVE")
        ((application,), (layout,), (tables,)) = (
            cursor.execute(question).fetchone()
            for question in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        if tables and application != APPLICATION:
            raise JournalError(f"{self.path} is a database of something else, no journal of echoc: name another file")
        if tables and layout != LAYOUT:
            raise JournalError(
                f"{self.path} is a journal of layout {layout}, this echoc reads {LAYOUT}: recover it with the echoc "
                "that wrote it"
            )
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT}")
        if not tables:
            marks = f"PRAGMA user_version = {LAYOUT}; PRAGMA application_id = {APPLICATION};"
            cursor.executescript(f"BEGIN EXCLUSIVE; {_TABLES} {marks} COMMIT;")
        (state,) = cursor.execute("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise JournalError(f"the journal {self.path}: {_REASONS[sqlite3.SQLITE_CORRUPT]} ({state})")
        about = dict(cursor.execute("SELECT key, value FROM about"))
        if about.setdefault("artifact", artifact) != artifact:
            raise JournalError(
                f"the journal {self.path} is of requests to {about.get('name')} (manifest {about['artifact'][:12]}), "
                f"this is {name} (manifest {artifact[:12]}): recover it with its own artifact, or name another file"
            )
        cursor.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", [("artifact", artifact), ("name", name)])

    def _fold(self, cursor: sqlite3.Cursor) -> None:
        """Puts the steps that a process left behind to the requests they are of."""
        rows = cursor.execute("SELECT number, result FROM requests WHERE state = ?", (_OPEN,))
        results: dict[int, records.Result] = {
            number: records.read_result(self.path, number, text) for number, text in rows
        }
        for step, blob, text in cursor.execute("SELECT step, tokens, logprobs FROM steps ORDER BY step"):
            try:
                words = array("q", blob)
                for output, token in zip(words[0::2], words[1::2], strict=True):
                    if output >> 12 in results:
                        results[output >> 12].put(output & 0xFFF, token >> 32, token & 0xFFFFFFFF)
                for number, index, position, entry in json.loads(text or "[]"):
                    if number in results:
                        results[number].put_logprobs(index, position, entry)
            except (ValueError, TypeError, IndexError) as error:
                raise JournalError(f"the journal {self.path}: step {step} makes no sense ({error})") from None
        folded = [(result.text(), _OPEN, number) for number, result in results.items()]
        cursor.execute("BEGIN IMMEDIATE")
        cursor.executemany(_RESULT, folded)
        cursor.execute("DELETE FROM steps")
        cursor.execute("COMMIT")

    def _name(self, number: int, text: str) -> str:
        return records.read_entry(self.path, number, text, None).request_id

    def _write(self, statements: list[tuple[str, tuple[Any, ...]]]) -> None:
        """All of them or none."""
        assert self._connection is not None
        if len(statements) == 1:
            self._connection.execute(*statements[0])
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for statement in statements:
                self._connection.execute(*statement)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _checkpoint(self) -> None:
        """Moves the log into the tables while nobody waits for it. Where that fails, the log holds all of it."""
        self._checked = self._step
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _explain(self, error: sqlite3.Error) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return f"the journal {self.path}: {_REASONS[code]} ({error})" if code in _REASONS else f"{self.path}: {error}"

    def _disown(self) -> None:
        """In a forked child the file is the parent's: to close the connection here would fold up what it writes to."""
        if self._connection is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
        self._connection = None


def _leave_to_parent() -> None:
    for journal in list(_opened):
        journal._disown()


os.register_at_fork(after_in_child=_leave_to_parent)
