"""The loader against plain WebDataset pipelines over the same windows.

    python -m benchmarks.loader SHARDS/train [--length 8192] [--batch 64] [--rounds 5]

In one process and one thread, page cache warm, CPU seconds: batches of our stream (windows shuffled
over the whole split, bytes on the host), and WebDataset over tar files written for it, with one
member for each of the same windows in the same order. The windows are compared byte for byte.
Replaces benchmarks/results/loader.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import interleaved, median_ratio, table, write_result
from megatron_hyena.data.windows import WindowStream

OURS, TURNED, IDS = "this loader", "both strands (half is turned)", "int64 ids on the CPU too"
PLAIN, BUFFER = "WebDataset, in order", "WebDataset, shuffle(1000)"
NOTES = """Windows of one split, in batches; gigabases per second of CPU time, medians of {rounds}
rounds. The bars: 1 GB/s, and 20 times the plain WebDataset pipeline with one member per window,
whose batches hold the same bytes (checked before timing)."""


def main(argv: list[str] | None = None) -> int:
    """Measure, print and record; returns 1 where a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader")
    parser.add_argument("shards", help="folder of shards of one split")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--windows", type=int, default=6400, help="of an epoch, at most")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args(argv)
    import torch

    torch.set_num_threads(1)
    length, size = arguments.length, arguments.batch
    plain, turned = (
        WindowStream(arguments.shards, length, 0, augment_reverse_complement=both)
        for both in (False, True)
    )
    count = min(arguments.windows, plain.windows_per_epoch) // size * size
    with tempfile.TemporaryDirectory() as folder:
        tars = _write_tars(Path(folder), plain, count)
        pairs = zip(_ours(plain, size, count), _webdataset(tars, size), strict=True)
        assert all(np.array_equal(ours, theirs) for ours, theirs in pairs)
        cases = {
            OURS: lambda: _run(_ours(plain, size, count)),
            TURNED: lambda: _run(_ours(turned, size, count)),
            IDS: lambda: _run(_ours(plain, size, count, ids=True)),
            PLAIN: lambda: _run(_webdataset(tars, size)),
            BUFFER: lambda: _run(_webdataset(tars, size, buffer=1000)),
        }
        seconds = interleaved(cases, arguments.rounds, time.process_time)
    bases = count * (length + 1)
    rates = {name: bases / statistics.median(found) / 1e9 for name, found in seconds.items()}
    ratios = {name: median_ratio(found, seconds[OURS]) for name, found in seconds.items()}
    rows = [[name, f"{rates[name]:.3f}", f"{ratios[name]:.1f}"] for name in cases]
    title = f"The loader: {count:,} windows of {length:,} bases in batches of {size}"
    notes = NOTES.format(rounds=arguments.rounds)
    write_result("loader", title, notes, table(["", "GB/s", "slower than ours"], rows))
    return 0 if rates[OURS] >= 1 and ratios[PLAIN] >= 20 else 1


def _ours(
    stream: WindowStream, size: int, count: int, *, ids: bool = False
) -> Iterator[np.ndarray]:
    from megatron_hyena.data.batch import batch_of

    for first in range(0, count, size):
        windows = stream.windows(range(first, first + size))
        batch = batch_of(windows)
        if ids:
            assert batch.input_ids.dtype == batch.targets.dtype
            assert len(batch.weights) == size
        yield windows.bases


def _webdataset(tars: list[str], size: int, buffer: int = 0) -> Iterator[np.ndarray]:
    import webdataset

    pipeline = webdataset.WebDataset(tars, shardshuffle=False).to_tuple("bases")
    if buffer:
        pipeline = pipeline.shuffle(buffer)
    for (members,) in pipeline.batched(size, collation_fn=_columns):
        yield np.stack([np.frombuffer(member, dtype=np.uint8) for member in members])


def _columns(rows: list[tuple[bytes, ...]]) -> list[tuple[bytes, ...]]:
    return list(zip(*rows, strict=True))


def _run(batches: Iterator[np.ndarray]) -> int:
    return sum(batch.size for batch in batches)


def _write_tars(folder: Path, stream: WindowStream, count: int) -> list[str]:
    """One member for each window, in the order of the stream, 4,096 in a tar file."""
    from webdataset.writer import ShardWriter

    with ShardWriter(f"{folder}/%06d.tar", maxcount=4096, verbose=0) as writer:
        for position in range(count):
            content = stream.window(position).bases.tobytes()
            writer.write({"__key__": f"{position:09d}", "bases": content})
    return sorted(map(str, folder.glob("*.tar")))


if __name__ == "__main__":
    sys.exit(main())
