"""What a run prints, in a terminal and elsewhere; `screen` is what is left to see after all control codes."""

import io
import re
import time
from types import SimpleNamespace

import pytest
from rich.console import Console
from terminal_screen import screen
from transformers import TrainerControl, TrainerState

from mgpo.runs.display import ROWS, RunDisplay

ROW = {"reward": 0.5, "grounding/valid_share": 0.75, "grounding/hit_rate": 0.25, "turns/1_tokens": 20, "turns/2_tokens": 6,
       "frac_reward_zero_std": 0.0}  # fmt: skip


class Run:
    """Calls a display as `Trainer` does; every step takes ten seconds, an evaluation a hundred, a checkpoint thirty."""

    def __init__(self, live, steps=40, main=True, begun=0, **settings):
        self.now, self.file = 0.0, io.StringIO()
        console = Console(file=self.file, force_terminal=live, width=100, height=30, highlight=False)
        self.display = RunDisplay(console, live, clock=lambda: self.now)
        self.args = SimpleNamespace(
            **{"disable_tqdm": False, "log_completions": False, "output_dir": "runs/x"} | settings
        )
        self.state = TrainerState(max_steps=steps, global_step=begun, is_world_process_zero=main)
        self.control = TrainerControl()
        self.tell("train_begin")

    def tell(self, event, **kwargs):
        getattr(self.display, f"on_{event}")(self.args, self.state, self.control, **kwargs)

    def log(self, row):
        self.state.log_history.append(row | {"step": self.state.global_step})
        self.tell("log", logs=row)

    def step(self, log=True, row=ROW):
        self.tell("step_begin")
        self.now += 10
        self.state.global_step += 1
        self.tell("step_end")
        if log:
            self.log(row)

    def evaluate(self):
        self.tell("prediction_step")
        self.now += 100
        self.log({f"eval_{key}": value for key, value in ROW.items()} | {"eval_runtime": 100.0})
        self.tell("evaluate", metrics={})

    def save(self):
        self.now += 30
        self.tell("save")


def test_elsewhere_one_line_per_log(capsys):
    run = Run(live=False)
    run.step()
    run.evaluate()
    run.save()
    run.step()
    assert capsys.readouterr().out.splitlines() == [
        "step 1/40 | reward 0.50 | valid 0.75 | hit 0.25 | tokens per turn 20 + 6 | no signal 0.00 | 10 s/step | 6 min 30 s left",
        "step 1/40 | evaluation | reward 0.50 | valid 0.75 | hit 0.25 | tokens per turn 20 + 6 | 1 min 40 s",
        "step 1/40 | checkpoint: runs/x/checkpoint-1",
        "step 2/40 | reward 0.50 | valid 0.75 | hit 0.25 | tokens per turn 20 + 6 | no signal 0.00 | 10 s/step | 1 h 28 min left",
    ]  # the time left counts evaluations and checkpoints too, the time of a step does not
    assert not run.file.getvalue()


def test_a_log_of_several_steps_gives_the_time_of_one(capsys):
    run = Run(live=False)
    for number in range(1, 11):
        run.step(log=number % 5 == 0)
    assert capsys.readouterr().out.count("10 s/step") == 2


def test_the_time_left_is_that_of_the_last_steps_without_the_first_one(capsys):
    run = Run(live=False, begun=20)  # resumed
    run.now += 500  # the first step loads
    for _ in range(3):
        run.step()
    assert [line.rpartition("| ")[2] for line in capsys.readouterr().out.splitlines()][1:] == [
        "3 min 00 s left",
        "2 min 50 s left",
    ]


def test_the_table_shows_the_last_steps_and_a_line_per_checkpoint_and_evaluation():
    run = Run(live=True)
    for number in range(1, 31):
        run.step()
        if number % 10 == 0:
            run.save()
    run.evaluate()
    run.state.max_steps = run.state.global_step
    run.tell("train_end")
    shown = [line for line in screen(run.file.getvalue()) if line]
    assert [line for line in shown if "checkpoint:" in line] == [
        f"step {n}/40 | checkpoint: runs/x/checkpoint-{n}" for n in (10, 20, 30)
    ]
    assert sum("evaluation |" in line for line in shown) == 1
    rows = [line.split() for line in shown if re.match(r" +\d+ +0.50", line)]
    assert [int(row[0]) for row in rows] == list(range(31 - ROWS, 31)) and rows[-1][-1] == "10.0"
    assert sum("reward" in line and "valid" in line and "step" in line and "|" not in line for line in shown) == 1, (
        shown
    )
    assert shown[-1].endswith("30 of 40 steps") or "30 of 40 steps" in shown[-1]


def test_what_others_print_stands_above_the_table():
    run = Run(live=True)
    run.step()
    print("Step 2: skipped: the loss is not finite.")
    run.step()
    run.tell("train_end")
    shown = [line for line in screen(run.file.getvalue()) if line]
    assert shown[0] == "Step 2: skipped: the loss is not finite."


def test_a_narrow_low_terminal_is_not_overrun():
    run = Run(live=True)
    run.display.console.width, run.display.console.height = 60, 12
    for _ in range(9):
        run.step()
    run.tell("train_end")
    assert max(map(len, screen(run.file.getvalue()))) <= 60


def test_only_the_main_process_prints(capsys):
    for live in (True, False):
        run = Run(live=live, main=False)
        run.step()
        run.save()
        run.evaluate()
        run.tell("train_end")
        assert not capsys.readouterr().out and not run.file.getvalue()


@pytest.mark.parametrize("settings", [{"disable_tqdm": True}, {"log_completions": True}])
def test_lines_where_a_table_is_not_wanted_or_would_be_torn(capsys, monkeypatch, settings):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for chosen, lines in ((settings, 1), ({}, 0)):
        run = Run(live=None, **chosen)
        run.display.console = Console(file=run.file, force_terminal=True)
        run.tell("train_begin")
        run.step()
        run.display.close()
        assert len(capsys.readouterr().out.splitlines()) == lines


def test_a_notice_of_a_signal_handler_is_below_the_table_and_else_written_at_once(capfd):
    run = Run(live=True)
    run.step()
    run.display.notice("SIGTERM: stops.")
    run.step()
    run.display.close()
    assert screen(run.file.getvalue()).count("SIGTERM: stops.") == 1 and not capfd.readouterr().err
    run.display.notice("later")
    assert capfd.readouterr().err == "later\n"


def test_closing_twice_and_without_a_training_is_harmless():
    run = Run(live=True)
    run.display.close()
    run.display.close()
    RunDisplay().close()


def test_a_refresh_costs_little():
    """The table is drawn once a second beside the training, which it must not slow down."""
    run = Run(live=True)
    for _ in range(ROWS):
        run.step()
    began = time.process_time()
    for _ in range(20):
        run.display.console.print(run.display._table())
    run.display.close()
    assert (time.process_time() - began) / 20 < 0.1
