"""Recovery as trials of Ray Tune: all candidates at once, the hopeless ones given up, nothing lost.

A trial is one candidate, at one learning rate. Its training is two cycles of `search.recover`: a short one,
by whose end ASHA (Li et al. 2020) compares the trials, and a long one, in which it goes on comparing. Every
comparison on validation data is a checkpoint, safetensors and JSON, from which a trial goes on when its
worker dies or when the whole search is killed and resumed.

Ray pickles what it knows of the trials for itself. That lies in a folder which is this user's alone
(`search.private`), never in the run's, since restoring it unpickles it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray import tune

from compressors.network import Network
from compressors.policy import ResolvedPolicy
from compressors.resolve import Numerics

from .cluster import connect, disconnect
from .errors import InputError
from .private import claimed
from .recover import Recovered, Recovery
from .recovering import State
from .shares import Share, share_of
from .task import Task, TaskSpec
from .travel import Packed, own_modules, pack, unpack
from .tune_files import storage

#: Shares of a trial's time: a short cycle, to be compared by, and a long one.
CYCLES = (0.25, 0.75)
#: Factors of the learning rate that are tried of each candidate, as far as there are CPUs.
RATES = (1.0, 1 / 3, 3.0)
#: How gently ASHA gives up: each rung is so much later than the one before, and drops the lowest 1 - 1/x.
REDUCTION = 1.4
#: How often a trial is begun again from its checkpoint before what it has must do.
RETRIES = 2
#: Seconds that all may take beyond twice their training: workers have to start, and to be free.
STARTING = 180.0
#: Checkpoints of a trial that are kept: should the last one be cut short, there is the one before.
KEPT = 2
NAME = "trials"
_LOGGERS = ("ray.tune", "ray.train", "ray.air")
#: No files of results, no handler of Ctrl-C (there is our own), the state on disk as soon as it changes.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "0.5",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Plan:
    """What is recovered and how; plain values, by whose `key` a resumed search knows its own trials again.

    ``seconds``: of training each. ``halving``: give up what falls behind; else all go to their end.
    """

    policies: tuple[ResolvedPolicy, ...]
    seconds: float
    seed: int = 0
    rates: int = 1
    halving: bool = True

    @property
    def trials(self) -> list[dict[str, Any]]:
        """Candidate (its position) and learning rate of each trial."""
        chosen = range(len(self.policies))
        return [{"candidate": i, "rate": rate} for rate in RATES[: self.rates] for i in chosen]

    @property
    def key(self) -> str:
        """The same for the same trials under the same version of Ray, whose state others cannot read."""
        import ray

        digests = [p.digest for p in self.policies]
        words = [digests, self.seconds, self.seed, self.rates, self.halving, CYCLES, RATES, ray.__version__]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Work:
    """What every trial needs: task, network and numerics, packed, and the plan."""

    packed: Packed
    spec: TaskSpec | None
    plan: Plan
    share: Share
    most_threads: int


class TrialsEnd(Exception):
    """The trials are left as they are."""


def recover_all(
    task: Task,
    network: Network,
    numerics: Numerics,
    plan: Plan,
    place: Path,
    *,
    workers: int,
    address: str | None = None,
    again: bool = False,
    stop: threading.Event | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Recovered | None]:
    """The best of each of the plan's policies; None for one whose trials never began.

    Trains about ``plan.seconds``, all at once in ``workers`` CPUs of the cluster at ``address`` (None: of
    this machine), and on its GPUs where it has some. ``place``: where the trials are kept
    (`private.place_of`); with ``again`` those that are there go on, and what is finished is not done again.
    With ``stop`` set, or when the cluster fails, what is there by then is returned. Raises InputError where
    others may write to ``place``, ClusterError where there is no cluster.
    """
    resumed = claimed(place, again)
    network.covariances()
    parts = (_travelling(task), replace(network), numerics)
    packed = pack(parts, own_modules(task.spec))
    ray = connect(address, cpus=workers)
    try:
        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        share = share_of(nodes, len(plan.trials), workers)
        most = (os.cpu_count() or 1) if address is None else max(1, int(share.cpus))
        work = Work(packed, task.spec, plan, share, most)
        watch = Watch(plan, stop, tell, time.monotonic() + 2 * plan.seconds + STARTING)
        _fit(work, place, task.metric.higher_is_better, watch, resumed)
    finally:
        disconnect()
    return [_best_of(task, network, numerics, plan, i, place) for i in range(len(plan.policies))]


def _travelling(task: Task) -> Task:
    """What training needs of a task."""
    from torch import nn

    return replace(task, network=nn.Identity(), test=None, spec=None)


# -- in a worker


def recovery_trial(config: dict[str, Any], work: Work) -> None:
    """One trial, begun or gone on with."""
    trial = config["trial"]
    task, network, numerics = _unpacked(work)
    policy = work.plan.policies[trial["candidate"]]
    earlier = tune.get_checkpoint()
    state = None
    if earlier is not None:
        with earlier.as_directory() as folder:
            state = State.read(Path(folder), network, policy, numerics)
    began = 0 if state is None else state.steps
    one = Recovery(
        task, network, policy, numerics, work.plan.seconds, seed=work.plan.seed, shares=CYCLES,
        rate=trial["rate"], device=_device(work.share), most_threads=work.most_threads, state=state,
    )  # fmt: skip
    while True:
        with tempfile.TemporaryDirectory() as folder:
            one.left().write(Path(folder), policy)
            tune.report(_metrics(one, began), checkpoint=tune.Checkpoint.from_directory(folder))
        if one.over:
            return
        one.advance()


def _unpacked(work: Work) -> tuple[Task, Network, Numerics]:
    import scipy.linalg  # noqa: F401  its library can be limited once it is loaded
    import torch
    from threadpoolctl import threadpool_limits

    from .memory import keep_freed_memory

    keep_freed_memory()
    own_modules(work.spec)  # the task's file may add methods
    torch.set_num_threads(1)  # accuracies are computed with one; steps take as many as are fastest
    threadpool_limits(1, "blas")
    task, network, numerics = unpack(work.packed)
    return task, network, numerics


def _device(share: Share) -> Any:
    import torch

    return torch.device("cuda" if share.gpus and torch.cuda.is_available() else "cpu")


def _metrics(one: Recovery, began: int) -> dict[str, float]:
    """``progress`` in percent; ``value``: the best so far; ``began``: steps that other processes had done."""
    return {
        "progress": round(100.0 * one.progress, 3),
        "value": one.state.best.value,
        "steps": one.state.steps,
        "began": began,
    }


# -- in the driver


@dataclass
class Watch:
    """Hears of the trials, tells of what matters, and ends them all where that is asked for or time is up."""

    plan: Plan
    stop: threading.Event | None
    tell: Callable[[str], None]
    deadline: float
    started: set[str] = field(default_factory=set)

    def looked(self) -> None:
        """Called several times a second. Raises TrialsEnd."""
        if self.stop is not None and self.stop.is_set():
            raise TrialsEnd("stopped")
        if time.monotonic() > self.deadline:
            raise TrialsEnd("it took too long: workers did not start, or had to share their CPUs")

    def lost(self, trial: Any) -> None:
        """A trial's worker died, or the trial failed; it is begun again."""
        done = (trial.last_result or {}).get("progress", 0.0)
        self.tell(f"a worker died; trial {self._number(trial)} goes on from {done:.0f} %")

    def failed(self, trial: Any) -> None:
        """A trial is not begun again."""
        self.tell(f"trial {self._number(trial)} failed {RETRIES + 1} times; what it had by then counts")

    def ended(self, trial: Any) -> None:
        """A trial is finished, or given up."""
        last = trial.last_result or {}
        done = last.get("progress", 100.0)
        if done < 100.0:
            self.tell(f"trial {self._number(trial)} is behind the others and ends at {done:.0f} %")

    def _number(self, trial: Any) -> str:
        return f"{self.plan.trials.index(trial.config['trial']) + 1}/{len(self.plan.trials)}"


