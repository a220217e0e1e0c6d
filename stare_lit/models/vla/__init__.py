"""One vision-language-action policy class: vision tower(s) -> projector -> causal language model -> action tokens, value head."""

from stare_lit.models.vla.actions import ActionStatistics
from stare_lit.models.vla.config import TowerConfig, ValueHeadConfig, VLAConfig
from stare_lit.models.vla.policy import VLAPolicy

__all__ = ["ActionStatistics", "TowerConfig", "VLAConfig", "VLAPolicy", "ValueHeadConfig"]
