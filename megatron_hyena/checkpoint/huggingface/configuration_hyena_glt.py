"""`transformers` configuration of Hyena-GLT: the fields of `HyenaGLTConfig`, and of a head."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from megatron_hyena.checkpoint.huggingface.exported_fields import (
    HEAD_DEFAULTS,
    exported_architecture,
    exported_fields,
)
from megatron_hyena.config.model import HyenaGLTConfig


class HyenaGLTAutoConfig(PretrainedConfig):
    """Architecture of an exported model; `architecture()` gives it as `HyenaGLTConfig`."""

    model_type = "hyena_glt"

    def __init__(self, **values: Any) -> None:
        defaults = exported_fields(HyenaGLTConfig()) | HEAD_DEFAULTS
        for name, default in defaults.items():
            setattr(self, name, values.pop(name, default))
        values["tie_word_embeddings"] = self.tie_embeddings
        values.setdefault("eos_token_id", 0)
        values.setdefault("pad_token_id", 1)
        super().__init__(**values)

    def architecture(self) -> HyenaGLTConfig:
        """The architecture without what `transformers` adds."""
        return exported_architecture(vars(self))

    @property
    def regresses(self) -> bool:
        """Whether a head for sequences predicts numbers: as asked, else where it has one label."""
        if self.problem_type is None:
            return bool(self.num_labels == 1)
        return bool(self.problem_type == "regression")
