"""`transformers` models around `HyenaGLT`, for its Auto classes.

All of them hold the model as `model`, so that the weights of one open in another; heads for
classes and numbers are those of `megatron_hyena.model.heads`, as `classifier`. B batch, L bytes,
h hidden size, V vocabulary, C labels.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from megatron_hyena.checkpoint.huggingface.configuration_hyena_glt import HyenaGLTAutoConfig
from megatron_hyena.config.alphabet import pad_id
from megatron_hyena.generation.follower import Follower
from megatron_hyena.layers.embedding import Head
from megatron_hyena.layers.merging.rate import Rate
from megatron_hyena.model.heads import (
    Affine,
    RegressionHead,
    SequenceClassificationHead,
    TaskHead,
    TokenClassificationHead,
)
from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.model.pooling import Pooling


class HyenaGLTPreTrainedModel(PreTrainedModel):
    """What the models have in common: `self.model`, and how a mask becomes padding."""

    config_class = HyenaGLTAutoConfig
    base_model_prefix = "model"
    accepts_loss_kwargs = False

    def __init__(self, config: HyenaGLTAutoConfig) -> None:
        super().__init__(config)
        self.model = HyenaGLT(config.architecture())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """What a folder may lack: heads, and the counts of merging. The rest has drawn itself."""
        if isinstance(module, Affine):
            bound = 1 / math.sqrt(module.weight.shape[1])
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Pooling) and module.kind == "attention":
            nn.init.normal_(module.score, std=1 / math.sqrt(len(module.score)))
        elif isinstance(module, Head):
            nn.init.normal_(module.weight, std=self.config.init_std)
        elif isinstance(module, Rate):
            module.counts.zero_()

    def get_input_embeddings(self) -> nn.Module:
        """The byte embedding."""
        return self.model.embedding

    def _padded(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """ids [B, L] with PAD where the mask is 0, which must be at the end of each row."""
        if attention_mask is None:
            return input_ids
        if bool((attention_mask.diff(dim=1) > 0).any()):
            raise ValueError("pad at the end of the sequences (padding_side='right')")
        pad = pad_id(self.model.config)
        return input_ids if pad is None else input_ids.masked_fill(attention_mask == 0, pad)

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Final hidden states [B, L, h]."""
        padded = self._padded(input_ids, attention_mask)
        return self.model.hidden(padded)[: input_ids.shape[1]].transpose(0, 1)


class HyenaGLTModel(HyenaGLTPreTrainedModel):
    """Final hidden states, without a head."""

    _keys_to_ignore_on_load_unexpected = [r"^model\.head\.", r"^classifier\."]  # noqa: RUF012

    def __init__(self, config: HyenaGLTAutoConfig) -> None:
        super().__init__(config)
        del self.model.head
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> BaseModelOutput:
        """Byte values [B, L] to states [B, L, h]; pad at the end."""
        return BaseModelOutput(last_hidden_state=self._hidden(input_ids, attention_mask))


class _LanguageModel(HyenaGLTPreTrainedModel):
    """A model with its own head over bytes."""

    _tied_weights_keys = {"model.head.weight": "model.embedding.weight"}  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]  # noqa: RUF012
    causal: ClassVar[bool]

    def __init__(self, config: HyenaGLTAutoConfig) -> None:
        super().__init__(config)
        if config.causal != self.causal:
            use = "AutoModelForCausalLM" if config.causal else "AutoModelForMaskedLM"
            raise ValueError(f"this model has causal={config.causal}: open it by {use}")
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.model.head

    def _read(
        self, input_ids: Tensor, mask: Tensor | None, labels: Tensor | None, states: bool | None
    ) -> dict[str, Any]:
        out = self.model(self._padded(input_ids, mask), labels=labels)
        kept = (out.last_hidden_state,) if states else None
        return {"loss": out.loss, "logits": out.logits, "hidden_states": kept}


