"""DNA, RNA and protein: what each may hold, what of it is scored, which strands it has."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from megatron_hyena.data.alphabet import (
    AMINO_ACIDS,
    EOD,
    IUPAC,
    MASK,
    PAD,
    SequenceType,
    reverse_complement,
    unknown_letters,
)
from megatron_hyena.data.batch import make_batch, stacked_batch
from megatron_hyena.data.loader import micro_batches
from megatron_hyena.data.packing import PackedStream
from megatron_hyena.data.sealed import seal, unseal
from megatron_hyena.data.shard_index import ShardIndex
from megatron_hyena.data.shard_reader import open_runs
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.data.windows import ChosenWindows, WindowStream, sequential_windows
from megatron_hyena.errors import UserError
from megatron_hyena.formats.fasta import read_pieces
from tests.oracles.window_order import laid_runs, laid_windows
from tools import make_shards, prepare_genome

DNA, RNA, PROTEIN, MIXED = SequenceType
LETTERS = {DNA: b"ACGTacgtN", RNA: b"ACGUacguN", PROTEIN: b"ACDEFGHIKLMNPQRSTVWYXU*"}


def _store(folder: Path, kind: SequenceType, *contigs: bytes) -> GenomeStore:
    folder.mkdir()
    fasta = folder / "a.fa"
    fasta.write_bytes(b"".join(b">%d\n%s\n" % pair for pair in enumerate(contigs)))
    return write_store(folder / "genome.zarr", [fasta], kind=kind)


def _shards(folder: Path, kind: SequenceType, *contigs: bytes, piece: int = 50) -> Path:
    store = _store(folder, kind, *contigs)
    settings = ShardSettings(SplitRule(0, 0), piece_length=piece, shard_size=120)
    write_shards(store, folder / "shards", settings)
    return folder / "shards" / "train"


@pytest.fixture(scope="module")
def contigs() -> dict[SequenceType, list[bytes]]:
    draw = np.random.default_rng(9)
    lengths = {DNA: (205, 33), RNA: (150, 9, 60), PROTEIN: (70, 120, 5, 44)}
    return {
        kind: [
            draw.choice(np.frombuffer(LETTERS[kind], np.uint8), n).tobytes() for n in lengths[kind]
        ]
        for kind in lengths
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory, contigs) -> dict[SequenceType, Path]:
    root = tmp_path_factory.mktemp("types")
    return {kind: _shards(root / kind.name, kind, *texts) for kind, texts in contigs.items()}


def test_numbers_and_names_are_fixed():
    assert [kind.value for kind in SequenceType] == [0, 1, 2, 3]
    assert [SequenceType.named(n) for n in ("dna", "rna", "protein", "mixed")] == [*SequenceType]
    with pytest.raises(UserError, match=r"'DNA' is no sequence type; use one of dna, rna, prot"):
        SequenceType.named("DNA")


def test_unknown_letters_are_those_of_the_type():
    content = np.frombuffer(b"ANXnxB", np.uint8)
    for kind, expected in ((DNA, "010100"), (RNA, "010100"), (PROTEIN, "001010")):
        assert "".join("01"[int(b)] for b in unknown_letters(kind, content)) == expected
    types = np.array([DNA, DNA, PROTEIN, PROTEIN, DNA, RNA], dtype=np.uint8)
    assert unknown_letters(types, content).tolist() == [False, True, True, False, False, False]


@pytest.mark.parametrize("kind", SequenceType)
def test_every_letter_of_a_type_is_kept_as_it_is(tmp_path, kind):
    text = (IUPAC if kind in (DNA, RNA) else AMINO_ACIDS).encode()
    store = _store(tmp_path / "x", kind, text)
    assert store.read("0", 0, len(text)).tobytes() == text
    assert store.type is kind
    assert store.attributes["type"] == kind.name.lower()


@pytest.mark.parametrize("kind", [DNA, RNA])
def test_protein_is_refused_as_nucleic_acid(tmp_path, kind):
    path = tmp_path / "p.fa"
    path.write_text(">p1 albumin\nMKWVTFISLL\n")
    with pytest.raises(
        UserError, match=r"holds 'F' at position 6, which is no IUPAC nuc.*--type protein if these"
    ):
        list(read_pieces(path, kind=kind))
    (piece,) = read_pieces(path, kind=PROTEIN)
    assert piece.bases.tobytes() == b"MKWVTFISLL"
    path.write_text(">p1\nAC-GT\n")
    with pytest.raises(UserError, match=r"holds '-' at position 3.*correct or remove it$"):
        list(read_pieces(path, kind=kind))


@pytest.mark.parametrize("kind", [PROTEIN, MIXED])
def test_what_is_no_amino_acid_is_refused(tmp_path, kind):
    path = tmp_path / "p.fa"
    path.write_text(">p1\nMKW1\n")
    with pytest.raises(UserError, match="holds '1' at position 4, which is no IUPAC amino-acid"):
        list(read_pieces(path, kind=kind))


def test_composition_counts_what_the_type_has(tmp_path):
    protein = _store(tmp_path / "p", PROTEIN, b"NNXxGCm")
    assert protein.attributes["composition"] == {"bases": 7, "x": 2, "lower_case": 2}
    rna = _store(tmp_path / "r", RNA, b"NNXGCUu".replace(b"X", b""))
    assert rna.attributes["composition"] == {"bases": 6, "gc": 2, "n": 2, "lower_case": 1}


@pytest.mark.parametrize(("kind", "left_out"), [(DNA, b"N"), (RNA, b"n"), (PROTEIN, b"X")])
def test_pieces_of_unknown_letters_alone_are_left_out(tmp_path, kind, left_out):
    other = b"X" if left_out != b"X" else b"N"
    kept = b"GGGGG" if other == b"X" else b"NNNNN"
    folder = _shards(tmp_path / "x", kind, b"ACGGT" + left_out * 5 + kept, piece=5)
    found = [(run.start, run.read(0, run.length).tobytes()) for run in open_runs(folder)]
    assert found == [(0, b"ACGGT"), (10, kept)]
    assert {run.type for run in open_runs(folder)} == {kind}


def test_asparagine_is_scored_and_an_unknown_residue_is_not():
    window = np.array([77, ord("N"), ord("X"), ord("n"), ord("x"), PAD, EOD, MASK, 75], np.uint8)
    for kind in (PROTEIN, MIXED):
        assert make_batch([window], types=kind).weights[0].tolist() == [1, 0, 1, 0, 0, 0, 0, 1]
    for kind in (DNA, RNA):
        assert make_batch([window], types=kind).weights[0].tolist() == [0, 1, 0, 1, 0, 0, 0, 1]
    types = np.array([[0, 0, 0, 2, 2, 2, 2, 2, 2]], dtype=np.uint8)
    assert make_batch([window], types=types).weights[0].tolist() == [0, 1, 1, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("kind", [RNA, PROTEIN, MIXED])
def test_only_dna_is_read_from_the_other_strand(tmp_path, contigs, folders, kind):
    folder = folders.get(kind) or _shards(tmp_path / "m", kind, *contigs[PROTEIN])
    for stream_of in (WindowStream, PackedStream):
        both = stream_of(folder, 20, seed=4, augment_reverse_complement=True)
        plain = stream_of(folder, 20, seed=4)
        for position in range(3 * plain.windows_per_epoch):
            shown, window = both.window(position), plain.window(position)
            assert shown.bases.tobytes() == window.bases.tobytes()
            assert (shown.types == kind).all()


def _three(folders: dict[SequenceType, Path]) -> str:
    return ", ".join(str(folders[kind]) for kind in (DNA, RNA, PROTEIN))


def test_several_folders_make_one_stream(contigs, folders):
    stream = WindowStream(_three(folders), 20, seed=3, augment_reverse_complement=True)
    assert [run.type for run in stream.runs] == [DNA] * 2 + [RNA] * 3 + [PROTEIN] * 4
    found = [run.read(0, run.length).tobytes() for run in stream.runs]
    assert found == list(chain.from_iterable(contigs.values()))
    seen, turned = set(), 0
    for position in range(6 * stream.windows_per_epoch):
        window = stream.window(position)
        (number,) = set(window.types.tolist())
        kind = SequenceType(number)
        bases = window.bases[window.bases != PAD]
        text = bases.tobytes()
        if not any(text in contig for contig in contigs[kind]):
            other = reverse_complement(bases).tobytes()
            assert kind is DNA
            assert any(other in contig for contig in contigs[DNA])
            turned += 1
        seen.add(kind)
    assert seen == {DNA, RNA, PROTEIN}
    assert turned > 5


def test_packed_windows_of_several_types_against_the_string_laid_by_hand(folders, contigs):
    stream = PackedStream(
        _three(folders), 30, seed=6, augment_reverse_complement=True, tracks=["type"]
    )
    of_run = [kind for kind, texts in contigs.items() for _ in texts]
    runs = list(chain.from_iterable(contigs.values()))
    several = 0
    for epoch in range(4):
        laid: list[tuple[int, int]] = []
        for number, turned in laid_runs(len(runs), stream.seed, epoch):
            text = runs[number]
            if turned and of_run[number] is DNA:
                text = text[::-1].translate(bytes.maketrans(b"ACGTacgt", b"TGCAtgca"))
            laid += [(byte, number) for byte in text]
        windows = laid_windows(laid, 30, stream.seed, epoch, (PAD, -1))
        assert len(windows) == stream.windows_per_epoch
        for shown, expected in enumerate(windows):
            window = stream.window(epoch * len(windows) + shown)
            bases, documents = (list(part) for part in zip(*expected, strict=True))
            short = documents.count(-1)
            documents[31 - short :] = [documents[30 - short]] * short
            assert window.bases.tolist() == bases
            assert window.documents is not None
            assert window.documents.tolist() == documents
            types = [int(of_run[number]) for number in documents]
            assert window.types.tolist() == types
            assert window.tracks["type"].tolist() == types
            several += len(set(types)) > 1
    assert several > 3


def test_batches_weigh_each_byte_by_its_own_type(folders):
    stream = PackedStream(_three(folders), 30, seed=6, tracks=["type"])
    checked = set()
    for step in range(3 * stream.windows_per_epoch):
        (batch,) = micro_batches(stream, step, 1, 1, 0, 1)
        window = stream.window(step)
        assert batch.tracks["type"].tolist() == [window.types[:-1].tolist()]
        assert window.documents is not None
        for j, weight in enumerate(batch.weights[0].tolist()):
            letter, kind = chr(window.bases[j + 1]), SequenceType(int(window.types[j + 1]))
            crosses = window.documents[j] != window.documents[j + 1]
            known = letter not in (chr(PAD), "X" if kind is PROTEIN else "N")
            assert weight == float(known and not crosses)
            checked.add((letter, kind))
    assert {("N", DNA), ("N", RNA), ("N", PROTEIN), ("X", PROTEIN), ("U", PROTEIN)} <= checked


def test_validation_windows_know_their_type(folders):
    windows = sequential_windows(_three(folders), 40, 1, tracks=["type"])
    chosen = ChosenWindows(windows, 7)
    for windows_ in (windows, chosen):
        for i in range(len(windows_)):
            window = windows_.window(i)
            (number,) = set(window.types.tolist())
            assert window.tracks["type"].tolist() == [number] * 41
            bases, weights = windows_[i]
            assert np.array_equal(bases, window.bases)
            assert np.array_equal(weights, windows_.weights(i))
    kinds = [int(windows.window(i).types[0]) for i in range(len(windows))]
    assert kinds == sorted(kinds)
    assert set(kinds) == {0, 1, 2}
    batch = stacked_batch([windows.window(0), windows.window(len(windows) - 1)])
    assert batch.tracks["type"].tolist() == [[0] * 40, [2] * 40]


def test_shards_of_an_older_version_hold_dna(tmp_path, folders):
    folder = tmp_path / "old"
    folder.mkdir()
    for path in folders[DNA].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    index = json.loads((folder / "index.json").read_text())
    del index["type"], index["tracks"], index["provenance"], index["digest"]
    assert not any("tracks" in sample for shard in index["shards"] for sample in shard["samples"])
    (folder / "index.json").write_text(json.dumps(index))
    old, new = (WindowStream(f, 20, seed=1, tracks=["type"]) for f in (folder, folders[DNA]))
    for position in range(2 * new.windows_per_epoch):
        window = old.window(position)
        assert window.bases.tobytes() == new.window(position).bases.tobytes()
        assert window.tracks["type"].tolist() == [0] * 21


def test_an_index_of_an_unknown_type_is_refused(tmp_path, folders):
    folder = tmp_path / "strange"
    folder.mkdir()
    for path in folders[RNA].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    index = unseal((folder / "index.json").read_bytes())
    (folder / "index.json").write_bytes(seal({**index, "type": "xna"}))
    with pytest.raises(UserError, match=r"index\.json: 'xna' is no sequence type.*make_shards"):
        open_runs(folder)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("{dna},", "too few; mind its commas"),
        ("{dna},{dna}", "names .* twice; keep one"),
        ("{dna},nowhere", "nowhere matches no shards"),
    ],
)
def test_bad_lists_of_folders(folders, names, sentence):
    with pytest.raises(UserError, match=sentence):
        open_runs(names.format(dna=folders[DNA]))


def test_a_comma_in_a_name_is_no_separator(tmp_path, contigs):
    folder = _shards(tmp_path / "a,b", DNA, *contigs[DNA])
    assert len(open_runs(folder)) == 2


def test_a_glob_among_several(folders):
    pattern = f"{folders[DNA].parents[1].parent}/[DR]NA/shards/train,{folders[PROTEIN]}"
    assert [run.type for run in open_runs(pattern)] == [DNA] * 2 + [RNA] * 3 + [PROTEIN] * 4


def test_the_tools_from_protein_fasta_to_shards(tmp_path, capsys):
    (tmp_path / "p.fa").write_text(">p\n" + "MKWVTFISLLnX" * 20 + "\n")
    command = ["--fasta", str(tmp_path / "p.fa"), "--output", str(tmp_path)]
    assert prepare_genome.main(command) == 2
    assert "pass --type protein" in capsys.readouterr().err
    assert prepare_genome.main([*command, "--type", "dog"]) == 2
    assert "'dog' is no sequence type" in capsys.readouterr().err
    assert prepare_genome.main([*command, "--type", "protein"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {"type protein", "letters 240", "X 20 (8.33%)", "lower case 20"} <= set(lines)
    store, out = str(tmp_path / "genome.zarr"), str(tmp_path / "shards")
    assert make_shards.main(["--store", store, "--output", out, "--gap", "0"]) == 0
    out = capsys.readouterr().out
    assert "protein shards in" in out
    assert "pieces of X alone" in out
    assert ShardIndex.read(tmp_path / "shards" / "train").type == "protein"


def test_markov_models_are_of_nucleic_acids(folders):
    from pretrain.evaluate import _check_nucleic

    source = {"train": str(folders[RNA]), "test": str(folders[PROTEIN])}
    opened = {name: open_runs(path) for name, path in source.items()}
    with pytest.raises(UserError, match=r"PROTEIN.* holds protein sequence.*with --test"):
        _check_nucleic(source, opened)
    _check_nucleic({"train": source["train"]}, {"train": opened["train"]})
