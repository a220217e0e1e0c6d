"""State value from a hidden state, optionally with privileged signals."""

import torch
from torch import Tensor, nn

from stare_lit.models.vla.config import ValueHeadConfig

SIGNAL_SCALES = (0.02, 0.1)
"""Length scales (metres or radians) at which the head sees a signal x besides x itself, as exp(-|x| / scale): millimetres matter near a goal."""


class ValueHead(nn.Module):
    """MLP with GELU on the hidden state of the first action token (RL4VLA, arXiv 2505.19789), float32, last layer starting at zero: V = 0."""

    def __init__(self, width: int, config: ValueHeadConfig) -> None:
        super().__init__()
        self.signals, self.detach = config.signals, config.detach
        widths = (width + len(config.signals) * (1 + len(SIGNAL_SCALES)), *config.hidden)
        layers: list[nn.Module] = []
        for source, target in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(source, target), nn.GELU()]
        last = nn.Linear(widths[-1], 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(*layers, last)

    def forward(self, hidden: Tensor, signals: Tensor | None) -> Tensor:
        """Hidden state [N, D] and signals [N, len(self.signals)] (None where there are none) -> value float32 [N, 1]."""
        dtype = next(self.mlp.parameters()).dtype
        inputs = (hidden.detach() if self.detach else hidden).to(dtype)
        if signals is not None:
            signals = signals.to(dtype)
            inputs = torch.cat([inputs, signals, *(torch.exp(-signals.abs() / scale) for scale in SIGNAL_SCALES)], dim=-1)
        with torch.autocast(inputs.device.type, enabled=False):
            return self.mlp(inputs).float()
