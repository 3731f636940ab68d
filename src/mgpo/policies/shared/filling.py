"""Which rows of a batch share a packed row: packs are filled to a number of tokens, not of rows.

The rows of a prompt stay together where they fit, since a pack holds each prompt once. The largest go first, each into the
emptiest pack, so that all packs are about equally large; among processes that must run equally many packs
(`mgpo.policies.shared.ranks`), none waits long for another.
"""

from __future__ import annotations

from mgpo.policies.shared.ranks import Calls, alone
from mgpo.policies.shared.update import Batch


def fill(batch: Batch, rows: list[int], budget: int, calls: Calls = alone) -> list[list[int]]:
    """Divide rows into packs.

    Args:
        batch: the padded batch.
        rows: its rows that are to be scored.
        budget: most tokens of a pack; one row alone may have more.
        calls: how many packs all processes make, given how many this one needs.

    Returns:
        The rows of each pack, the largest pack first; packs that only other processes need are empty.
    """
    blocks = sorted(_blocks(batch, rows, budget), key=lambda block: -block[0])
    number = max(1, -(-sum(tokens for tokens, _ in blocks) // budget))
    while number < len(blocks) and max(tokens for tokens, _ in _level(blocks, number)) > budget:
        number += 1
    return [members for _, members in sorted(_level(blocks, calls(number)), key=lambda pack: -pack[0])]


def _level(blocks: list[tuple[int, list[int]]], number: int) -> list[tuple[int, list[int]]]:
    """Tokens and rows of so many packs: each block goes into the emptiest one."""
    packs: list[tuple[int, list[int]]] = [(0, []) for _ in range(number)]
    for tokens, members in blocks:
        at = min(range(number), key=lambda i: packs[i][0])
        packs[at] = packs[at][0] + tokens, packs[at][1] + members
    return packs


def _blocks(batch: Batch, rows: list[int], budget: int) -> list[tuple[int, list[int]]]:
    """Tokens and rows of what stays together: the rows of a prompt, in several blocks if they are over the budget."""
    prompts = batch.attention_mask[:, : batch.split].sum(1).tolist()
    own = batch.attention_mask[:, batch.split :].sum(1).tolist()
    open_blocks: dict[tuple[int, ...], tuple[int, list[int]]] = {}
    closed: list[tuple[int, list[int]]] = []
    for row in sorted(rows, key=lambda row: -own[row]):
        key = tuple(batch.input_ids[row, batch.split - prompts[row] : batch.split].tolist())
        tokens, members = open_blocks.get(key, (prompts[row], []))
        if members and tokens + own[row] > budget:
            closed.append((tokens, members))
            tokens, members = prompts[row], []
        open_blocks[key] = tokens + own[row], [*members, row]
    return closed + list(open_blocks.values())
