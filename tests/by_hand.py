"""Importing this module writes the rollouts of this process by hand, as `distributed.py` does: for runs of the command line.

`extra_reward_funcs: [by_hand.even_ids]` makes `mgpo train` import it.
"""

from distributed import write_by_hand
from support import even_ids

__all__ = ["even_ids"]

write_by_hand()
