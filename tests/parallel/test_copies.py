"""In bfloat16, what ranks hold copies of stays the same on all of them to the bit, step by step.

Copies that drift apart would go unnoticed: each rank would train a model of its own.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest

from tests.parallel.copies_cases import STEPS, train_and_hash
from tests.parallel.engine_cases import Run
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel

RUNS = [
    Run(tensor=2, sequence=True, precision="bf16"),
    Run(tensor=2, context=2, sequence=True, precision="bf16", packed=True, model="small"),
]
every_run = pytest.mark.parametrize("run", RUNS, ids=str)


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """{run: [Held of each rank]}."""
    results = {}
    for run in RUNS:
        folder = tmp_path_factory.mktemp("ranks")
        ranks = run_ranks(train_and_hash, run.size, folder, [run], timeout=400)
        results[run] = [rank[run] for rank in ranks]
    return results


def copies(ranks, step):
    """{(parameter, which part): the hashes of all its copies after `step` steps}."""
    found = defaultdict(list)
    for rank in ranks:
        for name, digest in rank.hashes[step].items():
            part = None if name in rank.replicated else rank.tensor_rank
            found[name, part].append(digest)
    return found


@every_run
def test_copies_are_equal_after_every_step(held, run):
    for step in range(STEPS + 1):
        for key, digests in copies(held[run], step).items():
            holders = run.size if key[1] is None else run.size // run.tensor
            assert len(digests) == holders, key
            assert len(set(digests)) == 1, (step, key)


def moves(name):
    """Without a track the gate of G stays at 0."""
    return ".conservation." not in name


@every_run
def test_hashes_tell_steps_and_parts_apart(held, run):
    """Otherwise equal hashes would prove little."""
    for rank in held[run]:
        assert len(rank.hashes) == STEPS + 1
        # The branches of G wait for their scales to leave 0.
        for earlier, later in list(pairwise(rank.hashes))[1:]:
            assert all(earlier[name] != later[name] for name in earlier if moves(name))
        assert rank.replicated and rank.replicated < rank.hashes[0].keys()
        assert rank.losses[-1] < rank.losses[0] - 1.5
    parts = {rank.tensor_rank: rank for rank in held[run]}
    assert parts.keys() == {0, 1}
    for name in filter(moves, parts[0].hashes[-1].keys() - parts[0].replicated):
        assert parts[0].hashes[-1][name] != parts[1].hashes[-1][name], name
