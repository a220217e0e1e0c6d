"""What a policy is made of: a tree of plain dataclasses that goes to JSON and back without loss."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

OPENVLA_PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
HALF = (0.5, 0.5, 0.5)
STEM_CHANNELS = (32, 48, 96, 128)
"""Of a ``conv_stem`` whose ``kwargs`` name none, as those of the shipped policy."""


@dataclass(frozen=True)
class TowerConfig:
    """One vision tower.

    Attributes:
        kind: ``conv_stem`` (ours, small) or a transformers ``model_type`` of a vision transformer (``siglip_vision_model``, ``dinov2_with_registers``).
        kwargs: keyword arguments of ``ConvStem`` or of the transformers config.
        feature_layer: which block's output is read, counted from the end (-2: the second-to-last, as OpenVLA); blocks after it are not built.
        image_mean, image_std: normalisation of an image in [0, 1], one number per colour.
    """

    kind: str = "conv_stem"
    kwargs: dict[str, Any] = field(default_factory=dict)
    feature_layer: int = -1
    image_mean: tuple[float, float, float] = HALF
    image_std: tuple[float, float, float] = HALF


@dataclass(frozen=True)
class ValueHeadConfig:
    """State value from the hidden state that predicts the first action token (RL4VLA, arXiv 2505.19789: 4096 -> 512 -> 128 -> 1, GELU).

    Attributes:
        hidden: widths of the hidden layers.
        signals: names of privileged signals that are joined to the hidden state (asymmetric critic, ours); the policy itself never reads them.
        detach: keep the value loss from reaching the shared trunk.
    """

    hidden: tuple[int, ...] = (512, 128)
    signals: tuple[str, ...] = ()
    detach: bool = False


@dataclass(frozen=True)
class VLAConfig:
    """A vision-language-action policy.

    Attributes:
        llm: keyword arguments of ``transformers.LlamaConfig``, ``vocab_size`` included; action bins take the last ``num_bins`` ids before ``vocab_padding``.
        towers: vision towers that see the same image; their features are joined on the channel axis, so all must give the same number of patches.
            Empty: the policy reads the state alone (the `state` variant of an environment).
        image_size: side of the square image a tower sees, in pixels; other sizes are resized (antialiased).
        image_kernel: filter of that resize, ``bicubic`` (OpenVLA's processor) or ``lanczos`` (its evaluation scripts).
        image_crop: share of the resized image that a centre crop keeps, then enlarged again; 1: none. OpenVLA's evaluation of policies that were
            fine-tuned with random crops: 0.9.
        cameras: the environment's cameras by name, empty for its robot's own one. Several lie below ``("observation", "image")`` by name, and their patches
            follow one another; one lies there itself.
        projector: ``linear``, or ``openvla``, its MLP (three layers for several towers, two for one); ``none`` with a ``backbone``.
        state_dim: size of the proprioception vector; 0: the policy does not read it.
        normalize_state: read it by mean and standard deviation, which are set before training (``StateStatistics``) and saved with the weights.
        state_in_actions: add the state's embedding to the placeholder of every action token (parallel decoding). Where the state is one token among many, a
            small trunk may never find it for one of the dimensions: of three seeds on StackCube-v1 one never opened its fingers, whatever it saw.
        decoding: ``autoregressive`` (one token after another, key/value cache) or ``parallel`` (all tokens of the chunk in one pass).
        attention: ``causal``, or ``bidirectional`` over the whole sequence (parallel decoding only).
        attention_kernel: ``sdpa``, or ``eager``, which is faster for short sequences on the CPU (torch 2.13, bfloat16, 44 positions: backward 3 against 65 ms).
        prompt: text with ``{instruction}``; ``prompt_length``: the longest in tokens; ``prompt_suffix``: token ids appended to it (OpenVLA: 29871).
        tokenizer: ``robot`` (ships with this package) or a path of a ``tokenizer.json``.
        num_bins: number of bin *edges* over [-1, 1] per action dimension: ``num_bins - 1`` different values (OpenVLA's layout).
        action_prior: standard deviation (of the range [-1, 1]) of a normal distribution whose logits are added to those of the action bins; 0: none.
            A policy that learns from nothing then starts by resting: without, the likeliest bin of a dimension it has learnt nothing about is any.
        chunk_size: actions per decision.
        vocab_padding: rows at the end of the embedding that stand for no token (OpenVLA: 64).
        backbone: config of a transformers image-text-to-text model, ``model_type`` included, that stands in for towers, projector and language
            model (``load_image_text``); ``llm`` then holds its vocab_size and hidden_size, ``towers`` one entry for the normalisation of images.
    """

    llm: dict[str, Any]
    towers: tuple[TowerConfig, ...]
    image_size: int
    image_kernel: Literal["bicubic", "lanczos"] = "bicubic"
    image_crop: float = 1.0
    cameras: tuple[str, ...] = ()
    projector: Literal["linear", "openvla", "none"] = "linear"
    state_dim: int = 0
    normalize_state: bool = False
    state_in_actions: bool = False
    action_dim: int = 7
    chunk_size: int = 1
    num_bins: int = 256
    action_prior: float = 0.0
    vocab_padding: int = 0
    decoding: Literal["autoregressive", "parallel"] = "autoregressive"
    attention: Literal["causal", "bidirectional"] = "causal"
    attention_kernel: Literal["sdpa", "eager"] = "sdpa"
    tokenizer: str = "robot"
    prompt: str = OPENVLA_PROMPT
    prompt_length: int = 64
    prompt_suffix: tuple[int, ...] = ()
    bos_id: int = 1
    pad_id: int = 0
    value_head: ValueHeadConfig = field(default_factory=ValueHeadConfig)
    backbone: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, low in (("image_size", 1), ("action_dim", 1), ("chunk_size", 1), ("num_bins", 3), ("prompt_length", 1), ("state_dim", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {low}")
        if self.action_prior < 0:
            raise ValueError(f"action_prior={self.action_prior}: a standard deviation in units of the action range [-1, 1]; 0 for none")
        for name, allowed in (
            ("image_kernel", ("bicubic", "lanczos")),
            ("projector", ("linear", "openvla", "none")),
            ("decoding", ("autoregressive", "parallel")),
            ("attention", ("causal", "bidirectional")),
            ("attention_kernel", ("sdpa", "eager")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if self.cameras and (not self.towers or len(set(self.cameras)) < len(self.cameras)):
            raise ValueError(f"cameras={list(self.cameras)} with {len(self.towers)} towers: name each once, for a policy that sees images")
        if self.normalize_state and not self.state_dim:
            raise ValueError("normalize_state=True and state_dim=0: there is no state to normalise; set state_dim, or leave it out")
        if self.attention == "bidirectional" and self.decoding == "autoregressive":
            raise ValueError("attention='bidirectional' with decoding='autoregressive': a token would see its own answer; use decoding='parallel'")
        if not 0.0 < self.image_crop <= 1.0:
            raise ValueError(f"image_crop={self.image_crop}: is a share of the image's area, above 0 and at most 1")
        if not self.towers and not self.state_dim:
            raise ValueError("towers=() and state_dim=0: the policy would see nothing; give it a vision tower, or the state")
        if self.state_in_actions and (not self.state_dim or self.decoding != "parallel"):
            raise ValueError(f"state_in_actions=True with state_dim={self.state_dim}, decoding={self.decoding!r}: needs a state, and decoding='parallel'")
        if (self.backbone is not None) != (self.projector == "none") or (self.backbone is not None and len(self.towers) != 1):
            raise ValueError(f"projector={self.projector!r}, {len(self.towers)} towers: 'none' and one tower go with a backbone, and with nothing else")
        if "vocab_size" not in self.llm or "hidden_size" not in self.llm:
            raise ValueError(f"llm={self.llm}: must hold vocab_size and hidden_size")
        if self.window_offset < 0:
            raise ValueError(f"num_bins={self.num_bins}: does not fit in llm['vocab_size']={self.llm['vocab_size']}; lower num_bins or raise vocab_size")
        if "{instruction}" not in self.prompt:
            raise ValueError(f"prompt={self.prompt!r}: must contain {{instruction}}")

    @property
    def window_offset(self) -> int:
        """Vocabulary id of window id 0."""
        return self.llm["vocab_size"] - self.vocab_padding - self.num_bins

    @property
    def num_action_tokens(self) -> int:
        """Action tokens of one decision."""
        return self.chunk_size * self.action_dim

    def to_dict(self) -> dict[str, Any]:
        """As plain dicts, lists, numbers and strings."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "VLAConfig":
        """Inverse of ``to_dict``, also after a trip through JSON. Raises ValueError for unknown or missing fields."""
        values = dict(values)
        try:
            values["towers"] = tuple(
                TowerConfig(**{**tower, "image_mean": tuple(tower["image_mean"]), "image_std": tuple(tower["image_std"])}) for tower in values["towers"]
            )
            head = values["value_head"]
            values["value_head"] = ValueHeadConfig(**{**head, "hidden": tuple(head["hidden"]), "signals": tuple(head["signals"])})
            return cls(**{**values, "cameras": tuple(values["cameras"]), "prompt_suffix": tuple(values["prompt_suffix"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"policy config does not fit this version of stare_lit: {error}; save the policy again with this version") from error
