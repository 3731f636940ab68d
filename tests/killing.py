"""A training run in a process of its own that tells what it is doing, so that it can be killed while it does it."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from mgpo.cli import main
from mgpo.training.trainer import MGPOTrainer

PHASES = {
    "rollout": "_generate_and_score_completions",
    "update": "training_step",
    "checkpoint": "_save_checkpoint",
    "evaluation": "evaluate",
}
SETTINGS = (
    "--per_device_train_batch_size 4 --num_generations 2 --learning_rate 2e-4 --lr_scheduler_type cosine --beta 0.0 "
    "--max_grounding_tokens 12 --max_answer_tokens 6 --max_reply_tokens 160 --no_gradient_checkpointing "
    "--extra_reward_funcs support.even_ids --use_cpu true --disable_tqdm true --seed 0 --freeze_vision_tower true "
    # A generation serves two updates, logs and checkpoints fall between each other's steps.
    "--max_steps 11 --steps_per_generation 2 --save_steps 3 --logging_steps 2 --trajectories_every 1 "
    "--eval_strategy steps --eval_steps 4 --per_device_eval_batch_size 4"
).split()
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["killing"])
# The server of Python 3.11 forgets where modules are, and each process would import everything anew.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
)


def command(model, data, folder, *more):
    """Arguments of `mgpo`."""
    where = ["--model_name_or_path", str(model), "--dataset_name", str(data), "--output_dir", str(folder)]
    return ["train", *where, *SETTINGS, *more]


@dataclass(frozen=True)
class Moment:
    """Where a run halts to be killed: at so many calls of functions into the `times`-th `phase`, or at that phase's end."""

    phase: str
    times: int
    calls: float


class _Watch:
    """Counts calls of functions, Python's and C's, and halts the process at one of them until it is killed.

    No clock is involved: the process says that it has halted, and only then is it killed, inside the phase.
    """

    def __init__(self, pipe, moment):
        self.pipe, self.moment, self.calls, self.times, self.halt_at = (
            pipe,
            moment,
            0,
            moment.times if moment else 0,
            None,
        )

    def __call__(self, frame, event, argument):
        if event in ("call", "c_call"):
            self.calls += 1
            if self.halt_at is not None and self.calls >= self.halt_at:
                self.halt()

    def begin(self, phase):
        """Whether this is the phase to halt in."""
        if self.moment is None or self.moment.phase != phase:
            return False
        self.times -= 1
        if self.times == 0:
            self.halt_at = self.calls + self.moment.calls
        return self.times == 0

    def halt(self):
        self.pipe.send(("halted", self.moment.phase))
        time.sleep(600)


def _live(pipe, model, data, folder, more, prepare, moment, counted):
    """The whole life of the process: a training run, phases of which are told through the pipe."""
    torch.set_num_threads(1)
    os.dup2(os.open(folder.with_suffix(".log"), os.O_CREAT | os.O_APPEND | os.O_WRONLY), 1)
    os.dup2(1, 2)
    if prepare is not None:
        prepare()
    watch = _Watch(pipe, moment)
    for phase, method in PHASES.items():
        setattr(MGPOTrainer, method, _told(getattr(MGPOTrainer, method), phase, pipe, watch))
    sys.argv = ["mgpo", *command(model, data, folder, *more)]
    if counted or moment is not None:
        sys.setprofile(watch)
    main()


def _told(method, phase, pipe, watch):
    def told(trainer, *args, **kwargs):
        pipe.send((phase, trainer.state.global_step))
        calls, last = watch.calls, watch.begin(phase)
        try:
            result = method(trainer, *args, **kwargs)
            if last:
                watch.halt()
            return result
        finally:
            pipe.send((None, (phase, watch.calls - calls)))

    return told


@contextmanager
def running(model, data, folder, *more, prepare=None, moment=None, counted=False):
    """A process that trains, and the pipe that it tells its phases through; killed at the end if it still lives."""
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=_live, args=(theirs, model, data, folder, more, prepare, moment, counted))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()


def kill_at(model, data, folder, moment):
    """Start the run and kill it at a moment of a phase. Whether it came there; else it ended before."""
    with running(model, data, folder, moment=moment) as (process, told):
        while (event := _next(told)) is not None:
            if event == ("halted", moment.phase):
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                return True
    return False


def _next(told):
    try:
        return told.recv()
    except (EOFError, OSError):
        return None


def terminated_at(model, data, folder, step):
    """Start the run and send it SIGTERM while it makes the step after this one; its exit status."""
    with running(model, data, folder) as (process, told):
        while (event := _next(told)) is not None:
            if event == ("update", step):
                os.kill(process.pid, signal.SIGTERM)
                step = None
        process.join()
        return process.exitcode


def files_no_larger_than_a_megabyte_after_the_first_checkpoint():
    """A disk that is full: the kernel refuses every write beyond the limit."""
    save = MGPOTrainer._save_checkpoint

    def limited(trainer, *args):
        if trainer.state.global_step > 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        return save(trainer, *args)

    MGPOTrainer._save_checkpoint = limited


def run_through(model, data, folder, *more, prepare=None, counted=False):
    """Start the run and let it end: its exit status, and the median calls of functions in each phase, if they are counted."""
    calls = {phase: [] for phase in PHASES}
    with running(model, data, folder, *more, prepare=prepare, counted=counted) as (process, told):
        while (event := _next(told)) is not None:
            if event[0] is None:
                phase, count = event[1]
                calls[phase].append(count)
        process.join()
        return process.exitcode, {phase: statistics.median(values or [0]) for phase, values in calls.items()}


def killed_often(model, data, folder, phase, kills, calls, seed):
    """A run that died so many times in a phase, each time at a random moment of it, and then was left to end."""
    rng, died = random.Random(seed), 0
    for _ in range(4 * kills):
        if kill_at(model, data, folder, Moment(phase, rng.randint(1, 2), rng.uniform(0, calls))):
            died += 1
        else:  # it ended first: a run that cannot be killed any more tells nothing
            shutil.rmtree(folder)
            died = 0
        if died == kills:
            break
    status, _ = run_through(model, data, folder)
    assert status == 0, log_of(folder)
    return died


def log_of(folder):
    """What the processes of a run printed."""
    return folder.with_suffix(".log").read_text()
