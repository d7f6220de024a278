"""The states of a whole chromosome read in pieces, beside one pass over all of it.

    python -m benchmarks.embedding --from runs/quickstart --fasta examples/chlamydia/ct.fasta.gz

`tools.embed` runs in a process of its own, for each size of a piece; the pass over everything runs
in this one. Status 1 where a state differs by 1e-5 or the peak is 2 GiB or more. Written to
benchmarks/results/embedding.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

from benchmarks.measure import table, write_result

PIECES = (8192, 65536)
DIFFERENCE, GIBIBYTE = 1e-5, 1 << 20
PROGRAM = """
import resource, sys
from tools.embed import main
code = main(sys.argv[1:])
print("KiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""
"""`tools.embed`, which also tells its peak memory."""


def main(argv: list[str] | None = None) -> int:
    """Embed, compare, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", required=True, help="run folder or checkpoint")
    parser.add_argument("--fasta", type=Path, required=True, help="one long sequence")
    asked = parser.parse_args(argv)
    import numpy
    import torch
    import zarr

    from megatron_hyena.checkpoint.source import trained_model
    from megatron_hyena.formats.reference import open_reference

    torch.set_num_threads(1)
    reference = open_reference(asked.fasta)
    ((contig, length),) = reference.lengths.items()
    model = trained_model(asked.source).model.eval()
    rows, found = [], []
    with tempfile.TemporaryDirectory() as folder:
        for piece in PIECES:
            output = Path(folder) / f"{piece}.zarr"
            seconds, peak = in_pieces(asked.source, asked.fasta, output, piece)
            found.append((piece, seconds, peak, output))
        begin, before = time.process_time(), getrusage(RUSAGE_SELF).ru_maxrss
        ids = torch.from_numpy(reference.read(contig, 0, length).astype("int64"))[None]
        with torch.no_grad():
            whole = model.hidden(ids)[:, 0].numpy()
        took = time.process_time() - begin
        passed = True
        for piece, seconds, peak, output in found:
            states = numpy.asarray(zarr.open_group(str(output), mode="r")["embeddings"])
            worst = float(abs(states - whole).max())
            passed &= worst < DIFFERENCE and peak < 2 * GIBIBYTE
            figures = f"{seconds:.0f}", f"{peak / GIBIBYTE:.2f}", f"{worst:.1e}"
            rows.append([f"pieces of {piece:,}", *figures])
    grown = getrusage(RUSAGE_SELF).ru_maxrss
    assert grown > before
    rows.append(["one pass", f"{took:.0f}", f"{grown / GIBIBYTE:.2f}", ""])
    notes = (
        f"Final states of {length:,} bases ({asked.fasta.name}), {model.config.pattern} of width "
        f"{model.config.hidden_size} (largest state {abs(whole).max():.1f}), fp32, 1 thread; "
        "processor seconds and peak memory of the process with all it imports, and the largest "
        "difference from the states of one pass."
    )
    header = ["", "seconds", "peak GiB", "difference"]
    write_result("embedding", "A chromosome in pieces", notes, table(header, rows))
    return 0 if passed else 1


def in_pieces(source: str, fasta: Path, output: Path, piece: int) -> tuple[float, int]:
    """Processor seconds and peak KiB of `tools.embed`."""
    from resource import RUSAGE_CHILDREN

    words = ["--from", source, "--fasta", str(fasta), "--output", str(output)]
    before = getrusage(RUSAGE_CHILDREN)
    reply = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words, "--piece", str(piece)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    after = getrusage(RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, int(reply.stdout.split("KiB")[1])


if __name__ == "__main__":
    sys.exit(main())