#: The watch of the trials under way: Ray pickles its callbacks, and one that was restored must find it too.
_watching: list[Watch] = []


class Listener(tune.Callback):
    """Passes on to the watch what Ray Tune says."""

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for watch in _watching[-1:]:
            watch.looked()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for watch in _watching[-1:]:
            watch.started.add(trial.trial_id)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for watch in _watching[-1:]:
            watch.lost(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for watch in _watching[-1:]:
            watch.failed(trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for watch in _watching[-1:]:
            watch.ended(trial)


def folder_of_trial(trial: Any) -> str:
    """The name of a trial's folder."""
    return _folder_name(trial.config["trial"])


def _folder_name(trial: dict[str, Any]) -> str:
    return f"{trial['candidate']}-{RATES.index(trial['rate'])}"


def _fit(work: Work, place: Path, higher: bool, watch: Watch, resumed: bool) -> None:
    """Run all trials, or go on with them."""
    trainable = tune.with_parameters(recovery_trial, work=work)
    trainable = tune.with_resources(trainable, {"cpu": work.share.cpus, "gpu": work.share.gpus})
    with _quiet(), storage(place) as files:
        tuner = _restored(trainable, place, files, watch) if resumed else None
        if tuner is None:
            tuner = _fresh(trainable, work.plan, place, files, higher)
        _watching.append(watch)
        try:
            tuner.fit()
        except TrialsEnd as end:
            if watch.stop is None or not watch.stop.is_set():
                watch.tell(f"the trials are ended: {end}")
        except Exception as problem:  # whatever becomes of the cluster, there are the checkpoints
            watch.tell(f"the trials came to a bad end, what they had counts: {_line(problem)}")
        finally:
            _watching.remove(watch)
    finished = len(work.plan.trials) - len(watch.started)
    if resumed and finished:
        watch.tell(f"{finished} of {len(work.plan.trials)} trials had ended before")


def _fresh(trainable: Any, plan: Plan, place: Path, files: Any, higher: bool) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    halving = ASHAScheduler(
        time_attr="progress", max_t=100, grace_period=round(100 * CYCLES[0]), reduction_factor=REDUCTION
    )
    return tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(plan.trials)},
        tune_config=tune.TuneConfig(
            metric="value",
            mode="max" if higher else "min",
            scheduler=halving if plan.halving else FIFOScheduler(),
            trial_dirname_creator=folder_of_trial,
        ),
        run_config=tune.RunConfig(
            name=NAME,
            storage_path=str(place),
            storage_filesystem=files,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=KEPT),
            callbacks=[Listener()],
            verbose=0,
        ),
    )


