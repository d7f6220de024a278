"""Files, folders and globs: what each stands for, in the tool and in the library."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_hyena.errors import UserError
from megatron_hyena.formats.locate import (
    ANNOTATION_ENDINGS,
    SEQUENCE_ENDINGS,
    TRACK_ENDINGS,
    locate,
    without_endings,
)
from tools import prepare_genome


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "g"
    (root / "deep").mkdir(parents=True)
    for name in ("b.fa", "a.FASTA.gz", "c.txt", "z.2bit", "d.gff3", ".h.fa", "deep/e.fna.bgz"):
        (root / name).write_text("")
    (root / "x[1].fa").write_text("")
    return root


@pytest.mark.parametrize(
    ("given", "files"),
    [
        (["."], ["a.FASTA.gz", "b.fa", "x[1].fa", "z.2bit"]),
        (["c.txt", "b.fa"], ["c.txt", "b.fa"]),
        (["[bc].*"], ["b.fa", "c.txt"]),
        (["**/*.fna.*"], ["deep/e.fna.bgz"]),
        (["*", "b.fa"], ["a.FASTA.gz", "b.fa", "c.txt", "d.gff3", "deep/e.fna.bgz", "x[1].fa"]),
        (["z.2bit", ".", "b*"], ["z.2bit", "a.FASTA.gz", "b.fa", "x[1].fa"]),
        (["x[1].fa"], ["x[1].fa"]),
        (["nowhere.fa"], ["nowhere.fa"]),
    ],
)
def test_what_each_name_stands_for(folder, given, files):
    found = locate([folder / one for one in given], SEQUENCE_ENDINGS)
    expected = [*files, "z.2bit"] if given[0] == "*" else files
    assert [str(path.relative_to(folder)) for path in found] == expected


def test_names_that_stand_for_nothing(folder):
    with pytest.raises(UserError, match=r"g/\*\.bam matches no file; check the pattern"):
        locate([f"{folder}/*.bam"], SEQUENCE_ENDINGS)
    with pytest.raises(UserError, match=r"deep is a folder without files that end in \.bw, "):
        locate([folder / "deep"], TRACK_ENDINGS)
    assert [path.name for path in locate([folder], ANNOTATION_ENDINGS)] == ["d.gff3"]
    for remote in ("s3://bucket/a.fa", Path("https://host/a.fa")):
        with pytest.raises(UserError, match="is not on this machine; fetch it and name the copy"):
            locate([remote], SEQUENCE_ENDINGS)


def test_names_without_their_endings():
    names = {"a.fa.gz": "a", "A.b.GBK": "A.b", "x.gz": "x", "x": "x", "y.txt": "y.txt"}
    assert {name: without_endings(name) for name in names} == names


def test_the_tool_takes_folders_and_globs(tmp_path, capsys):
    (tmp_path / "g").mkdir()
    for name in "ab":
        (tmp_path / f"g/{name}.fa").write_text(f">{name}\nACGTACGT\n")
        (tmp_path / f"{name}.gff").write_text(f"{name}\tx\tgene\t1\t4\t.\t+\t.\tID=g\n")
        (tmp_path / f"{name}.bg").write_text(f"{name}\t0\t3\t1.5\n")
    command = ["--sequence", f"{tmp_path}/g/a.fa", "--fasta", f"{tmp_path}/g"]
    command += ["--gff", f"{tmp_path}/a.gff", "--annotation", f"{tmp_path}/*.gff"]
    command += ["--track", f"gc={tmp_path}/*.bg", "--output", f"{tmp_path}/out"]
    assert prepare_genome.main(command) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {"contigs 2", "features: gene 2", "track: gc 6 (37.50%), 1.5 to 1.5"} <= set(lines)
    assert prepare_genome.main([*command, "--overwrite", "--fasta", f"{tmp_path}/*.fa"]) == 2
    assert "*.fa matches no file" in capsys.readouterr().err


def test_the_help_names_every_ending(capsys):
    with pytest.raises(SystemExit):
        prepare_genome.main(["--help"])
    words = capsys.readouterr().out.replace(",", " ").replace("\n", " ").split()
    told = {f".{ending}" for ending in (*SEQUENCE_ENDINGS, *ANNOTATION_ENDINGS, *TRACK_ENDINGS)}
    assert told <= {word.rstrip(".") for word in words}
