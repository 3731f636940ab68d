"""What a terminal shows."""

import re


def screen(text):
    """The lines that a terminal shows: enough of its codes for what rich writes."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[[\d;?]*[A-Za-z]|\r?\n|\r)", text):
        if part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part in ("\n", "\r\n"):
            row += 1
            lines += [""] * (row - len(lines) + 1)
        elif part and part != "\r" and not part.startswith("\x1b"):
            lines[row] += part
    return [line.rstrip() for line in lines]
