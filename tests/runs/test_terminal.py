"""A training in a terminal of its own, as a user sees it."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from terminal_screen import screen

SHORT = (
    "--max_steps 3 --per_device_train_batch_size 4 --num_generations 2 --dataset_size 8 --save_steps 2 --eval_strategy steps "
    "--eval_steps 3 --dataset_test_size 2 --per_device_eval_batch_size 2 --num_generations_eval 1"
).split()


def in_terminal(words):
    """Exit status and output of `mgpo` in a terminal of 100 columns."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {
        "TERM": "xterm"
    }
    running = subprocess.Popen([sys.executable, "-m", "mgpo", *words], stdout=its, stderr=its, env=environment)
    os.close(its)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the last one has closed it
            break
        if not part:
            break
        said += part
    os.close(ours)
    return running.wait(), said.decode()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tiny_mgpo", "tiny_sft"])
def test_one_table_and_a_line_for_each_checkpoint_and_evaluation(tmp_path, recipe):
    status, said = in_terminal(["train", "--config", recipe, "--output_dir", str(tmp_path / "run"), *SHORT])
    assert status == 0, said
    shown = [line for line in screen(said) if line]
    begun = next(number for number, line in enumerate(shown) if "checkpoint-2" in line)
    assert [line.split(" | ")[:2] for line in shown[begun:] if " | " in line] == [
        ["step 2/3", f"checkpoint: {tmp_path}/run/checkpoint-2"],
        ["step 3/3", "evaluation"],
        ["step 3/3", f"checkpoint: {tmp_path}/run/checkpoint-3"],
    ]
    assert sum(line.startswith("step  ") for line in shown) == 1, "the table stands there once"
    assert [line.split()[0] for line in shown if line.split()[0] in "123"] == ["1", "2", "3"]
    assert "3 of 3 steps" in said and "{'loss'" not in said and "deprecated" not in said
