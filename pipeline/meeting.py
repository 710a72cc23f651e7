"""Where a sweep's workers meet in, the Optuna storage there out, and whatever it fails with as one line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, UsageError

if TYPE_CHECKING:
    import optuna

EXPECTED = "a database that is there, such as sqlite:///x.db or postgresql://user@host/name"
DRIVERS = "its driver: pip install psycopg2-binary for PostgreSQL, pymysql for MySQL (mysql+pymysql://)"
ATTEMPTS = 3  # at a storage whose tables are just being made


@dataclass(frozen=True)
class Meeting:
    """Where workers meet: an Optuna storage URL, the sweep's name in it, and the seconds of silence after which one of
    them counts as dead."""

    url: str
    name: str
    grace: int = 60

    def __str__(self) -> str:
        """The storage for people: no user, password or query, which is where passwords may stand."""
        kind, _, rest = self.url.partition("://")
        return f"{kind}://{rest.partition('?')[0].rpartition('@')[2]}" if rest else self.url


def storage(meeting: Meeting) -> optuna.storages.RDBStorage:
    """The storage, opened. UsageError if that can't be done."""
    import optuna
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if meeting.url in ("sqlite://", "sqlite:///") or ":memory:" in meeting.url:
        raise UsageError(
            f"--storage {meeting}: is in one process's memory, where workers can't meet: expected {EXPECTED}"
        )
    wait_for_lock = {"connect_args": {"timeout": 60}} if meeting.url.startswith("sqlite") else {}
    for attempt in range(ATTEMPTS):
        try:
            return optuna.storages.RDBStorage(meeting.url, engine_kwargs=wait_for_lock)
        except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
            raced = "already exists" in str(error) or isinstance(error, sqlalchemy.exc.IntegrityError)
            if raced and attempt + 1 < ATTEMPTS:  # two sweeps made one storage's tables at once
                time.sleep(1)
                continue
            hint = DRIVERS if isinstance(error, ImportError) else f"expected {EXPECTED}"
            raise UsageError(f"--storage {meeting}: cannot be used: {line(error, meeting)}; {hint}") from error


@contextmanager
def reported(meeting: Meeting) -> Iterator[None]:
    """Whatever a storage or its database fails with, as one line."""
    import optuna
    import sqlalchemy.exc

    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise PipelineError(f"{meeting}: the storage failed: {line(error, meeting)}") from error


def line(error: Exception, meeting: Meeting) -> str:
    """An error in one line, without the storage's password."""
    text = (str(error) or type(error).__name__).partition("[SQL:")[0].partition("(Background on this error")[0]
    return " ".join(text.replace(meeting.url, str(meeting)).split())[:200]
