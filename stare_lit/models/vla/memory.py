"""How much memory a run needs, from the policy's config and the batch, before anything is allocated; pure.

Weights, gradients and optimiser state are counted exactly. Activations are counted as what autograd keeps for the backward pass, by the operations of
transformers' Llama and vision transformers with scaled dot product attention (no attention matrix is kept); tests hold them against what autograd keeps.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from stare_lit.models.vla.config import STEM_CHANNELS, TowerConfig, VLAConfig

Precision = Literal["32-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"]
RESERVE = 1.5 * 2**30
"""For the driver, its kernels and the allocator's gaps (ours; a CUDA context alone takes about half a GiB)."""


@dataclass(frozen=True)
class ParameterBytes:
    """Bytes of all parameters and buffers, of those parameters that are trained, and of weights that automatic mixed precision copies (2 bytes each)."""

    all: int
    trained: int
    cast: int


@dataclass(frozen=True)
class Workload:
    """What is done with the policy.

    Attributes:
        batch_size: decisions in one forward and backward pass (a micro-batch, on one device); 0: no training.
        rollout_batch: decisions that the policy takes at once in rollouts; 0: none.
        precision: as Lightning's trainer calls it.
        adapter: weights are frozen but for adapters beside them, so that frozen ones keep less for their gradient.
        checkpointing: transformer blocks keep their input alone and are run again in the backward pass, one at a time.
        shards: devices that weights, gradients and optimiser state are spread over (FSDP); 1: each has all.
        optimizer_states: numbers that the optimiser keeps for each trained one (AdamW 2, SGD with momentum 1).
    """

    batch_size: int
    rollout_batch: int = 0
    precision: Precision = "32-true"
    adapter: bool = False
    checkpointing: bool = False
    shards: int = 1
    optimizer_states: int = 2


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one device. Activations of training and the rollouts' cache and work space are not there at the same time."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    cache: int
    rollout: int

    @property
    def total(self) -> int:
        """The most at any moment, ``RESERVE`` included."""
        return int(self.weights + self.gradients + self.optimizer + max(self.activations, self.cache + self.rollout) + RESERVE)

    def __str__(self) -> str:
        rows = [(name, getattr(self, name)) for name in ("weights", "gradients", "optimizer", "activations", "cache", "rollout")]
        rows += [("reserve", RESERVE), ("total", self.total)]
        return "\n".join(f"{name:<12}{value / 2**30:>9.2f} GiB" for name, value in rows)


def parameter_bytes(policy: nn.Module) -> ParameterBytes:
    """Of a policy as it stands, on any device, ``meta`` included."""
    parameters = list(policy.parameters())
    buffers = sum(buffer.nbytes for buffer in policy.buffers())
    cast = sum(
        2 * p.numel() for m in policy.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) for p in m.parameters(recurse=False) if p.dtype == torch.float32
    )
    return ParameterBytes(sum(p.nbytes for p in parameters) + buffers, sum(p.nbytes for p in parameters if p.requires_grad), cast)


def plan_memory(config: VLAConfig, parameters: ParameterBytes, workload: Workload) -> MemoryPlan:
    """The plan for a policy of ``config`` whose parameters take ``parameters``.

    Raises:
        ValueError: a trunk of another program (``backbone``), whose activations are not known.
    """
    if config.backbone is not None:
        raise ValueError(f"backbone={config.backbone.get('model_type')!r}: activations of such a trunk are not known; leave the memory plan out")
    mixed = workload.precision.endswith("mixed")
    size = 4 if workload.precision == "32-true" else 2
    training = workload.batch_size > 0
    activations = workload.batch_size * _activations(config, workload, parameters) + (parameters.cast if mixed and training else 0)
    return MemoryPlan(
        weights=parameters.all // workload.shards,
        gradients=parameters.trained // workload.shards if training else 0,
        optimizer=workload.optimizer_states * parameters.trained // workload.shards if training else 0,
        activations=activations,
        cache=workload.rollout_batch * cache_bytes(config, size) if config.decoding == "autoregressive" else 0,
        rollout=workload.rollout_batch * _rollout(config, size) + (parameters.cast if mixed and workload.rollout_batch else 0),
    )


def sequence_length(config: VLAConfig) -> int:
    """Positions of the longest sequence in training: BOS, patches, state, prompt, action part."""
    patches = max(len(config.cameras), 1) * _patches(config) if config.towers else 0
    action = config.num_action_tokens - (config.decoding == "autoregressive")
    return 1 + patches + (config.state_dim > 0) + config.prompt_length + action


def cache_bytes(config: VLAConfig, size: int) -> int:
    """Keys and values of one decision, ``size`` bytes a number."""
    llm = config.llm
    return 2 * llm.get("num_hidden_layers", 32) * sequence_length(config) * _key_value_width(config) * size


