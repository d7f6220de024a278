"""Cut a genome store into WebDataset shards for training, validation and test.

    python -m tools.make_shards --store corpus/genome.zarr --output corpus/shards

writes corpus/shards/{train,valid,test}/ (see megatron_hyena/corpus/shards.py and splits.py);
--output s3://bucket/prefix writes there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_hyena.data.shard_index import ShardIndex


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns 0, or 2 after an error the user can mend."""
    arguments = _parser().parse_args(argv)
    from tqdm import tqdm

    from megatron_hyena.corpus.publish import destination
    from megatron_hyena.corpus.shards import ShardSettings, write_shards
    from megatron_hyena.corpus.splits import SplitRule, default_gap
    from megatron_hyena.data.store import GenomeStore
    from megatron_hyena.errors import UserError

    try:
        store = GenomeStore.open(arguments.store)
        fractions = arguments.valid_fraction, arguments.test_fraction
        gap = default_gap(store.contigs, *fractions) if arguments.gap is None else arguments.gap
        settings = ShardSettings(
            rule=SplitRule(*fractions, gap),
            piece_length=arguments.piece_length,
            shard_size=arguments.shard_size,
            features=arguments.features,
            tracks=tuple(arguments.track),
            compress=arguments.compress,
        )
        with (
            destination(arguments.output, overwrite=arguments.overwrite) as place,
            tqdm(desc="shards", total=store.total, unit="b", unit_scale=True, disable=None) as bar,
        ):
            indices = write_shards(
                store,
                place.folder,
                settings,
                overwrite=arguments.overwrite,
                progress=bar.update,
                finished=place.finished,
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _report(indices, store.total, arguments.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_shards",
        description="Cut a genome store into WebDataset shards, split by position with gaps.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--store", type=Path, required=True, help="genome.zarr of prepare_genome")
    parser.add_argument(
        "--output", required=True, help="folder of the splits' folders, or s3://bucket/prefix"
    )
    parser.add_argument(
        "--valid-fraction", type=float, default=0.05, help="part of each contig for validation"
    )
    parser.add_argument(
        "--test-fraction", type=float, default=0.05, help="part of each contig for test"
    )
    parser.add_argument(
        "--gap",
        type=int,
        default=None,
        help="bases left out between two splits: at least the longest sequence to train on; "
        "by default 8192, or fewer for a genome too short for that",
    )
    parser.add_argument("--piece-length", type=int, default=1 << 17, help="bases of one sample")
    parser.add_argument("--shard-size", type=int, default=1 << 26, help="bases of one tar file")
    parser.add_argument(
        "--features",
        action="store_true",
        help="also write the labels; data.tracks=[features] reads them",
    )
    parser.add_argument(
        "--track",
        nargs="+",
        default=[],
        metavar="NAME",
        help="also write these tracks of the store, such as conservation; data.tracks reads them",
    )
    parser.add_argument(
        "--compress",
        action="store_true",
        help="write .tar.gz, a third of the size; training unpacks them into data.cache_dir",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace shards that exist")
    return parser


def _report(indices: dict[str, ShardIndex], total: int, output: str) -> None:
    """Print what each split holds."""
    from megatron_hyena.data.alphabet import SequenceType

    print(f"{'split':<10}{'pieces':>10}{'bases':>16}{'of all':>9}{'shards':>8}")
    for split, index in indices.items():
        part = index.bases / total
        print(f"{split:<10}{index.pieces:>10,}{index.bases:>16,}{part:>9.2%}{len(index.shards):>8}")
    left = total - sum(index.bases for index in indices.values())
    first = next(iter(indices.values()))
    letter = SequenceType.named(first.type).unknown[0]
    note = f"gaps of {first.gap:,} bases, pieces of {letter} alone"
    print(f"{'left out':<10}{'':>10}{left:>16,}{left / total:>9.2%}   ({note})")
    print(f"{first.type} shards in {output}, tracks: {', '.join(first.tracks) or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
