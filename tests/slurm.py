"""SLURM's commands as far as `examples/cluster/` uses them, on one machine: every node of a job is this one."""

import os
import sys
from pathlib import Path

SRUN = """#!{python}
import os, signal, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
nodes = [
    subprocess.Popen(command, env=os.environ | {{"SLURM_NODEID": str(node)}}, start_new_session=True)
    for node in range(int(os.environ["SLURM_NNODES"]))
]

def pass_on(number, frame):
    # As SLURM does: to every process of the step, launchers and what they have started, which torch puts into sessions of their own.
    for node in nodes:
        for pid in [node.pid, *map(int, open(f"/proc/{{node.pid}}/task/{{node.pid}}/children").read().split())]:
            os.kill(pid, number)

signal.signal(signal.SIGTERM, pass_on)
sys.exit(max(node.wait() for node in nodes))
"""
SCONTROL = "#!/bin/sh\nfor node in $(seq 9999); do echo 127.0.0.1; done\n"
"""More lines than a pipe holds: whoever reads the first one only would end it by SIGPIPE."""


def environment(folder, port, nodes=2):
    """Variables of a job of so many nodes with one process each, and a folder of SLURM's commands."""
    folder.mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "gpu[1-2]",
        "SLURM_NNODES": str(nodes),
        "SLURM_GPUS_ON_NODE": "1",
        "PORT": str(port),
        "VENV": sys.prefix,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "400",
    }