def _key_value_width(config: VLAConfig) -> int:
    llm = config.llm
    heads = llm.get("num_attention_heads", 32)
    return llm.get("num_key_value_heads", heads) * llm.get("head_dim", llm["hidden_size"] // heads)


def _patches(config: VLAConfig) -> int:
    tower = config.towers[0]
    if tower.kind == "conv_stem":
        return (config.image_size // 2 ** len(tower.kwargs.get("channels", STEM_CHANNELS))) ** 2 + (tower.kwargs.get("keypoints", 0) > 0)
    return (config.image_size // tower.kwargs["patch_size"]) ** 2


@dataclass(frozen=True)
class _Kind:
    """In which dtype things are kept: bytes of what matrices give, of the residual stream, and of a matrix's input; ``frozen``: no gain has a gradient.

    A frozen matrix keeps no input. An adapter beside it keeps one of its own: peft hands it over in float32, and autocast makes it 16 bits again.
    """

    size: int
    stream: int
    frozen: bool
    shared_input: bool
    """Whether matrices that read the same share one copy of it."""
    input: int


def _kind(workload: Workload, parameters: ParameterBytes) -> _Kind:
    mixed, size = workload.precision.endswith("mixed"), 4 if workload.precision == "32-true" else 2
    stream = 4 if mixed and parameters.cast else size
    if workload.adapter and size == 2:
        return _Kind(size, stream, True, False, 2 if mixed else 4)
    return _Kind(size, stream, workload.adapter, True, size)


def _activations(config: VLAConfig, workload: Workload, parameters: ParameterBytes) -> int:
    """Bytes that one decision keeps for the backward pass."""
    kind = _kind(workload, parameters)
    length, layers, width = sequence_length(config), config.llm.get("num_hidden_layers", 32), config.llm["hidden_size"]
    block, images = length * _llama_block(config, kind), max(len(config.cameras), 1)
    towers = [(_tower_blocks(tower), images * _tower_block(config, tower, kind), images * _tower_input(config, tower, kind)) for tower in config.towers]
    if workload.checkpointing:
        kept = layers * length * width * kind.stream + sum(num * entering for num, _, entering in towers)
        blocks = kept + max([block, *(whole for _, whole, entering in towers if entering)])  # those that are run again
        blocks += sum(num * whole for num, whole, entering in towers if not entering)  # a convolutional stem is not
    else:
        blocks = layers * block + sum(num * whole for num, whole, _ in towers)
    logits = config.num_action_tokens * config.llm["vocab_size"] * 4 * 2 + config.num_action_tokens * config.num_bins * 4 * 3
    return blocks + logits


def _llama_block(config: VLAConfig, kind: _Kind) -> int:
    """Of one position in one block."""
    width, inner, key_value = config.llm["hidden_size"], config.llm.get("intermediate_size", 11008), _key_value_width(config)
    norms = 2 * (4 * width + (0 if kind.frozen else kind.stream * width))  # the input in float32; normalised, for the gain's gradient
    attention = kind.size * (2 * width + 2 * key_value)  # queries, keys, values, result
    if config.attention_kernel == "eager":
        attention += config.llm.get("num_attention_heads", 32) * sequence_length(config) * (4 if kind.size == 4 else 6)  # softmax in float32, and rounded
    inputs = kind.input * ((3 if kind.shared_input else 6) * width + inner)  # of q, k, v; of o; of gate, up; of down
    return norms + attention + inputs + kind.size * 3 * inner


def _tower_blocks(tower: TowerConfig) -> int:
    return 1 if tower.kind == "conv_stem" else tower.kwargs["num_hidden_layers"] + tower.feature_layer + 1


def _tower_tokens(config: VLAConfig, tower: TowerConfig) -> int:
    return _patches(config) + (1 + tower.kwargs.get("num_register_tokens", 4) if tower.kind == "dinov2_with_registers" else 0)


def _tower_input(config: VLAConfig, tower: TowerConfig, kind: _Kind) -> int:
    """Of one image, what a block that is run again keeps; 0: it is not run again."""
    return 0 if tower.kind == "conv_stem" else _tower_tokens(config, tower) * tower.kwargs["hidden_size"] * kind.stream


def _tower_block(config: VLAConfig, tower: TowerConfig, kind: _Kind) -> int:
    """Of one image in one block of a tower; the whole of a convolutional stem."""
    kwargs = tower.kwargs
    if tower.kind == "conv_stem":
        maps = [channels * (config.image_size // 2 ** (depth + 1)) ** 2 for depth, channels in enumerate(kwargs.get("channels", STEM_CHANNELS))]
        return 3 * kind.size * sum(maps)  # what convolution, norm and activation keep
    width, dino = kwargs["hidden_size"], tower.kind == "dinov2_with_registers"
    inner = kwargs.get("intermediate_size", 4 * width)
    inputs = kind.input * ((3 if kind.shared_input else 5) * width + inner)  # of q, k, v; of the output; of both of the MLP
    scaled = 0 if kind.frozen or not dino else 2 * kind.size * width
    block = 2 * kind.stream * width + 4 * kind.size * width + kind.size * inner + scaled + inputs  # norms; q, k, v and result; before the activation
    return _tower_tokens(config, tower) * block


def _rollout(config: VLAConfig, size: int) -> int:
    """Largest work space of one decision: a block's widest part, and the logits of a token."""
    return sequence_length(config) * size * (3 * config.llm.get("intermediate_size", 11008) + 4 * config.llm["hidden_size"]) + 3 * 4 * config.llm["vocab_size"]
