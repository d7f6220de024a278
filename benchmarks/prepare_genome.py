"""Cost of preparing genomes, beside that of merely decompressing one, and what they weigh then.

    python -m benchmarks.prepare_genome 20.fa.gz [chr2R.fa …] [--repeats 5] [--synthetic 3e9]

Runs, in turn and several times each: `gzip -dc FIRST | wc -c`; `python -m tools.prepare_genome` on
the first file, on the same unzipped, and on a FASTA file of four bases, which is the start-up.
Wall time and processor time (of all threads) are medians; what is beyond start-up is told per base.
Of every file the store's bytes per base are told. `--synthetic` adds a genome of so many random
bases, one tenth in lower case and with runs of N, once: what memory it takes.

The bars: (prepare - start-up) / gzip ≤ 1.5 in wall time; plain FASTA at 300 MB a second; a peak of
300 MB for any genome; 0.35 bytes per base.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.measure import table, write_result

MEMORY, RATIO, SPEED, WEIGHT = 300, 1.5, 300, 0.35
TITLE = "Preparing a genome against decompressing it"
NOTES = """Medians of seconds, page cache warm; *beyond* is without the start-up, per million bases
of the file a second: in wall time (the tool reads in one thread and compresses in two more), and
per second of processor time of all threads together, which is per core. The weight is that of the
whole store, case and N kept. Peak memory is the resident set's."""


class Cost(NamedTuple):
    """Of one run: wall and processor seconds, and peak resident megabytes."""

    wall: float
    processor: float
    memory: float


def main(argv: list[str] | None = None) -> int:
    """Measure, print, record; returns 0 where the ratio, memory and weight are reached, else 1."""
    parser = argparse.ArgumentParser(description="Time tools.prepare_genome against gzip -dc.")
    parser.add_argument("files", type=Path, nargs="+", help="FASTA; the first gzip, and large")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--synthetic", type=float, default=0, help="bases, such as 3e9")
    parser.add_argument("--folder", type=Path, help="for what is written; default: a new one")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        ratio, speeds = _speeds(arguments.files[0], folder, arguments.repeats)
        weighed = [_weighed(path.name, _prepare(path, folder), folder) for path in arguments.files]
        if arguments.synthetic:
            path = _synthetic(folder / "synthetic.fa.gz", int(arguments.synthetic))
            weighed.append(_weighed("synthetic", _prepare(path, folder), folder))
        # Last: what this process once held counts as the memory of those that it starts.
        parts = _parts(arguments.files[0], arguments.repeats)
    heads = ("genome", "bases (M)", "wall s", "processor s", "bytes per base", "peak MB")
    tables = f"{speeds}\n{parts}\n{table(heads, [row for row, _, _ in weighed])}"
    write_result("prepare_genome", TITLE, NOTES, tables)
    reached = all(weight <= WEIGHT and memory <= MEMORY for _, weight, memory in weighed)
    return 0 if reached and ratio <= RATIO else 1


