"""`transformers` model around `HyenaGLT`, for `AutoModelForCausalLM`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from megatron_hyena.checkpoint.huggingface.configuration_hyena_glt import HyenaGLTAutoConfig
from megatron_hyena.model.hyena_glt import HyenaGLT


class HyenaGLTForCausalLM(PreTrainedModel, GenerationMixin):
    """Next-byte logits of a causal Hyena-GLT."""

    config_class = HyenaGLTAutoConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"model.head.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: HyenaGLTAutoConfig) -> None:
        super().__init__(config)
        self.model = HyenaGLT(config.architecture())
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """`HyenaGLT` has drawn its own weights."""

    def get_input_embeddings(self) -> nn.Module:
        """The byte embedding."""
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.model.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        """Byte values [B, L] to logits [B, L, V]; `labels` are shifted by the model.

        The model is causal and has no padding mask: pad at the end. A mask that hides anything but
        a tail is refused.
        """
        if attention_mask is not None and bool((attention_mask.diff(dim=1) > 0).any()):
            raise ValueError("pad at the end of the sequences (padding_side='right')")
        out = self.model(input_ids, labels=labels)
        states: Any = (out.last_hidden_state,) if output_hidden_states else None
        return CausalLMOutput(loss=out.loss, logits=out.logits, hidden_states=states)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *_: Any, **__: Any
    ) -> dict[str, Any]:
        """Generation recomputes the whole sequence for every byte: there is no cache."""
        return {"input_ids": input_ids}
