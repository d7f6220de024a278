"""What a corpus holds, counted once more by hand; the tool that prints and draws it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megatron_hyena.corpus import describe as room
from megatron_hyena.corpus.describe import GC_BINS, GC_WINDOW, describe
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from tools import describe_corpus, prepare_corpus

CHLAMYDIA = Path(__file__).parents[3] / "examples" / "chlamydia" / "ct.fasta.gz"
COMPLEMENTED = bytes.maketrans(b"ACGT", b"TGCA")


def _spectrum(texts: list[bytes], k: int = 31) -> dict[int, int]:
    times: Counter[bytes] = Counter()
    for text in texts:
        upper = text.upper()
        for at in range(len(upper) - k + 1):
            word = upper[at : at + k]
            if not word.strip(b"ACGT"):
                times[min(word, word[::-1].translate(COMPLEMENTED))] += 1
    return dict(Counter(times.values()))


@pytest.fixture(scope="module")
def contigs() -> dict[str, bytes]:
    draw = np.random.default_rng(5)
    unique = draw.choice(np.frombuffer(b"ACGTacgtGC", np.uint8), 9000).tobytes()
    turned = unique[2000:5000].upper()[::-1].translate(COMPLEMENTED)
    short = {f"s{n}": unique[100 * n : 100 * n + 17 * n] for n in range(1, 9)}
    return {"a": unique + b"N" * 40 + b"RYK", "b": turned + turned[:500], "c": b"ACGT" * 9} | short


def test_numbers_are_those_counted_by_hand(tmp_path, contigs, monkeypatch):
    monkeypatch.setattr(room, "_PIECE", 2 * GC_WINDOW)
    monkeypatch.setattr(room, "_JOINED", 200)
    fasta = tmp_path / "a.fa"
    fasta.write_bytes(b"".join(b">%s\n%s\n" % (n.encode(), s) for n, s in contigs.items()))
    store = write_store(tmp_path / "genome.zarr", [fasta])
    shards = tmp_path / "shards"
    write_shards(store, shards, ShardSettings(SplitRule(0, 0), piece_length=777, shard_size=3000))
    text = b"".join(contigs.values())
    for path in (tmp_path, tmp_path / "genome.zarr", shards):
        found = describe(path)
        (part,) = found.parts
        assert part.counts.bases == len(text)
        assert part.counts.gc == sum(letter in b"GCgc" for letter in text)
        assert (part.counts.unknown, part.counts.ambiguous) == (40, 3)
        assert part.counts.lower == sum(letter in b"acgt" for letter in text)
        assert found.spectrum == _spectrum(list(contigs.values()))
        assert found.scaled == 1
        histogram = np.zeros(GC_BINS, dtype=int)
        for contig in contigs.values():
            for at in range(0, len(contig) - GC_WINDOW + 1, GC_WINDOW):
                window = contig[at : at + GC_WINDOW].upper()
                known = sum(window.count(letter) for letter in b"ACGT")
                histogram[int((window.count(b"G") + window.count(b"C")) / known * GC_BINS)] += 1
        assert part.gc.tolist() == histogram.tolist()
    found = describe(tmp_path)
    assert found.lengths.tolist() == sorted(map(len, contigs.values()), reverse=True)
    assert found.n50() == len(contigs["a"])


def test_a_sample_of_kmers_keeps_how_often_each_occurs(tmp_path, contigs, monkeypatch):
    monkeypatch.setattr(room, "_COUNTED", 3000)
    fasta = tmp_path / "a.fa"
    fasta.write_bytes(b"".join(b">%s\n%s\n" % (n.encode(), s) for n, s in contigs.items()))
    write_store(tmp_path / "genome.zarr", [fasta])
    found, every = describe(tmp_path), _spectrum(list(contigs.values()))
    assert found.scaled == 5
    for times in (1, 2, 3):
        assert found.spectrum[times] * 5 == pytest.approx(every[times], rel=0.35)


def test_the_tool_prints_and_draws_a_corpus(tmp_path, capsys):
    corpus, report = tmp_path / "corpus", tmp_path / "report"
    config = tmp_path / "c.yaml"
    config.write_text(
        f"inputs: {{paths: [{CHLAMYDIA}], name: ct, taxon: Bacteria;Chlamydia}}\n"
        "splits: {by: position}\n"
    )
    assert prepare_corpus.main([str(config), "--output", str(corpus)]) == 0
    capsys.readouterr()
    assert describe_corpus.main([str(corpus), "--output", str(report)]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["train", "1", "921,883"] in [row[:3] for row in rows]
    assert ["Bacteria;Chlamydia", "1", "1,042,519"] in rows
    found = json.loads((report / "description.json").read_text())
    assert list(found["parts"]) == ["train", "valid", "test"]
    assert found["lengths"]["n50"] == 1_042_519
    assert (report / "description.png").read_bytes().startswith(b"\x89PNG")


def test_other_folders_are_refused(tmp_path, capsys):
    assert describe_corpus.main([str(tmp_path)]) == 2
    assert "holds neither a corpus" in capsys.readouterr().err
