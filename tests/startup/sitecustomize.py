"""Loaded by every Python process that a test starts: whoever reaches for the network fails. See `offline.py`."""

import offline

offline.forbid()
