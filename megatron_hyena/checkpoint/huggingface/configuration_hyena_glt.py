"""`transformers` configuration of Hyena-GLT: the fields of `HyenaGLTConfig`."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from transformers import PretrainedConfig

from megatron_hyena.config.model import HyenaGLTConfig


class HyenaGLTAutoConfig(PretrainedConfig):
    """Architecture of an exported model; `architecture()` gives it as `HyenaGLTConfig`."""

    model_type = "hyena_glt"

    def __init__(self, **values: Any) -> None:
        defaults = asdict(HyenaGLTConfig())
        for name, default in defaults.items():
            setattr(self, name, values.pop(name, default))
        values["tie_word_embeddings"] = self.tie_embeddings
        values.setdefault("eos_token_id", 0)
        values.setdefault("pad_token_id", 1)
        super().__init__(**values)

    def architecture(self) -> HyenaGLTConfig:
        """The architecture without what `transformers` adds."""
        return HyenaGLTConfig(**{f.name: getattr(self, f.name) for f in fields(HyenaGLTConfig)})
