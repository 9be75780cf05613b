"""The ledger of a search: which points were asked for and what they came to, in Optuna's journal on disk.

One process writes it, and holds it alone. The journal is a text file of JSON lines, each flushed to the disk, so a kill
loses at most the line that was being written; a torn last line is cut off at the next start.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import TrialState

from flows.trials.space import Point, Space, is_ordered
from tasks.engine import disk

DRAWS = 20
"""How often in a row the sampler may name a point that was tried, before one that was not is taken by chance."""
STARTUP = 10
"""Points that are drawn by chance before the sampler learns from them; as many make a generation of NSGA-II."""
RECORD, RUN_ID, NUMBER, POINT, TESTED = "record", "run_id", "number", "point", "tested"


class SamplerName(StrEnum):
    TPE = "tpe"
    NSGA2 = "nsga2"


class _HeldAnyway(BaseJournalFileLock):
    """Optuna's own locks are files that a killed process leaves behind; ``opened`` has one that it does not."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _mend(journal: Path) -> None:
    """Cuts off a last line that was not written to its end."""
    if journal.is_file():
        content = journal.read_bytes()
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


class Asked:
    """A point that is being tried."""

    def __init__(self, ledger: Ledger, trial: optuna.Trial, point: Point) -> None:
        self._ledger, self._trial, self.point = ledger, trial, point

    @property
    def number(self) -> int:
        """Counts the points that are tried, from 1."""
        return int(self._trial.user_attrs[NUMBER])

    @property
    def run_id(self) -> str:
        """What ``belongs_to`` was told, before this process or in it; empty if it never was."""
        return str(self._trial.user_attrs.get(RUN_ID, ""))

    def belongs_to(self, run_id: str) -> None:
        """Keeps the MLflow run of the trial, which goes on if the trial is interrupted."""
        self._trial.set_user_attr(RUN_ID, run_id)

    def finished(self, record: dict[str, Any], objectives: Sequence[float], excess: dict[str, float]) -> None:
        """Notes what a point that was tried to the end came to.

        Args:
            objectives: what is to be small.
            excess: how far each measure is beyond its limit, by its name.
        """
        for name, value in excess.items():
            if value > -float("inf"):
                self._trial.set_constraint(name, value)
        self._close(record, TrialState.COMPLETE, list(objectives))

    def given_up(self, record: dict[str, Any], excess: float = 0.0) -> None:
        """Notes that a point was not tried to the end, because it is hopeless."""
        self._trial.set_constraint("prospects", max(excess, 1e-3))
        self._close(record, TrialState.PRUNED, None)

    def failed(self, record: dict[str, Any]) -> None:
        """Notes that a point cannot be had."""
        self._close(record, TrialState.FAIL, None)

    def _close(self, record: dict[str, Any], state: TrialState, values: list[float] | None) -> None:
        self._trial.set_user_attr(RECORD, record)
        self._ledger.study.tell(self._trial, values, state=state)


class Ledger:
    """Asks for points, one after the other, each once."""

    def __init__(self, path: Path, space: Space, *, sampler: SamplerName, seed: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend(path)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(path), _HeldAnyway()))
        self.space, self._kind, self._seed = space, sampler, seed
        self.study = optuna.create_study(
            storage=storage, study_name="search", directions=["minimize", "minimize"], load_if_exists=True
        )

    def records(self) -> list[dict[str, Any]]:
        """What the points that were tried came to, in the order in which they were asked for."""
        return [trial.user_attrs[RECORD] for trial in self._trials() if RECORD in trial.user_attrs]

    def interrupted(self) -> Iterator[Asked]:
        """The points that were being tried when the process before this one ended, with the same values."""
        for trial in self._trials():
            if trial.state is TrialState.RUNNING:
                again = optuna.Trial(self.study, trial._trial_id)
                point = self._suggested(again)
                if NUMBER not in again.user_attrs and not self._enter(again, point):
                    continue
                yield Asked(self, again, point)

    def ask(self, first: Point | None = None) -> Asked | None:
        """Returns a point that was not asked for before, or ``None`` where there is none left.

        Args:
            first: the point to take if it was not yet.
        """
        if first is not None and self._key(first) not in self._taken():
            return self._take(first)
        for _ in range(DRAWS):
            if asked := self._draw():
                return asked
        taken = self._taken()
        untried = [point for point in self.space.points() if self._key(point) not in taken]
        return self._take(random.Random(self._next_seed()).choice(untried)) if untried else None

    def _draw(self) -> Asked | None:
        """Has the sampler choose a point; ``None`` if that was asked for before."""
        self.study.sampler = self._sampler(self._next_seed())
        trial = self.study.ask()
        point = self._suggested(trial)
        return Asked(self, trial, point) if self._enter(trial, point) else None

    def _next_seed(self) -> int:
        """Grows with the journal: a sampler that goes on after a kill must not draw what it drew at the beginning."""
        return self._seed * 100_003 + len(self._trials())

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        if self._kind is SamplerName.NSGA2:
            return optuna.samplers.NSGAIISampler(population_size=STARTUP, seed=seed)
        return optuna.samplers.TPESampler(n_startup_trials=STARTUP, constant_liar=True, seed=seed)

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _suggested(self, trial: optuna.Trial) -> Point:
        """Has the sampler choose a step of each dimension; what was chosen for this trial before stays."""
        point: Point = {}
        for path, values in self.space.values.items():
            if is_ordered(values):
                point[path] = values[trial.suggest_int(path, 0, len(values) - 1)]
            else:
                point[path] = values[int(trial.suggest_categorical(path, [str(i) for i in range(len(values))]))]
        return point

    def _encoded(self, point: Point) -> dict[str, Any]:
        steps = {path: self.space.values[path].index(value) for path, value in point.items()}
        return {path: at if is_ordered(self.space.values[path]) else str(at) for path, at in steps.items()}

    def _key(self, point: Point) -> str:
        return json.dumps(point, sort_keys=True)

    def _taken(self) -> dict[str, int]:
        """Number of each point that was asked for."""
        return {
            trial.user_attrs[POINT]: trial.user_attrs[NUMBER] for trial in self._trials() if NUMBER in trial.user_attrs
        }

    def _enter(self, trial: optuna.Trial, point: Point) -> bool:
        """Gives a new point its number; closes a trial whose point was asked for before."""
        taken = self._taken()
        if self._key(point) in taken:
            trial.set_user_attr("same_as", taken[self._key(point)])
            self.study.tell(trial, state=TrialState.FAIL)
            return False
        trial.set_user_attr(POINT, self._key(point))
        trial.set_user_attr(NUMBER, len(taken) + 1)
        return True

    def _take(self, point: Point) -> Asked:
        """Asks for a certain point; one that was queued before a kill may come first."""
        self.study.enqueue_trial(self._encoded(point))
        while not (asked := self._draw()):
            continue
        return asked

    def tested(self, numbers: Sequence[int] = ()) -> list[int]:
        """Notes which points the test split is about to see; returns all that it was ever shown."""
        known = sorted({*self.study.user_attrs.get(TESTED, []), *numbers})
        self.study.set_user_attr(TESTED, known)
        return known


@contextlib.contextmanager
def opened(path: Path, space: Space, *, sampler: SamplerName, seed: int) -> Iterator[Ledger]:
    """Holds a ledger alone; waits for another search that has it."""
    with disk.lock(f"search-{path.stem}"):
        yield Ledger(path, space, sampler=sampler, seed=seed)
