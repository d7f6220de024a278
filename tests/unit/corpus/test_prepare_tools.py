"""The command-line tools of the data room, as a user runs them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools import make_shards, prepare_genome

ROOT = Path(__file__).parents[3]


def test_from_fasta_to_shards(tmp_path, chlamydia_files, capsys):
    fasta, genbank = map(str, chlamydia_files)
    corpus = str(tmp_path / "corpus")
    command = ["--fasta", fasta, "--annotation", genbank, "--output", corpus]
    assert prepare_genome.main(command) == 0
    out = capsys.readouterr().out
    for words in (["contigs", "1"], ["bases", "1,042,519"], ["features: CDS", "895"], ["41.31%"]):
        assert any(all(word in line for word in words) for line in out.splitlines()), words
    command = ["--store", f"{corpus}/genome.zarr", "--output", f"{corpus}/shards"]
    assert make_shards.main(command) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["train", "8", "921,883", "88.43%", "1"] in lines
    assert ["test", "1", "52,126", "5.00%", "1"] in lines
    assert sorted(path.name for path in tmp_path.joinpath("corpus").iterdir()) == [
        "genome.zarr",
        "shards",
    ]
    assert make_shards.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "shards exists already; pass --overwrite to replace it" in error
    assert make_shards.main([*command, "--overwrite", "--gap", "2048"]) == 0


def test_gff_is_another_name_for_annotation(tmp_path, capsys):
    (tmp_path / "a.fa").write_text(">a\nACGTACGT\n")
    (tmp_path / "a.gff3").write_text("##gff-version 3\na\tx\tCDS\t5\t9\t.\t+\t0\tID=c\n")
    command = ["--fasta", str(tmp_path / "a.fa"), "--gff", str(tmp_path / "a.gff3")]
    assert prepare_genome.main([*command, "--output", str(tmp_path / "corpus")]) == 2
    error = capsys.readouterr().err
    assert "CDS 'c' at 5..9 lies outside the record, which has 8 bases" in error
    assert len(error.strip().splitlines()) == 1
    assert not any((tmp_path / "corpus").iterdir())


@pytest.mark.parametrize("tool", ["prepare_genome", "make_shards", "make_patches"])
def test_help_loads_nothing_heavy(tool):
    begin = time.perf_counter()
    code = (
        f"import sys; from tools.{tool} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'zarr', 'torch', 'webdataset', 'omegaconf'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m tools." in done.stdout
    assert time.perf_counter() - begin < 5


def test_readers_do_not_import_torch(chlamydia_shards):
    code = (
        "import sys; from megatron_hyena.data.windows import WindowStream\n"
        f"WindowStream({str(chlamydia_shards / 'valid')!r}, 512, seed=0).window(3)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
