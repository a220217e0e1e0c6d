"""The policy: images, proprioception and an instruction in, tokens of an action chunk out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from stare_lit import keys
from stare_lit.models.vla import io
from stare_lit.models.vla.actions import ActionCodec, ActionStatistics
from stare_lit.models.vla.config import VLAConfig
from stare_lit.models.vla.image_text import BackboneVision, build_backbone
from stare_lit.models.vla.inputs import Inputs, read_inputs
from stare_lit.models.vla.instruction import PromptTokenizer
from stare_lit.models.vla.sequence import attention_mask, extend, positions, sample
from stare_lit.models.vla.state import NormalizedLinear
from stare_lit.models.vla.towers import VisionEncoder, projector
from stare_lit.models.vla.value_head import ValueHead


class VLAPolicy(nn.Module):
    """Vision tower(s) -> projector -> causal language model -> action bins in the vocabulary tail (OpenVLA, arXiv 2406.09246), with a value head.

    The sequence is: BOS, image patches, [proprioception], prompt, action part. Autoregressive decoding reads the logits of action token i at the token
    before it; parallel decoding appends one learned placeholder per action token and reads the logits there, all in one pass.
    Log-probabilities are over the ``num_bins`` action ids only, in float32. Dimensions whose statistics are constant are not decided in parallel decoding:
    their token is the middle bin with probability 1.

    Every method takes any leading batch dimensions and reads the keys of ``stare_lit.keys``: images, state, and the instruction as text or, where
    ``instruction_tokens`` stands, from there.

    Args:
        config: what to build.
    """

    def __init__(self, config: VLAConfig) -> None:
        super().__init__()
        self.config = config
        self.prompts = PromptTokenizer(config.tokenizer, config.prompt, config.prompt_length, config.pad_id, config.prompt_suffix)
        if self.prompts.vocab_size > config.llm["vocab_size"]:
            raise ValueError(f"llm['vocab_size']={config.llm['vocab_size']}: less than the tokenizer's {self.prompts.vocab_size}")
        width = config.llm["hidden_size"]
        self.causal = config.attention == "causal"
        backbone = build_backbone(config)
        self.vision = BackboneVision(config, backbone) if backbone is not None else VisionEncoder(config) if config.towers else None
        self.conditioned = any(tower.kwargs.get("film") for tower in config.towers)
        self.projector = projector(config.projector, self.vision.width, width, len(config.towers)) if self.vision else None
        project = NormalizedLinear if config.normalize_state else nn.Linear
        self.state_projector = project(config.state_dim, width) if config.state_dim else None
        self.language_model = backbone or LlamaForCausalLM(
            LlamaConfig(**{**config.llm, "is_causal": self.causal, "use_cache": False, "attn_implementation": config.attention_kernel})
        )
        self.placeholders = nn.Parameter(torch.randn(config.num_action_tokens, width) * 0.5) if config.decoding == "parallel" else None
        self.value_head = ValueHead(width, config.value_head)
        self.actions = ActionCodec(config.action_dim, config.num_bins)
        self.prior: Tensor | None
        self.register_buffer("prior", self.actions.normal_prior(config.action_prior) if config.action_prior else None, persistent=False)
        self.origin: Path | None = None
        """Folder that the weights were read from; None where they were made here."""
        self.attachments: dict[str, bytes] = {}
        """Files that travel with the weights and influence no output, by name (what an export to another program's layout needs)."""

    @classmethod
    def from_pretrained(cls, path: str | Path, dtype: str | None = "float32", value_signals: Sequence[str] | None = None) -> "VLAPolicy":
        """The policy that ``save_pretrained`` wrote into folder ``path``, its weights as ``dtype`` (None: as saved; the value head stays float32). With
        ``value_signals`` its value head reads these privileged signals; one that read others is made anew. ValueError: missing, foreign or damaged."""
        return io.load(cls, Path(path), dtype, value_signals)

    def save_pretrained(self, path: str | Path, dtype: str | None = None) -> None:
        """Write weights (safetensors; floating ones as ``dtype``, None: as they are), config, tokenizer and action statistics into folder ``path``."""
        io.save(self, Path(path), dtype)

    @property
    def chunk_size(self) -> int:
        """Actions per decision."""
        return self.config.chunk_size

    @property
    def environment(self) -> dict[str, Any]:
        """Settings of an environment whose observations the policy reads and whose steps it decides (``make_env``); without towers the `state` variant."""
        seen = {"observation": "image" if self.config.towers else "state"} | ({"cameras": list(self.config.cameras)} if self.config.cameras else {})
        return {"chunk_size": self.chunk_size, "image_size": self.config.image_size} | seen

    @property
    def window_offset(self) -> int:
        """Vocabulary id of window id 0: the target of a plain cross-entropy over the whole vocabulary is window id + this."""
        return self.config.window_offset

    def set_action_statistics(self, statistics: ActionStatistics) -> None:
        """Use these ranges for encoding and decoding (before training; they travel with the weights)."""
        self.actions.set(statistics)

    def encode_actions(self, chunk: Tensor) -> Tensor:
        """Actions float [..., A] in the environment's units -> window ids int64 [..., A]."""
        return self.actions.encode(chunk)

    def decode_actions(self, tokens: Tensor) -> Tensor:
        """Window ids int64 [..., A] -> actions float32 [..., A] in the environment's units."""
        return self.actions.decode(tokens)

    @torch.no_grad()
    def act(self, tensordict: TensorDictBase, *, temperature: float, value: bool = False, generator: torch.Generator | None = None) -> TensorDictBase:
        """Sample a chunk and write tokens, log-probabilities [*B, H, A], chunk, prompt tokens (and the state value [*B, 1]) into ``tensordict``;
        ``temperature`` 0 takes the likeliest tokens and gives their log-probabilities at temperature 1."""
        if temperature < 0:
            raise ValueError(f"temperature={temperature}: must be 0 (greedy) or positive")
        inputs = self._read(tensordict, value=value)
        decode = self._act_autoregressive if self.placeholders is None else self._act_parallel
        tokens, log_probs, hidden = decode(inputs, temperature, generator)
        batch, shape = tensordict.batch_size, (self.config.chunk_size, self.config.action_dim)
        tokens = tokens.view(*batch, *shape)
        tensordict.set(keys.ACTION_TOKENS, tokens)
        tensordict.set(keys.LOG_PROBS, log_probs.view(*batch, *shape))
        tensordict.set(keys.ACTION_CHUNK, self.decode_actions(tokens))
        tensordict.set(keys.INSTRUCTION_TOKENS, inputs.prompt.view(*batch, -1))
        if value:
            tensordict.set(keys.STATE_VALUE, self.value_head(hidden[:, 0], inputs.signals).view(*batch, 1))
        return tensordict

    def evaluate_actions(self, tensordict: TensorDictBase, *, temperature: float = 1.0, value: bool = False) -> TensorDict:
        """Log-probabilities ``log_probs`` and ``entropy`` [*B, H, A] of the stored tokens at ``temperature`` (and ``state_value`` [*B, 1]), with gradients."""
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be positive")
        batch, tokens = tensordict.batch_size, tensordict.get(keys.ACTION_TOKENS)
        inputs = self._read(tensordict, value=value)
        given = None if self.placeholders is not None else tokens.reshape(-1, self.config.num_action_tokens)
        logits, hidden = self._teacher_forced(inputs, given)
        log_probs = self._window(logits).div(temperature).log_softmax(dim=-1)
        chosen = log_probs.gather(-1, tokens.reshape(*log_probs.shape[:-1], 1)).view(tokens.shape)
        result = {"log_probs": chosen, "entropy": -(log_probs.exp() * log_probs).sum(dim=-1).view(tokens.shape)}
        if value:
            result[keys.STATE_VALUE] = self.value_head(hidden[:, 0], inputs.signals).view(*batch, 1)
        return TensorDict(result, batch_size=batch)

    def value_only(self, tensordict: TensorDictBase) -> Tensor:
        """State value float32 [*B, 1], with gradients; no action token is decoded."""
        inputs = self._read(tensordict, value=True)
        first = None if self.placeholders is None else self._placeholders(inputs)
        hidden = self._hidden(inputs, first)[:, -1 if first is None else -first.shape[1]]
        return self.value_head(hidden, inputs.signals).view(*tensordict.batch_size, 1)

    def logits(self, tensordict: TensorDictBase, *, full_vocabulary: bool = False) -> Tensor:
        """Logits float32 [*B, H, A, num_bins] over window ids, teacher forced with the stored tokens where decoding is autoregressive;
        with ``full_vocabulary`` over all ids [*B, H, A, V], of which window id w is ``window_offset + w``."""
        tokens = None if self.placeholders is not None else tensordict.get(keys.ACTION_TOKENS).reshape(-1, self.config.num_action_tokens)
        logits, _ = self._teacher_forced(self._read(tensordict, value=False), tokens)
        logits = logits if full_vocabulary else self._window(logits)
        return logits.view(*tensordict.batch_size, self.config.chunk_size, self.config.action_dim, -1)

    def _read(self, tensordict: TensorDictBase, *, value: bool) -> Inputs:
        return read_inputs(tensordict, self.config, self.prompts, value=value)

    def _embed(self, token_ids: Tensor) -> Tensor:
        return self.language_model.get_input_embeddings()(token_ids)

    def _state(self, inputs: Inputs) -> Tensor | None:
        """Embedding [N, 1, D] of the proprioception, None where it is not read."""
        read = self.state_projector
        return None if read is None or inputs.state is None else read(inputs.state.to(read.weight.dtype))[:, None]

    def _placeholders(self, inputs: Inputs) -> Tensor:
        """[N, H * active dimensions, D]: constant dimensions need none."""
        assert self.placeholders is not None
        grid = self.placeholders.view(self.config.chunk_size, self.config.action_dim, -1)
        placeholders = grid[:, list(self.actions.active_dims)].flatten(0, 1).expand(len(inputs.prompt), -1, -1)
        state = self._state(inputs) if self.config.state_in_actions else None
        return placeholders if state is None else placeholders + state

    def _context(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        """Embeddings [N, S, D] of everything before the action part, and which of them count [N, S] (None: all)."""
        num = len(inputs.prompt)
        prompt, padded = inputs.trimmed_prompt(self.config.pad_id)
        words = self._embed(prompt)
        bos = torch.full((num, 1), self.config.bos_id, device=prompt.device)
        parts = [self._embed(bos)]
        if inputs.images is not None:
            parts.append(self._patches(inputs.images, words, prompt != self.config.pad_id))
        if (state := self._state(inputs)) is not None:
            parts.append(state)
        parts.append(words)
        embeddings = torch.cat([part.to(parts[1].dtype) for part in parts], dim=1)
        if not padded:
            return embeddings, None
        before = torch.ones(num, embeddings.shape[1] - prompt.shape[1], dtype=torch.bool, device=prompt.device)
        return embeddings, torch.cat([before, prompt != self.config.pad_id], dim=1)

    def _patches(self, images: Tensor, words: Tensor, counted: Tensor) -> Tensor:
        """Embeddings [N, cameras * P, D] of the images [N, cameras, 3, H, W], under the mean of those ``words`` [N, L, D] that are ``counted`` [N, L]."""
        assert self.vision is not None and self.projector is not None
        instruction = None
        if self.conditioned:
            mean = (words * counted[..., None]).sum(dim=1) / counted.sum(dim=1, keepdim=True)
            instruction = mean.repeat_interleave(images.shape[1], dim=0)
        return self.projector(self.vision(images.flatten(0, 1), instruction)).view(len(images), -1, words.shape[-1])

    def _forward(self, embeddings: Tensor, valid: Tensor | None, cache: DynamicCache | None = None) -> Tensor:
        """Final hidden states [N, Q, D] of ``embeddings``; ``valid`` [N, S] covers the cached positions too."""
        num_queries, masking = embeddings.shape[1], {}
        if valid is not None:
            mask = attention_mask(valid, num_queries, causal=self.causal)
            if self.config.attention_kernel == "eager":  # adds the mask to the scores
                mask = torch.zeros_like(mask, dtype=embeddings.dtype).masked_fill_(~mask, torch.finfo(embeddings.dtype).min)
            masking = {"attention_mask": mask, "position_ids": positions(valid)[:, -num_queries:]}
        model = self.language_model.get_decoder()
        return model(inputs_embeds=embeddings, past_key_values=cache, use_cache=cache is not None, is_causal=self.causal, **masking).last_hidden_state

    def _hidden(self, inputs: Inputs, appended: Tensor | None) -> Tensor:
        embeddings, valid = self._context(inputs)
        if appended is not None:
            embeddings = torch.cat([embeddings, appended.to(embeddings.dtype)], dim=1)
            valid = extend(valid, appended.shape[1])
        return self._forward(embeddings, valid)

    def _teacher_forced(self, inputs: Inputs, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Full logits float32 [N, H * A, V] and the hidden states that gave them, the first action token's first; ``tokens`` None: parallel."""
        if tokens is not None:
            hidden = self._hidden(inputs, self._embed(tokens[:, :-1] + self.window_offset))[:, -tokens.shape[1] :]
            return self._lm_head(hidden), hidden
        appended = self._placeholders(inputs)
        hidden = self._hidden(inputs, appended)[:, -appended.shape[1] :]
        return self.actions.with_constant(self._lm_head(hidden), self.config.chunk_size, self.window_offset), hidden

    def _lm_head(self, hidden: Tensor) -> Tensor:
        head = self.language_model.get_output_embeddings()
        with torch.autocast(hidden.device.type, enabled=False):
            return head(hidden.to(head.weight.dtype)).float()

    def _window(self, logits: Tensor) -> Tensor:
        window = logits[..., self.window_offset : self.window_offset + self.config.num_bins]
        return window if self.prior is None else window + self.prior

    def _act_parallel(self, inputs: Inputs, temperature: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        logits, hidden = self._teacher_forced(inputs, None)
        return *sample(self._window(logits), temperature, generator), hidden

    def _act_autoregressive(self, inputs: Inputs, temperature: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        embeddings, valid = self._context(inputs)
        cache = DynamicCache(config=self.language_model.config)
        first = self._forward(embeddings, valid, cache)[:, -1:]
        drawn = [sample(self._window(self._lm_head(first)), temperature, generator)]
        for _ in range(1, self.config.num_action_tokens):
            valid = extend(valid, 1)
            hidden = self._forward(self._embed(drawn[-1][0] + self.window_offset), valid, cache)
            drawn.append(sample(self._window(self._lm_head(hidden)), temperature, generator))
        tokens, log_probs = (torch.cat(part, dim=1) for part in zip(*drawn, strict=True))
        return tokens, log_probs, first
