"""Tensors on disk: written by any number of tensor ranks, read by any other."""

from __future__ import annotations

import pytest
import torch

from megatron_hyena.checkpoint.dense import load_dense
from megatron_hyena.checkpoint.format import Manifest, tensor_file, write_manifest
from megatron_hyena.checkpoint.tensors import WEIGHT, read_parameters, write_tensors
from megatron_hyena.config import Config, config_dict
from megatron_hyena.errors import UserError
from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.hyena_glt import HyenaGLT

VALUES = config_dict(Config())
VALUES["model"] |= {
    "pattern": "SMLHGAW",
    "hidden_size": 32,
    "num_heads": 4,
    "num_filter_groups": 4,
    "ffn_hidden_size": 16,
    "hyena_filter_order": 8,
}


def dense_model(seed: int) -> HyenaGLT:
    from megatron_hyena.config import HyenaGLTConfig

    return HyenaGLT(HyenaGLTConfig(**VALUES["model"]), seed=seed)


def save(folder, model, size):
    """What `size` tensor ranks would write."""
    folder.mkdir()
    for rank in range(size):
        parts = {
            f"{WEIGHT}/{name}": cut_of(p).take(p.detach(), rank, size)
            for name, p in model.named_parameters()
        }
        write_tensors(folder / tensor_file(rank, size), parts)
    described = {
        name: {"shape": list(p.shape), "dim": cut_of(p).dim, "blocks": cut_of(p).blocks}
        for name, p in model.named_parameters()
    }
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    manifest = Manifest(1, 8, VALUES["model"], VALUES, size, described, files)
    write_manifest(folder, manifest)
    return manifest


@pytest.mark.parametrize("saved", [1, 2, 4])
@pytest.mark.parametrize("read", [1, 2, 4])
def test_any_number_of_ranks_reads_its_own_parts(tmp_path, saved, read):
    model = dense_model(seed=3)
    manifest = save(tmp_path / "step", model, saved)
    parameters = dict(model.named_parameters())
    for rank in range(read):
        seen = set()
        for name, kinds in read_parameters(tmp_path / "step", manifest, [WEIGHT], rank, read):
            whole = parameters[name].detach()
            assert torch.equal(kinds[WEIGHT], cut_of(parameters[name]).take(whole, rank, read))
            seen.add(name)
        assert seen == parameters.keys()


def test_the_dense_model_comes_back(tmp_path):
    model = dense_model(seed=4)
    save(tmp_path / "step_00000001", model, 2)
    loaded, folder = load_dense(tmp_path)
    assert folder == tmp_path / "step_00000001"
    ids = torch.arange(64)[None] % 7
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)


def test_parameters_that_only_one_version_has_are_named(tmp_path):
    manifest = save(tmp_path / "step_00000001", dense_model(seed=4), 1)
    manifest.parameters["blocks.0.mixer.new"] = manifest.parameters.pop("blocks.0.mixer.taps")
    write_manifest(tmp_path / "step_00000001", manifest)
    with pytest.raises(UserError, match=r"step_00000001 was .* 'blocks.0.mixer.new' .*\(2 are\)"):
        load_dense(tmp_path)


def test_a_damaged_file_of_the_right_size_is_a_users_error(tmp_path):
    manifest = save(tmp_path / "step", dense_model(seed=5), 2)
    file = tmp_path / "step" / tensor_file(1, 2)
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(UserError, match="step: cannot read its tensors"):
        list(read_parameters(tmp_path / "step", manifest, [WEIGHT]))
