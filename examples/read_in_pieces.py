"""A long sequence in chunks, equal to the whole pass; then bytes written one by one.

python examples/read_in_pieces.py
python examples/read_in_pieces.py --pattern "SS([SMLA]2)SS" --length 100000 --chunk 8192
"""

from __future__ import annotations

import argparse
import sys

import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig, Stream


def main(argv: list[str] | None = None) -> int:
    """Print how far chunks are from the whole, what is remembered, and what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pattern", default="S(SMLA)S", help="of a model with random weights")
    parser.add_argument("--width", type=int, default=64, help="channels")
    parser.add_argument("--length", type=int, default=5000, help="bases to read")
    parser.add_argument("--chunk", type=int, default=700, help="bases read at a time")
    parser.add_argument("--write", type=int, default=20, help="bases to write")
    options = parser.parse_args(argv)
    model = HyenaGLT(HyenaGLTConfig(pattern=options.pattern, hidden_size=options.width)).eval()
    generator = torch.Generator().manual_seed(1)
    bases = torch.tensor(list(b"ACGT"))
    ids = bases[torch.randint(4, (1, options.length), generator=generator)]

    stream = Stream(model)
    pieces = [stream.feed(chunk).logits for chunk in ids.split(options.chunk, dim=1)]
    with torch.no_grad():
        whole = model(ids).logits
    error = float((torch.cat(pieces, dim=1) - whole).abs().max())
    print(
        f"{len(pieces)} chunks of {options.length} bases, whole pass: logits differ by {error:.1e}"
    )
    print(f"remembered: {stream.memory_bytes / 1024:.0f} KiB")

    written, logits = [], pieces[-1][0, -1]
    for _ in range(options.write):
        chosen = torch.multinomial(logits[bases].softmax(0), 1, generator=generator)
        written.append(chr(int(bases[chosen])))
        logits = stream.feed(bases[chosen][None]).logits[0, -1]
    print(f"written: {''.join(written)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