def _speeds(zipped: Path, folder: Path, repeats: int) -> tuple[float, str]:
    """The ratio to gzip, and the table of times."""
    tiny, plain = folder / "tiny.fa", folder / "plain.fa"
    tiny.write_text(">tiny\nACGT\n", encoding="ascii")
    with gzip.open(zipped) as source, plain.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 22)
    cases = {"gzip": zipped, "start-up": tiny, "gzip FASTA": zipped, "plain FASTA": plain}
    costs: dict[str, list[Cost]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, path in cases.items():
            costs[name].append(_gunzip(path) if name == "gzip" else _prepare(path, folder))
    middle = {
        name: [statistics.median(some) for some in zip(*found, strict=True)]
        for name, found in costs.items()
    }
    begin, megabytes = middle["start-up"], plain.stat().st_size / 1e6
    rows, ratio = [], 0.0
    for name, (wall, processor, memory) in middle.items():
        beyond = [wall - begin[0], processor - begin[1]]
        row = [name, f"{wall:.2f}", f"{processor:.2f}", f"{memory:.0f}"]
        if "FASTA" in name:
            ratios = [seconds / bare for seconds, bare in zip(beyond, middle["gzip"], strict=False)]
            ratio = ratio or ratios[0]
            row += [f"{megabytes / seconds:.0f}" for seconds in beyond]
            row += [f"{one:.2f}" for one in ratios]
        rows.append(row + ["-"] * (8 - len(row)))
    heads: tuple[str, ...] = ("case", "wall s", "processor s", "peak MB", "MB/s beyond", "per core")
    heads = (*heads, "÷ gzip, wall", "÷ gzip, processor")
    return ratio, f"{zipped.name}, {repeats} rounds:\n\n" + table(heads, rows)


def _parts(zipped: Path, repeats: int) -> str:
    """A table of the bases per processor second of what the tool does: reading, compressing."""
    import hashlib

    from megatron_hyena.data.letters_frame import letters_frame
    from megatron_hyena.data.store import CHUNK
    from megatron_hyena.formats.sequences import read_sequences

    seconds = dict[str, list[float]]()
    for _ in range(repeats):
        begin, pieces = time.process_time(), []
        for piece in read_sequences(zipped, digest=hashlib.sha256()):
            pieces.append(piece.bases)
        seconds.setdefault("unzipping, SHA-256, checking, counting", []).append(
            time.process_time() - begin
        )
        bases = np.concatenate(pieces)
        begin = time.process_time()
        for at in range(0, len(bases), CHUNK):
            letters_frame(bases[at : at + CHUNK])
        seconds.setdefault("compressing", []).append(time.process_time() - begin)
    millions = len(bases) / 1e6
    rows = [[name, f"{millions / statistics.median(some):.0f}"] for name, some in seconds.items()]
    return table(("part, alone", "M bases per processor second"), rows)


def _gunzip(path: Path) -> Cost:
    return _run(["sh", "-c", 'gzip -dc "$1" | wc -c', "sh", str(path)])


def _prepare(fasta: Path, folder: Path) -> Cost:
    command = [sys.executable, "-m", "tools.prepare_genome", "--overwrite"]
    return _run([*command, "--fasta", str(fasta), "--output", str(folder)])


def _run(command: list[str]) -> Cost:
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} failed")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)


def _weighed(name: str, cost: Cost, folder: Path) -> tuple[list[str], float, float]:
    """The row of a genome whose store is in `folder`, its bytes per base and its peak memory."""
    from megatron_hyena.data.store import GenomeStore

    store = folder / "genome.zarr"
    total = GenomeStore.open(store).total
    weight = sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) / total
    figures = (f"{total / 1e6:.1f}", f"{cost.wall:.2f}", f"{cost.processor:.2f}")
    return [name, *figures, f"{weight:.3f}", f"{cost.memory:.0f}"], weight, cost.memory


def _synthetic(path: Path, bases: int) -> Path:
    """24 random chromosomes in lines of 60: a tenth in lower case, and runs of N."""
    from isal import igzip

    draw, lines = np.random.default_rng(0), 1 << 16
    with igzip.open(path, "wb", compresslevel=0) as file:
        for number in range(24):
            file.write(f">chr{number + 1}\n".encode())
            for at in range(0, bases // 24, lines * 60):
                block = np.frombuffer(b"ACGT", dtype=np.uint8)[draw.integers(0, 4, (lines, 60))]
                block[lines // 10 : lines // 5] |= 0x20
                block[: lines // 50] = ord("N")
                rows = block[: -(-min(lines * 60, bases // 24 - at) // 60)]
                ends = np.full((len(rows), 1), ord("\n"), dtype=np.uint8)
                file.write(np.hstack([rows, ends]).tobytes())
    return path


if __name__ == "__main__":
    sys.exit(main())
