"""What a run is: frozen sections, loading, checks. Imports neither torch nor numpy."""

from megatron_hyena.config.checks import check_layout
from megatron_hyena.config.curriculum import LengthSchedule, length_multiple, length_schedule
from megatron_hyena.config.exchange import exchange_of
from megatron_hyena.config.loading import (
    config_dict,
    config_of,
    load_config,
    save_config,
    valid_keys,
)
from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.config.pattern import SIGNS, Sign, parse_pattern
from megatron_hyena.config.sections import Config
from megatron_hyena.yaml_sections import plain_values

__all__ = [
    "SIGNS",
    "Config",
    "HyenaGLTConfig",
    "LengthSchedule",
    "Sign",
    "check_layout",
    "config_dict",
    "config_of",
    "exchange_of",
    "length_multiple",
    "length_schedule",
    "load_config",
    "parse_pattern",
    "plain_values",
    "save_config",
    "valid_keys",
]
