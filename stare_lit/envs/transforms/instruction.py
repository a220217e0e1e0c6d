"""instruction_id -> language_instruction or its tokens, in the parent process: text is never piped between processes."""

from collections.abc import Sequence

from tensordict import NonTensorData, NonTensorStack, TensorDictBase
from torch import Tensor
from torchrl.data import Composite, NonTensor, Unbounded
from torchrl.envs.transforms import Transform

from stare_lit import keys


class InstructionText(Transform):
    """Writes ``language_instruction`` (text [*B]) from ``instruction_id`` (int64 [*B]) and the environment's table of instructions."""

    def __init__(self, instructions: Sequence[str]) -> None:
        if not instructions:
            raise ValueError("instructions is empty: give the environment's table, env.instructions")
        super().__init__(in_keys=[keys.INSTRUCTION_ID], out_keys=[keys.INSTRUCTION])
        self.instructions = tuple(instructions)

    def _text(self, tensordict: TensorDictBase) -> NonTensorStack | NonTensorData:
        index = tensordict.get(keys.INSTRUCTION_ID)
        if index.ndim == 0:
            return NonTensorData(self.instructions[int(index)])
        texts = NonTensorStack(*(NonTensorData(self.instructions[i], device=tensordict.device) for i in index.reshape(-1).tolist()))
        return texts if index.ndim == 1 else texts.reshape(index.shape)

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict.set(keys.INSTRUCTION, self._text(next_tensordict))

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        shape = observation_spec[keys.INSTRUCTION_ID].shape
        observation_spec[keys.INSTRUCTION] = NonTensor(shape=shape, example_data=self.instructions[0], batched=True, device=observation_spec.device)
        return observation_spec


class InstructionTokens(Transform):
    """Writes ``instruction_tokens`` (int64 [*B, L]) from ``instruction_id``: what a collector stores, where text would be copied at every step.

    Args:
        tokens: int64 [number of instructions, L], the table of instructions as the policy's tokenizer gives it.
    """

    def __init__(self, tokens: Tensor) -> None:
        super().__init__(in_keys=[keys.INSTRUCTION_ID], out_keys=[keys.INSTRUCTION_TOKENS])
        self.register_buffer("tokens", tokens)

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict.set(keys.INSTRUCTION_TOKENS, self.tokens[next_tensordict.get(keys.INSTRUCTION_ID)])

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        shape = (*observation_spec[keys.INSTRUCTION_ID].shape, self.tokens.shape[1])
        observation_spec[keys.INSTRUCTION_TOKENS] = Unbounded(shape=shape, dtype=self.tokens.dtype, device=observation_spec.device)
        return observation_spec
