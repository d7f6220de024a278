"""Meshes one after the other in a process leave nothing behind."""

from __future__ import annotations

import os

import pytest

from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel


def threads_after_each_mesh():
    from megatron_hyena.parallel.mesh import build_mesh, destroy_mesh

    counts = []
    for context in (2, 1, 2, 1):
        build_mesh(1, context)
        destroy_mesh()
        counts.append(len(os.listdir("/proc/self/task")))
    return counts


def test_a_mesh_that_is_destroyed_leaves_no_threads(tmp_path):
    for counts in run_ranks(threads_after_each_mesh, 2, tmp_path):
        assert counts[-1] <= counts[0]
