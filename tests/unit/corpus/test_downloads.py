"""Samples of an object store or a web server: the corpus that their files here would give."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_hyena.corpus.build import Corpus, build
from megatron_hyena.corpus.manifest import Manifest
from megatron_hyena.corpus.options import load_options
from megatron_hyena.errors import UserError
from tests.oracles.small_corpus import OVERRIDES, tree, write_inputs
from tests.oracles.stores import WebFolder

pytestmark = pytest.mark.smoke


@contextmanager
def silent(stage: str, total: int):
    yield lambda size: None


def make(root: Path, sheet: Path) -> Manifest:
    options = load_options(None, [f"inputs.sheet={sheet}", *OVERRIDES])
    return build(Corpus.open(root, options), silent)


def test_remote_samples_give_the_same_stores_and_shards(tmp_path, bucket):
    sheet = write_inputs(tmp_path / "web")
    here = make(tmp_path / "here", sheet)
    alpha = bucket.put("genomes/alpha.fa.gz", (sheet.parent / "alpha.fa.gz").read_bytes())
    bucket.trouble.plan("alpha.fa.gz", "cut")
    shutil.copy(sheet.parent / "beta.fa.gz", tmp_path)
    with WebFolder(sheet.parent) as web:
        remote = tmp_path / "remote.tsv"
        text = sheet.read_text().replace("\nalpha.fa.gz", f"\n{alpha}")
        remote.write_text(text.replace("\ngamma.fa.gz", f"\n{web.url}/gamma.fa.gz"))
        there = make(tmp_path / "there", remote)
        assert make(tmp_path / "there", remote) == there
    assert [source["location"] for source in there.sources] == [
        alpha,
        str(tmp_path / "beta.fa.gz"),
        f"{web.url}/gamma.fa.gz",
    ]
    for key in ("sha256", "md5", "bytes", "file"):
        assert [s[key] for s in there.sources] == [s[key] for s in here.sources]
    first, second = (tree(tmp_path / name) for name in ("here", "there"))
    data = {name for name in first if name.startswith(("stores", "records", "plan"))}
    data |= {name for name in first if name.endswith(".tar")}
    assert {name: first[name] for name in data} == {name: second[name] for name in data}
    assert there.content == here.content
    assert not list((tmp_path / "there").rglob(".downloads"))


def test_what_cannot_be_fetched_is_one_sentence(tmp_path, bucket):
    for url, message in (
        (f"{bucket.url}/none.fa", r"none\.fa"),
        ("ftp://host/a.fa", "ftp:// is not read"),
    ):
        sheet = tmp_path / "samples.tsv"
        sheet.write_text(f"path\n{url}\n")
        with pytest.raises(UserError, match=message):
            make(tmp_path / "corpus", sheet)
