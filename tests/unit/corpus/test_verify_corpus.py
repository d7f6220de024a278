"""Verification: whatever is changed, missing, foreign or of another version is named."""

from __future__ import annotations

import random
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_hyena.corpus.build import Corpus, build
from megatron_hyena.corpus.options import load_options
from megatron_hyena.corpus.verify import findings_of, open_check
from megatron_hyena.errors import UserError
from tests.oracles.small_corpus import OVERRIDES, tree, write_inputs
from tools import verify_corpus

KINDS = {
    "shards": "shards/**/*.tar",
    "indices": "shards/**/index.json",
    "stores": "stores/**/*",
    "manifest": "manifest.json",
    "plan and records": "[pr]*/*",
}


@contextmanager
def silent(stage: str, total: int):
    yield lambda size: None


def make(root: Path, sheet: Path, *overrides: str) -> Path:
    options = load_options(None, [f"inputs.sheet={sheet}", *OVERRIDES, *overrides])
    build(Corpus.open(root, options), silent)
    return root


@pytest.fixture(scope="module")
def sheet(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, sheet) -> Path:
    return make(tmp_path_factory.mktemp("corpus") / "small", sheet)


@pytest.fixture
def corpus(tmp_path, made) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def findings(folder: Path, quick: bool = False) -> list[str]:
    return [f for check in open_check(folder) for f in findings_of(check, quick=quick)]


def test_a_whole_corpus_has_no_findings(corpus):
    assert findings(corpus) == []
    for part in ("shards", "shards/dna/train", "stores/alpha.zarr", "records"):
        assert findings(corpus / part) == []


def test_two_hundred_flipped_bits_are_each_found_and_named(corpus):
    draw = random.Random(5)
    places = {
        kind: sorted(path for path in corpus.glob(pattern) if path.is_file())
        for kind, pattern in KINDS.items()
    }
    assert all(places.values())
    for number in range(200):
        path = draw.choice(places[list(KINDS)[number % len(KINDS)]])
        content = path.read_bytes()
        place = draw.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        found = findings(corpus)
        assert len(found) == 1, f"{path} at {place}: {found}"
        assert found[0].startswith(str(path)), found
        if number % 50 == 0 and path.name != "manifest.json":
            assert findings(path.parent) == found  # a part, by the manifest above it
        path.write_bytes(content)
    assert findings(corpus) == []


def test_missing_extra_and_short_files_are_named(corpus):
    missing = corpus / "shards/dna/train/shard-000001.tar"
    short = corpus / "stores/alpha.zarr/bases/c/0"
    extra = corpus / "shards/dna/train/shard-000099.tar"
    missing.unlink()
    short.write_bytes(short.read_bytes()[:-1])
    extra.write_bytes(b"x")
    for quick in (False, True):
        assert findings(corpus, quick) == [
            f"{missing}: in manifest.json but missing",
            f"{extra}: not in manifest.json; it belongs to something else: remove it",
            f"{short}: {short.stat().st_size} bytes, not {short.stat().st_size + 1} as "
            "manifest.json says",
        ]


def test_quick_looks_at_sizes_only(corpus):
    path = corpus / "shards/dna/train/shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    assert findings(corpus, quick=True) == []
    assert findings(corpus) == [f"{path}: damaged: its SHA-256 is not the one in manifest.json"]


def test_parts_of_another_version_are_named(tmp_path, corpus, sheet):
    other = make(tmp_path / "other", sheet, "splits.seed=4")
    for name in ("shards/dna/valid", "shards/dna/test"):
        shutil.rmtree(corpus / name)
        shutil.copytree(other / name, corpus / name)
    found = findings(corpus)
    for name in ("shards/dna/valid", "shards/dna/test"):
        assert any(
            line.startswith(f"{corpus / name}/index.json: of another version of the corpus")
            for line in found
        )


def test_shards_without_a_corpus_are_compared_with_their_index(tmp_path, corpus, sheet):
    folder = tmp_path / "moved"
    shutil.copytree(corpus / "shards/dna", folder)
    assert findings(folder) == findings(folder / "train") == []
    (folder / "train/shard-000000.tar").unlink()
    (folder / "valid/note.txt").write_text("x")
    index = folder / "test/index.json"
    index.write_bytes(index.read_bytes().replace(b'"split"', b'"spilt"', 1))
    lines = findings(folder)
    assert len(lines) == 3
    for part in ("test/index.json is damaged", "but missing", "note.txt: not in index.json"):
        assert sum(part in line for line in lines) == 1
    other = make(tmp_path / "other", sheet, "splits.seed=4")
    shutil.rmtree(folder / "test")
    shutil.copytree(other / "shards/dna/test", folder / "test")
    assert any("the folders are mixed" in line for line in findings(folder))


def test_every_bit_of_an_index_alone_counts(tmp_path, corpus):
    folder = tmp_path / "moved"
    shutil.copytree(corpus / "shards/protein/test", folder)
    index = folder / "index.json"
    content = index.read_bytes()
    draw = random.Random(6)
    for _ in range(200):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        index.write_bytes(changed)
        assert len(findings(folder)) == 1


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_named_can_be_deleted_and_comes_back(corpus, sheet, kind):
    before = tree(corpus)
    path = max(corpus.glob(KINDS[kind]), key=lambda path: (path.is_file(), str(path)))
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)
    (finding,) = findings(corpus)
    assert finding.startswith(str(path))
    path.unlink()
    make(corpus, sheet)
    assert tree(corpus) == before


def test_folders_that_are_none_of_ours(tmp_path, corpus):
    with pytest.raises(UserError, match=r"neither it nor a folder above it has a manifest\.json"):
        open_check(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        open_check(tmp_path / "nowhere")
    (corpus / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"finish it with tools\.prepare_corpus"):
        open_check(corpus)


def test_the_program_says_it_and_exits_with_it(tmp_path, corpus, capsys):
    assert verify_corpus.main([str(corpus)]) == 0
    assert "all is well" in capsys.readouterr().out
    before = tree(corpus)
    path = corpus / "records/beta.npz"
    path.write_bytes(path.read_bytes() + b"x")
    assert verify_corpus.main([str(corpus), "--quick"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"{path}: ")
    assert told[1].endswith(": 1 findings")
    assert len(told) == 2
    assert verify_corpus.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    path.write_bytes(before["records/beta.npz"])
    assert tree(corpus) == before