def _restored(trainable: Any, place: Path, files: Any, watch: Watch) -> Any:
    """The trials that were under way; None where their state cannot be read."""
    try:
        return tune.Tuner.restore(str(place / NAME), trainable, resume_errored=True, storage_filesystem=files)
    except Exception as problem:  # it was killed before there was any, or while it was written
        watch.tell(f"the trials begin anew: {_line(problem)}")
        claimed(place, again=False)
        return None


def _best_of(
    task: Task, network: Network, numerics: Numerics, plan: Plan, candidate: int, place: Path
) -> Recovered | None:
    """The best of a candidate's trials, from their last whole checkpoints."""
    found = []
    for trial in plan.trials:
        if trial["candidate"] == candidate:
            state = _latest(place / NAME / _folder_name(trial), network, plan.policies[candidate], numerics)
            found += [] if state is None else [state]
    if not found:
        return None
    sign = 1.0 if task.metric.higher_is_better else -1.0
    best = max(found, key=lambda s: sign * s.best.value)
    return Recovered(
        best.best.compressed, best.floats, best.before, best.best.value, best.steps, best.earlier
    )


def _latest(folder: Path, network: Network, policy: ResolvedPolicy, numerics: Numerics) -> State | None:
    for path in sorted(folder.glob("checkpoint_*"), reverse=True):
        with contextlib.suppress(InputError):  # it was cut short; the one before is there
            return State.read(path, network, policy, numerics)
    return None


def _line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[-1][:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray Tune without its notices, its files of results and its handlers of signals."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGUSR1) if main else None
    os.environ.update(_ENVIRONMENT)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if main:
            signal.signal(signal.SIGUSR1, handler)


__all__ = ["CYCLES", "Plan", "recover_all"]
