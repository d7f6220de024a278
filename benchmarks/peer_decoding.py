"""Cached decoding of the published implementations, and our models of the same weights.

`stripedhyena` with L and A, `vtx` with S, M, L and A, both with random weights, which the converter
reads from their own files. Only for processes that may keep the stand-ins of `tests.peers.shims`,
in a folder of their own: vortex opens a log wherever it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_hyena import Decoder, HyenaGLT
from megatron_hyena.generation.column_first import column_first
from tests.peers import shims, stripedhyena_cases, vtx_cases
from tests.peers.converting import TOLERANCE, convert, write_peer
from tests.peers.tiny import EVO1, EVO2


class Peer:
    """Their decoding behind a prompt, ids [l], that is read at once."""

    def __init__(self, model: Any, prompt: Tensor) -> None:
        self.model, self.length = model, len(prompt)
        with torch.inference_mode():
            self.state = model.initialize_inference_params()
            self.logits = model(prompt[None], inference_params_dict=self.state)[0][:, -1]

    def step(self, ids_B: Tensor) -> None:
        """Go on by one base."""
        with torch.inference_mode():
            for part in self.state.values():
                part.seqlen_offset = self.length
            found = self.model(ids_B[:, None], inference_params_dict=self.state)[0]
        self.logits, self.length = found[:, -1], self.length + 1


def pairs(width: int, folder: Path) -> Iterator[tuple[str, Any, HyenaGLT]]:
    """Name, their model of eight layers and ours."""
    shims.install()
    inner, heads = -(-8 * width // 3 // 64) * 64, width // 32
    shared = {
        **{"hidden_size": width, "num_filters": width, "num_attention_heads": heads},
        **{"inner_mlp_size": inner, "num_layers": 8, "max_seqlen": 8192},
    }
    first = EVO1 | shared | {"attn_layer_idxs": [3, 7], "hyena_layer_idxs": [0, 1, 2, 4, 5, 6]}
    places = {f"hc{k}_layer_idxs": [n, n + 4] for n, k in enumerate("sml")}
    groups = {f"hc{k}_filter_groups": width // 16 for k in "sm"} | {"hcl_filter_groups": width}
    second = EVO2 | shared | places | groups | {"attn_layer_idxs": [3, 7]}
    for name, cases, config in (
        ("stripedhyena", stripedhyena_cases, first),
        ("vtx", vtx_cases, second),
    ):
        model, file = cases.build(config, {})
        load = (
            model.load_state_dict if cases is stripedhyena_cases else model.custom_load_state_dict
        )
        load({key: tensor.clone() for key, tensor in file.items()}, strict=True)
        written = write_peer(
            folder / name, {key: tensor.numpy() for key, tensor in file.items()}, config
        )
        ours = HyenaGLT.from_pretrained(convert(written, "native", folder / f"{name}-converted"))
        yield name, model, column_first(ours.eval())


def check_same(theirs: Peer, ours: Decoder, bases: int) -> None:
    """Both go on by the likeliest bases; fails unless these and the logits are the same."""
    for _ in range(bases):
        worst = (theirs.logits - ours.logits).abs().max() / theirs.logits.abs().max()
        assert worst < TOLERANCE, f"logits are {worst:.1e} apart"
        chosen = ours.logits.argmax(1)
        assert torch.equal(theirs.logits.argmax(1), chosen), "other bases are the likeliest"
        theirs.step(chosen)
        ours.step(chosen)
