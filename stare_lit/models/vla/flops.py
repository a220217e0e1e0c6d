"""Floating point operations that a decision needs, from the policy's matrices; pure.

Matrix m has numel(m) weights and is applied at n(m) positions: patches and register tokens in towers; BOS, patches, state, prompt and all action tokens
but the last in an autoregressive language model; the action tokens at its head; one at the value head.

    forward   2 sum_m n(m) numel(m) + sum over blocks of 4 n^2 d (towers) or 2 n^2 d (causal language model: half of it)
    training  forward, the same for the gradients of inputs, and the same for the gradients of those weights that are trained;
              attention counts three times, the patch convolution (nothing below it) once, and once more where it is trained

Element-wise work is left out, and so is what is computed a second time to save memory.
"""

from dataclasses import dataclass

from torch import nn

from stare_lit.models.vla.policy import VLAPolicy
from stare_lit.models.vla.towers import TransformerTower, VisionEncoder


@dataclass(frozen=True)
class DecisionFlops:
    """Of one decision; ``positions`` of the language model."""

    forward: float
    training: float
    positions: int


def decision_flops(policy: VLAPolicy, *, prompt_length: int, value: bool) -> DecisionFlops:
    """Operations of one decision with one camera and a prompt of ``prompt_length`` tokens; ``value``: of the state, too.

    Raises:
        ValueError: a policy without transformer towers (``tiny``, ``load_image_text``).
    """
    config, vision = policy.config, policy.vision
    if not isinstance(vision, VisionEncoder) or not all(isinstance(tower, TransformerTower) for tower in vision.towers):
        raise ValueError(f"policy: towers {[tower.kind for tower in config.towers]}; operations are counted for transformer towers alone")
    patches, actions = vision.num_patches, config.num_action_tokens
    extra = [1 + tower.kwargs.get("num_register_tokens", 4) if tower.kind == "dinov2_with_registers" else 0 for tower in config.towers]
    length = 1 + patches + (config.state_dim > 0) + prompt_length + actions - (config.decoding == "autoregressive")
    places = {"projector": patches, "state_projector": 1, "value_head": int(value), "language_model.lm_head": actions}
    places |= {f"vision.towers.{index}": patches + more for index, more in enumerate(extra)}
    forward = training = 0.0
    for name, module in policy.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            patch = isinstance(module, nn.Conv2d)
            positions = patches if patch else next((number for start, number in places.items() if name.startswith(start)), length)
            once = 2.0 * positions * module.weight.numel()
            forward += once
            training += once * ((1 if patch else 2) + module.weight.requires_grad)
    attention = (2.0 if policy.causal else 4.0) * config.llm["num_hidden_layers"] * config.llm["hidden_size"] * length**2
    for tower, built, more in zip(config.towers, vision.towers, extra, strict=True):
        attention += 4.0 * len(built.layers) * tower.kwargs["hidden_size"] * (patches + more) ** 2  # type: ignore[arg-type]
    return DecisionFlops(forward + attention, training + 3 * attention, length)