class HyenaGLTForCausalLM(_LanguageModel, GenerationMixin):
    """Next-byte logits of a causal Hyena-GLT."""

    causal = True
    _is_stateful = True  # so that transformers refuses to take bytes back (assisted generation)
    _follower: Follower | None = None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        follow: bool = False,
        **_: Any,
    ) -> CausalLMOutput:
        """Byte values [B, L] to logits [B, L, V]; `labels` are shifted by the model.

        The model is causal, so padding must be at the end: a mask that hides anything but a tail
        is refused. Only the final states are among `hidden_states`. `follow` is what `generate`
        says: only the last logits are wanted, [B, 1, V], and padding is in front.
        """
        if follow and self._follower is not None:
            logits = self._follower.logits(input_ids, attention_mask)
            return CausalLMOutput(logits=logits[:, None])
        return CausalLMOutput(**self._read(input_ids, attention_mask, labels, output_hidden_states))

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """transformers asks this before it makes a cache of keys and values."""
        return False

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own: each byte is one step, unless `use_cache=False` asks for passes.

        The state is this model's, not a cache of transformers, and ends with the call. Prompts of
        several lengths have their padding in front (`padding_side="left"`), where `attention_mask`
        is 0.
        """
        self._follower = Follower(self.model)
        try:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._follower = None

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *_: Any,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **__: Any,
    ) -> dict[str, Any]:
        """All of the sequence, of which `Follower` knows how much was read."""
        follow = use_cache is not False and not output_hidden_states
        if attention_mask is not None and bool(attention_mask.all()):
            attention_mask = None
        if attention_mask is not None and not follow:
            raise ValueError(
                "prompts of several lengths are written by steps alone; leave out use_cache=False "
                "and output_hidden_states"
            )
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "output_hidden_states": output_hidden_states,
            "follow": follow,
        }


class HyenaGLTForMaskedLM(_LanguageModel):
    """Logits of hidden bytes, of a Hyena-GLT that reads both sides."""

    causal = False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> MaskedLMOutput:
        """Byte values [B, L] to logits [B, L, V]; `labels` of -100 are not scored."""
        return MaskedLMOutput(**self._read(input_ids, attention_mask, labels, output_hidden_states))


class _WithHead(HyenaGLTPreTrainedModel):
    """A model with a head for labels in the place of the one over bytes."""

    _keys_to_ignore_on_load_unexpected = [r"^model\.head\."]  # noqa: RUF012

    def __init__(self, config: HyenaGLTAutoConfig) -> None:
        super().__init__(config)
        del self.model.head
        self.num_labels = config.num_labels
        self.classifier = self._new_head(config)
        self.post_init()

    def _new_head(self, config: HyenaGLTAutoConfig) -> TaskHead:
        raise NotImplementedError

    def _predict(
        self, input_ids: Tensor, mask: Tensor | None, states: bool | None
    ) -> dict[str, Any]:
        hidden = self._hidden(input_ids, mask)
        kept = (hidden,) if states else None
        return {"logits": self.classifier(hidden, mask), "hidden_states": kept}


class HyenaGLTForSequenceClassification(_WithHead):
    """Classes or numbers of whole sequences.

    `problem_type` of `regression`, or one label without a `problem_type`, gives numbers.
    """

    def _new_head(self, config: HyenaGLTAutoConfig) -> TaskHead:
        width, pooling = config.hidden_size, config.classifier_pooling
        labels, dropout = config.num_labels or 0, config.classifier_dropout
        if not config.regresses:
            return SequenceClassificationHead(width, labels, dropout, pooling)
        return RegressionHead(
            width,
            labels,
            dropout,
            config.regression_loss,
            pooling,
            delta=config.regression_delta,
            target_mean=config.target_mean,
            target_std=config.target_std,
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Byte values [B, L] to logits (or numbers) [B, C].

        The mask says which bytes the head reads, and must be of a tail. `labels` are classes [B]
        (-100 is not scored), numbers [B] or [B, C] of a regression (NaN is not scored), or 0 and
        1 [B, C] where several labels may hold (`problem_type` `multi_label_classification`).
        """
        found = self._predict(input_ids, attention_mask, output_hidden_states)
        loss = None if labels is None else self._loss(found["logits"], labels)
        return SequenceClassifierOutput(loss=loss, **found)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        wanted = labels.to(logits.dtype) if self.config.regresses else labels
        return self.classifier.loss(logits, wanted)


class HyenaGLTForTokenClassification(_WithHead):
    """A class for each byte."""

    def _new_head(self, config: HyenaGLTAutoConfig) -> TaskHead:
        return TokenClassificationHead(
            config.hidden_size, config.num_labels or 0, config.classifier_dropout
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> TokenClassifierOutput:
        """Byte values [B, L] to logits [B, L, C]; `labels` [B, L], -100 is not scored."""
        found = self._predict(input_ids, attention_mask, output_hidden_states)
        loss = None if labels is None else self.classifier.loss(found["logits"], labels)
        return TokenClassifierOutput(loss=loss, **found)
