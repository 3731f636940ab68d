r"""Compares answers as numbers or expressions, with math-verify: `1/2`, `0.50` and `\frac{1}{2}` are equal.

An answer comes from a model and may be `9**9**9**9`, whose evaluation no signal interrupts. Answers are therefore
compared in a child process with limited memory, which is killed when it takes too long. The process starts with the
first comparison.
"""

from __future__ import annotations

import json
import re
import select
import subprocess
import sys
from threading import Lock

SECONDS = 5.0
START_SECONDS = 60.0
LONGEST = 200
MEMORY_BYTES = 4 * 1024**3
_NUMBER = re.compile(r"\$?\s*[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?\s*%?\s*\$?")
_RELATION = re.compile(r"[<>≤≥≠≈±≃≅≪≫=]|\\not\b")
_COMMANDS = frozenset({
    "frac", "dfrac", "tfrac", "cfrac", "sqrt", "cdot", "times", "div", "pi", "left", "right", "log", "ln", "exp", "sin", "cos",
    "tan", "quad", "binom", "circ", "degree",
})  # fmt: skip
"""LaTeX commands that may occur in a value. Text with any other (`\\gg`, `\\alpha`, `\\lfloor`) is not compared."""
_PADDED = re.compile(r"[-+]?0\d")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_UNIT = re.compile(r"^([-+]?)\s*\$|%$|\$$")


def same_value(given: str, gold: str) -> bool:
    """Whether two short texts, each as a whole a number, a fraction or a formula, mean the same value.

    Texts with words, dates, lists or relations are not compared, since math-verify takes "Tram 41" for 41 and "<= 7"
    for 7. A percent or dollar sign is a unit: it may be left out, but not changed, and it does not scale the number. So
    50 is right for 50 %, and 0.5 is wrong; math-verify would accept both, and also 5000 % for 50. A number with leading
    zeros is treated as text that was read: 007 is not 7.
    """
    units = {sign for sign in "$%" if sign in given}, {sign for sign in "$%" if sign in gold}
    if all(units) and units[0] != units[1]:
        return False
    given, gold = without_unit(given), without_unit(gold)
    return _is_maths(given) and _is_maths(gold) and _grader.same(given, gold)


def without_unit(text: str) -> str:
    """A number without its percent or dollar sign, and without a plus sign."""
    return _UNIT.sub(r"\1", text.strip()).strip().removeprefix("+").strip()


def _is_maths(text: str) -> bool:
    text = text.strip()
    if len(text) > LONGEST or not any(c.isdigit() for c in text) or _RELATION.search(text) or _PADDED.match(text):
        return False
    if _NUMBER.fullmatch(text):
        return True
    commands = set(_COMMAND.findall(text))
    rest = _COMMAND.sub(" ", text)
    return bool(commands) and commands <= _COMMANDS and not re.search(r"[^\W\d_]{2}|[:;,]", rest)


class _Grader:
    """Runs all comparisons in one child process, and starts a new one after a process had to be killed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._child: subprocess.Popen[str] | None = None

    def same(self, given: str, gold: str) -> bool:
        with self._lock:
            try:
                child, seconds = self._child, SECONDS
                if child is None or child.poll() is not None:
                    child, seconds = self._start(), START_SECONDS
                assert child.stdin is not None and child.stdout is not None
                child.stdin.write(json.dumps([given, gold]) + "\n")
                child.stdin.flush()
                if select.select([child.stdout], [], [], seconds)[0]:
                    return child.stdout.readline().strip() == "true"
            except OSError:
                pass  # the child is gone, e.g. out of memory
            self._stop()
            return False

    def _start(self) -> subprocess.Popen[str]:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "mgpo.method.mathgrade"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1,
        )  # fmt: skip
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


_grader = _Grader()


def _serve() -> None:
    """The child process: reads one JSON pair per line, writes `true` or `false` for each, and ends with its input."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from math_verify import parse, verify

    for line in sys.stdin:
        given, gold = (text if "\\" not in text else f"${text}$" for text in json.loads(line))
        try:
            right = bool(verify(parse(gold, parsing_timeout=3), parse(given, parsing_timeout=3), timeout_seconds=3))
        except Exception:  # an answer that math-verify cannot handle is wrong
            right = False
        print("true" if right else "false", flush=True)


if __name__ == "__main__":
    _serve()
