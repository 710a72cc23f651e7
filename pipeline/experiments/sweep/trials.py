"""A sweep's study in a shared Optuna storage. Its plan is a list of pairs; each trial claims one that nobody else has.

Optuna's own queues can't promise that: GridSampler gives one pair to several workers, SQLite one enqueued trial to two,
and a trial that is killed before its first heartbeat, or before RetryHeartbeatStaleTrialCallback has queued it again,
is lost. So each worker asks for a trial of its own and claims a pair with it; heartbeats and pruning are Optuna's.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import UsageError

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

EXPECTED = "expected an existing database, such as sqlite:///x.db or postgresql+psycopg://user@host/name"
DRIVERS = "install its driver: pip install 'psycopg[binary]' for postgresql+psycopg://, pymysql for mysql+pymysql://"
BEATS = 6  # heartbeats of a worker within the time after which it counts as dead
TRIES = 3  # of a pair whose training raises an error, before it is given up; as many again when the sweep is restarted


@dataclass(frozen=True)
class Storage:
    """An Optuna storage URL, the sweep's name in it, and the seconds without a heartbeat after which a worker is dead.

    The database's clock counts these seconds, so the machines' clocks may differ.
    """

    url: str
    name: str
    grace: int = 60

    def __str__(self) -> str:
        """The URL without user, password and query, which may hold a password, too."""
        kind, _, rest = self.url.partition("://")
        return f"{kind}://{rest.partition('?')[0].rpartition('@')[2]}" if rest else self.url

    def line(self, error: Exception) -> str:
        """An error's text on one line, without the storage's password."""
        text = (str(error) or type(error).__name__).partition("[SQL:")[0].partition("(Background on this error")[0]
        return " ".join(text.replace(self.url, str(self)).split())[:200]

    def open(self, attempts: int = 3) -> optuna.storages.RDBStorage:
        """Connect, and create the tables if need be. Raises UsageError if that fails."""
        import optuna
        import sqlalchemy.exc

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # Optuna calls heartbeats so
        if self.url in ("sqlite://", "sqlite:///") or ":memory:" in self.url:
            raise UsageError(f"--storage {self}: an in-memory database cannot be shared by workers; {EXPECTED}")
        engine = {"connect_args": {"timeout": 60}} if self.url.startswith("sqlite") else {}  # seconds, for its lock
        beat = max(1, self.grace // BEATS)
        try:
            return optuna.storages.RDBStorage(self.url, engine, heartbeat_interval=beat, grace_period=self.grace)
        except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
            if attempts > 1 and ("already exists" in str(error) or isinstance(error, sqlalchemy.exc.IntegrityError)):
                time.sleep(1)  # another sweep is creating the tables
                return self.open(attempts - 1)
            hint = DRIVERS if isinstance(error, ImportError) else EXPECTED
            raise UsageError(f"--storage {self}: cannot be used: {self.line(error)}; {hint}") from error


def load(storage: Storage, facts: dict[str, Any]) -> optuna.Study:
    """Load the sweep's study, or create it. TPE draws the numbers that the plan leaves open."""
    import optuna

    shared = facts["recipe"]
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if facts["prune"]:  # once gamma has acted for an epoch: until then, trials of one learning rate are the same
        steps = shared["schedule"] == "step" and shared["step_size"] < shared["epochs"]
        pruner = optuna.pruners.MedianPruner(n_warmup_steps=shared["step_size"] + 1 if steps else 2)
    return optuna.create_study(
        storage=storage.open(),
        study_name=storage.name,
        sampler=optuna.samplers.TPESampler(),  # unseeded, or it would begin with the same draws on every machine
        pruner=pruner,
        direction="maximize",
        load_if_exists=True,
    )


def begin(storage: Storage, facts: dict[str, Any]) -> optuna.Study:
    """Record a start of the sweep. Raises UsageError if the study is another program's or another sweep's."""
    import optuna

    study = load(storage, facts)
    start = optuna.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs={"facts": facts})
    if not study.get_trials(deepcopy=False):
        study.add_trial(start)
    begun = study.get_trials(deepcopy=False)[0].user_attrs.get("facts")  # another's, if both began at once
    if begun is None:
        raise UsageError(f"{storage}: {storage.name!r} is another program's study; give this sweep another --name")
    for name, value in facts.items():
        if begun.get(name) != value:
            raise UsageError(
                f"{storage}: sweep {storage.name!r} was begun with {name} {begun.get(name)}: expected that, received "
                f"{value}; give this sweep the same, or another --name"
            )
    study.add_trial(start)
    return study


class Progress(NamedTuple):
    """The pairs of a plan by number: trials that ended, the last errors of pairs given up, and unclaimed pairs."""

    ended: dict[int, FrozenTrial]
    given_up: dict[int, FrozenTrial]
    missing: dict[int, dict[str, float]]
    start: int  # the trial that recorded the last start of the sweep


def progress(study: optuna.Study, plan: list[dict[str, float]]) -> Progress:
    """Look up what has become of each pair of the plan."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    now = Progress({}, {}, {}, max(trial.number for trial in trials if "facts" in trial.user_attrs))
    for number, pair in enumerate(plan):
        tries = [trial for trial in trials if trial.user_attrs.get("plan") == number]
        errors = [trial for trial in tries if "error" in trial.user_attrs and trial.number > now.start]
        if ended := [trial for trial in tries if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]:
            now.ended[number] = ended[0]
        elif len(errors) >= TRIES:  # a worker that was killed leaves none
            now.given_up[number] = errors[-1]
        elif all(trial.state == TrialState.FAIL for trial in tries):
            drawn = [trial.params for trial in tries if trial.params]  # TPE would draw others
            now.missing[number] = {**pair, **(drawn[-1] if drawn else {})}
    return now


def claim(study: optuna.Study, plan: list[dict[str, float]], trial: optuna.Trial) -> dict[str, float] | None:
    """Claim a missing pair for a new trial, and return its numbers; None if another trial claims the same.

    Each trial records its claim before it looks for others, so that at most one goes on.
    """
    from optuna.trial import TrialState

    now = progress(study, plan)
    if not now.missing:
        return None
    study._storage.record_heartbeat(trial._trial_id)  # before the claim: a trial without any never counts as dead
    turn = trial.number - now.start - 1
    number = turn if turn in now.missing else list(now.missing)[trial.number % len(now.missing)]
    trial.set_user_attr("plan", number)
    claims = [other for other in study.get_trials(deepcopy=False) if other.user_attrs.get("plan") == number]
    alone = all(other.state == TrialState.FAIL or other.number == trial.number for other in claims)
    return now.missing[number] if alone else None
