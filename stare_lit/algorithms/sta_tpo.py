"""The preference phase: StA-TPO (StARe-VLA, arXiv 2512.05107); plain TPO (GRAPE, arXiv 2411.19309) is the same module on one-stage pairs."""

from typing import Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDictBase
from torch import Tensor, nn

from stare_lit import keys
from stare_lit.algorithms.checkpointing import in_micro_batches
from stare_lit.algorithms.lora import LoraSettings
from stare_lit.algorithms.optim import warmup_schedule
from stare_lit.algorithms.phase import PhaseModule
from stare_lit.objectives.executed import sum_executed
from stare_lit.objectives.preference import sta_tpo_loss
from stare_lit.types import LossOutput


class StaTPOModule(PhaseModule):
    """Raises the policy above the one that enters the phase, on stage pairs of that one's own rollouts.

    A batch (``data.preferences.PairBatches``) is a TensorDict without batch size: ``decisions`` [U] (observations, tokens,
    ``reference_log_prob``), which of them ``decision`` [M], ``trajectory`` [M] (p for a of pair p, P + p for its b), ``position`` [M],
    ``stage_index`` [M], ``preferred`` [P, K], and ``cost`` [2, P, K] where stage costs are known.

    Args:
        policy: a ``types.Policy``; the reference is this policy as it is handed in.
        beta: sharpness of the preference; about 1 for ``reduction="mean"``, 0.1 for "sum".
        lmbda: weight of the stage cost, a margin inside the sigmoid; 0 for TPO and for StA-TPO without cost.
        rpo_alpha: weight of the negative log-likelihood of what is preferred (RPO); 0 is the paper's loss, whose policies may unlearn both sides.
        reduction: log-ratio of a stage as the mean over its decisions (StARe-VLA) or their sum (GRAPE).
        temperature: of the log-probabilities, in training as in the reference.
        learning_rate: of AdamW, after the warm-up.
        weight_decay: of AdamW.
        warmup_steps: optimizer steps over which the learning rate rises linearly from near 0.
        micro_batch_size: most decisions whose activations are in memory at once; beyond it they are recomputed in the backward pass, with
            identical gradients, at one more forward. None never splits.
        checkpointing: keep only the input of each transformer block and run it again in the backward pass: less memory, a third more time.
        lora: train a fresh adapter instead of all weights.
    """

    def __init__(
        self,
        policy: nn.Module,
        *,
        beta: float = 1.0,
        lmbda: float = 1.0,
        rpo_alpha: float = 0.0,
        reduction: Literal["mean", "sum"] = "mean",
        temperature: float = 1.0,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.0,
        warmup_steps: int = 10,
        micro_batch_size: int | None = None,
        checkpointing: bool = False,
        lora: LoraSettings | None = None,
    ) -> None:
        for name, value, good in (
            ("beta", beta, beta > 0),
            ("lmbda", lmbda, lmbda >= 0),
            ("rpo_alpha", rpo_alpha, rpo_alpha >= 0),
            ("temperature", temperature, temperature > 0),
            ("learning_rate", learning_rate, learning_rate > 0),
            ("warmup_steps", warmup_steps, warmup_steps >= 0),
            ("micro_batch_size", micro_batch_size, micro_batch_size is None or micro_batch_size > 0),
        ):
            if not good:
                raise ValueError(f"{name}={value}: must be {'at least 0' if name in ('lmbda', 'rpo_alpha', 'warmup_steps') else 'above 0'}")
        super().__init__(policy, lora, train_value_head=False, checkpointing=checkpointing)
        self.save_hyperparameters(ignore=["policy"], logger=False)
        self.beta, self.lmbda, self.rpo_alpha, self.reduction, self.temperature = beta, lmbda, rpo_alpha, reduction, temperature
        self.learning_rate, self.weight_decay, self.warmup_steps = learning_rate, weight_decay, warmup_steps
        self.micro_batch_size = micro_batch_size

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        warmup = warmup_schedule(optimizer, warmup_steps=self.warmup_steps, total_steps=None, schedule="constant")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    def loss(self, batch: TensorDictBase) -> LossOutput:
        """The preference loss of one batch.

        Raises:
            ValueError: ``lmbda`` is above 0 but the pairs carry no stage cost.
        """
        preferred = batch["preferred"]
        cost = batch.get("cost", None)
        if cost is None:
            if self.lmbda:
                raise ValueError(f"lmbda={self.lmbda}: the pairs carry no stage cost (rule.use_cost is false); set lmbda to 0, or use_cost to true")
            cost = torch.zeros(2, *preferred.shape, device=preferred.device)
        log_ratio = (self._log_prob(batch["decisions"]) - batch["decisions", "reference_log_prob"])[batch["decision"]]
        place = (batch["trajectory"], batch["position"])
        shape = (2 * len(preferred), int(batch["position"].max()) + 1)
        log_ratios = log_ratio.new_zeros(shape).index_put(place, log_ratio)
        stages = batch["stage_index"].new_full(shape, -1).index_put(place, batch["stage_index"])
        tensors = (*log_ratios.chunk(2), *stages.chunk(2), *cost, preferred)
        return sta_tpo_loss(*tensors, beta=self.beta, lmbda=self.lmbda, rpo_alpha=self.rpo_alpha, reduction=self.reduction)  # type: ignore[misc]

    def _log_prob(self, decisions: TensorDictBase) -> Tensor:
        """log pi(a_t | s_t) [M] over the executed tokens, float32."""

        def evaluate(part: TensorDictBase) -> Tensor:
            log_probs = self.policy.evaluate_actions(part, temperature=self.temperature)["log_probs"].float()
            return sum_executed(log_probs, part[keys.next_(keys.NUM_STEPS)].squeeze(-1))

        return in_micro_batches(evaluate, decisions, self.micro_batch_size)

    def _step(self, batch: TensorDictBase, phase: str) -> Tensor:
        output = self.loss(batch)
        num_pairs = len(batch["preferred"])
        self.log(f"{phase}/loss", output.mean, prog_bar=True, batch_size=num_pairs, sync_dist=True)
        metrics = {f"{phase}/{name}": value for name, value in output.metrics.items()}
        per_stage = batch["preferred"].ne(0).sum(0).float()
        names = getattr(self.trainer.datamodule, "stage_names", range(len(per_stage)))
        metrics |= {f"{phase}/stage_pairs/{name}": number for name, number in zip(names, per_stage, strict=True)}
        self.log_dict(metrics, batch_size=num_pairs, sync_dist=True)
        return self.joint_loss(output)
