"""The guard that all tests run under: it refuses what leaves this machine, here and in processes that a test starts."""

import os
import socket
import subprocess
import sys

import pytest

CALLS = {
    "connect": "socket.socket().connect(('93.184.216.34', 80))",
    "datagram": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))",
    "name": "socket.getaddrinfo('huggingface.co', 443)",
    "short name": "socket.gethostbyname('example.org')",
}


@pytest.mark.parametrize("call", CALLS)
def test_what_leaves_the_machine_is_refused(call):
    with pytest.raises(RuntimeError, match="tried to reach the network"):
        eval(CALLS[call], {"socket": socket})  # noqa: S307
    code = f"import socket; {CALLS[call]}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1 and "tried to reach the network" in ran.stderr


def test_loopback_is_open():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
    assert socket.getaddrinfo("localhost", 80)


@pytest.mark.slow
def test_the_demo_needs_no_network(tmp_path):
    """What `make demo` runs after installation, shorter, in a network namespace that has not even loopback."""
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody have a network namespace of their own")
    words = [
        "unshare",
        "-rn",
        sys.executable,
        "-m",
        "mgpo",
        "demo",
        "--out",
        str(tmp_path / "demo"),
        "--steps",
        "2",
        "--n",
        "4",
    ]
    ran = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=280)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    assert (tmp_path / "demo" / "report.html").is_file()
