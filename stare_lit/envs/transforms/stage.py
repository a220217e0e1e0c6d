"""StARe online: from the signals of each state to its stage, its error and its potential."""

from typing import Literal, get_args

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite
from torchrl.envs.transforms import Transform

from stare_lit import keys
from stare_lit.stages.calculator import PotentialForm, PotentialMode, potential, stage_error, whole_task_error
from stare_lit.stages.separator import advance, initial
from stare_lit.stages.spec import StageSpec

PotentialOf = Literal["stage", "whole_task"]


class StageTracker(Transform):
    """Writes ``stage_index`` (int64 [*B]), ``stage_error`` and ``potential`` (float32 [*B]) of every state.

    The stage reached so far travels in the TensorDict: a step reads ``stage_index`` of the state before, a reset starts anew, and the
    environment's ``_reset`` mask says for which rows. Stages are counted once a decision, on the state at its end.

    Args:
        spec: stages of the task.
        monotone: whether the stage may only rise. Online it may fall by default: a dropped object takes it back.
        potential_of: "stage", or "whole_task" (the ``potential`` baseline: one stage, the error of the whole task).
        stage_mode: how stage potentials add up; "reset" has the potential of "bare" (its shaping differs, see ``StageReward``).
        form: of the potential inside a stage.

    Raises:
        ValueError: unknown setting; when the specs are read, an environment that does not publish a signal of the spec.
    """

    def __init__(
        self,
        spec: StageSpec,
        *,
        monotone: bool = False,
        potential_of: PotentialOf = "stage",
        stage_mode: PotentialMode = "cumulative",
        form: PotentialForm = "sigmoid",
    ) -> None:
        for name, value, choices in (("potential_of", potential_of, PotentialOf), ("stage_mode", stage_mode, PotentialMode), ("form", form, PotentialForm)):
            if value not in get_args(choices):
                raise ValueError(f"{name}={value!r}: choose from {get_args(choices)}")
        super().__init__(in_keys=[keys.SIGNALS], out_keys=[keys.STAGE_INDEX, keys.STAGE_ERROR, keys.POTENTIAL])
        self.spec = spec
        self.monotone = monotone
        self.potential_of = potential_of
        self.stage_mode = stage_mode
        self.form = form

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        signals = self._signals(tensordict_reset)
        return self._write(tensordict_reset, initial(self.spec, signals), signals)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        index = tensordict.get(keys.STAGE_INDEX, None)
        if index is None:
            raise ValueError(f"the stepped TensorDict lacks {keys.STAGE_INDEX!r}: step with what reset() or the step before returned, the stage travels in it")
        signals = self._signals(next_tensordict)
        return self._write(next_tensordict, advance(self.spec, index, signals, monotone=self.monotone), signals)

    def _signals(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        return {name: tensordict.get(keys.signal(name)) for name in self.spec.signals}

    def _write(self, tensordict: TensorDictBase, index: Tensor, signals: dict[str, Tensor]) -> TensorDictBase:
        error = stage_error(self.spec, index, signals)
        tensordict.set(keys.STAGE_INDEX, index)
        tensordict.set(keys.STAGE_ERROR, error)
        if self.potential_of == "whole_task":
            value = potential(signals["success"].long(), whole_task_error(self.spec, signals), 1, form=self.form)
        else:
            value = potential(index, error, self.spec.num_stages, mode=self.stage_mode, form=self.form)
        return tensordict.set(keys.POTENTIAL, value)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        published = observation_spec[keys.SIGNALS].keys() if keys.SIGNALS in observation_spec.keys() else ()
        missing = sorted(self.spec.signals.difference(published))
        if missing:
            raise ValueError(f"spec {self.spec.name!r} needs the signals {missing}, which the environment does not publish; use the spec of its own task")
        like = observation_spec[keys.signal("success")]
        observation_spec[keys.STAGE_INDEX] = Bounded(0, self.spec.num_stages, shape=like.shape, dtype=torch.int64, device=like.device)
        for key in (keys.STAGE_ERROR, keys.POTENTIAL):
            observation_spec[key] = Bounded(0.0, 1.0, shape=like.shape, dtype=torch.float32, device=like.device)
        return observation_spec
