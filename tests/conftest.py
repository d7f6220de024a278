"""One thread per process: several ranks share few cores, and sums keep their order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import settings

from megatron_hyena.errors import UserError
from tests.oracles import swift_store
from tests.oracles.stores import CREDENTIALS, Bucket, Trouble, s3_process

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Drawn examples are the same in every run, and however slow a machine is, it is not a failure.
settings.register_profile("same everywhere", deadline=None, derandomize=True)
settings.load_profile("same everywhere")


@pytest.fixture
def own_filter_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hyena filters that a test registers are forgotten after it."""
    from megatron_hyena.config import filters as names
    from megatron_hyena.layers import filters, hyena_order

    assert filters.filter_class("implicit") is hyena_order.HyenaFilter  # registered on import
    monkeypatch.setattr(names, "HYENA_FILTERS", list(names.HYENA_FILTERS))
    monkeypatch.setattr(filters, "HYENA_FILTERS", names.HYENA_FILTERS)
    monkeypatch.setattr(filters, "_CLASSES", dict(filters._CLASSES))


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trouble]:
    """An S3 store in a process of its own, behind a proxy that makes trouble when told to."""
    log = tmp_path_factory.mktemp("store") / "log"
    with s3_process(log) as port, Trouble(port) as trouble:
        yield trouble


_BUCKETS = count()


@pytest.fixture
def bucket(object_store: Trouble, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A fresh bucket, which programs find by the standard variables."""
    yield from _bucket_of(object_store, CREDENTIALS, monkeypatch)


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trouble]:
    """OpenStack Swift's S3 interface behind such a proxy."""
    root = tmp_path_factory.mktemp("swift")
    if reason := swift_store.missing_requirement(root):
        pytest.skip(reason)
    try:
        swift_store.install()
    except UserError as error:
        pytest.skip(str(error))
    with swift_store.swift_processes(root) as port, Trouble(port) as trouble:
        yield trouble


@pytest.fixture(params=["moto", pytest.param("swift", marks=pytest.mark.slow)])
def any_bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """As `bucket`, of either store."""
    if request.param == "moto":
        yield request.getfixturevalue("bucket")
    else:
        import s3fs

        trouble = request.getfixturevalue("swift")
        s3fs.S3FileSystem.clear_instance_cache()  # each remembers its store and credentials
        yield from _bucket_of(trouble, swift_store.CREDENTIALS, monkeypatch)
        s3fs.S3FileSystem.clear_instance_cache()


def _bucket_of(
    trouble: Trouble, credentials: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    for name, value in {**credentials, "AWS_ENDPOINT_URL": trouble.url}.items():
        monkeypatch.setenv(name, value)
    trouble.clear()
    yield Bucket(f"bucket-{next(_BUCKETS)}", trouble)
    trouble.clear()
