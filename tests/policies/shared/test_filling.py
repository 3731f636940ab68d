"""Packs are filled to a number of tokens: every row once, a prompt's rows together, and about equally full."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mgpo.policies.shared.filling import fill
from mgpo.policies.shared.update import Batch

PROMPT = 12


def batch_of(groups):
    """A padded batch in which each group is (tokens of its prompt, tokens of its rows' completions)."""
    rows = [(prompt, own, number) for number, (prompt, owns) in enumerate(groups) for own in owns]
    columns = PROMPT + max(own for _, own, _ in rows)
    ids = torch.zeros(len(rows), columns, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, own, number) in enumerate(rows):
        mask[row, PROMPT - prompt : PROMPT + own] = 1
        ids[row, PROMPT - prompt : PROMPT] = number + 1
    return Batch(ids, mask, PROMPT, torch.empty(0), torch.empty(0, 3), [1] * len(rows))


def tokens(batch, pack):
    """Tokens of a packed row: each prompt once."""
    prompts = {
        tuple(batch.input_ids[row, :PROMPT].tolist()): int(batch.attention_mask[row, :PROMPT].sum()) for row in pack
    }
    return sum(prompts.values()) + sum(int(batch.attention_mask[row, PROMPT:].sum()) for row in pack)


GROUPS = st.lists(
    st.tuples(st.integers(1, PROMPT), st.lists(st.integers(1, 30), min_size=1, max_size=5)), min_size=1, max_size=6
)


@given(GROUPS, st.integers(1, 120), st.integers(0, 2))
def test_every_row_once_within_the_budget(groups, budget, more):
    batch = batch_of(groups)
    rows = list(range(len(batch.input_ids)))
    needed = []
    packs = fill(batch, rows, budget, lambda number: needed.append(number) or number + more)
    assert sorted(row for pack in packs for row in pack) == rows
    assert len(packs) == needed[0] + more
    assert all(len(pack) == 1 or tokens(batch, pack) <= budget for pack in fill(batch, rows, budget))


@given(GROUPS)
def test_a_batch_that_fits_is_one_pack(groups):
    """So is every update: without sharing, its padded rows have at least as many tokens."""
    batch = batch_of(groups)
    rows = list(range(len(batch.input_ids)))
    assert [sorted(pack) for pack in fill(batch, rows, batch.input_ids.numel())] == [rows]


def test_rows_of_a_prompt_stay_together_where_they_fit():
    batch = batch_of([(10, [5, 5]), (10, [5, 5]), (10, [30])])
    assert sorted(map(sorted, fill(batch, [0, 1, 2, 3, 4], 40))) == [[0, 1, 2, 3], [4]]
    assert sorted(map(sorted, fill(batch, [0, 1, 2, 3], 20))) == [[0, 1], [2, 3]]


def test_the_largest_go_first_so_that_packs_are_equally_full():
    """In the order of the batch, the last prompt would need a third pack."""
    batch = batch_of([(1, [9]), (1, [9]), (12, [2, 2, 2, 2])])
    assert [tokens(batch, pack) for pack in fill(batch, list(range(6)), 20)] == [20, 20]


def test_packs_that_only_others_need_are_empty():
    batch = batch_of([(10, [5])])
    assert fill(batch, [0], 100, lambda number: 3) == [[0], [], []]
