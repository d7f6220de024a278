"""One thread per process: several ranks share few cores, and sums keep their order."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def own_filter_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hyena filters that a test registers are forgotten after it."""
    from megatron_hyena.config import filters as names
    from megatron_hyena.layers import filters, hyena_order

    assert filters.filter_class("implicit") is hyena_order.HyenaFilter  # registered on import
    monkeypatch.setattr(names, "HYENA_FILTERS", list(names.HYENA_FILTERS))
    monkeypatch.setattr(filters, "HYENA_FILTERS", names.HYENA_FILTERS)
    monkeypatch.setattr(filters, "_CLASSES", dict(filters._CLASSES))
