"""The imitation phase: supervised fine-tuning on demonstrations."""

from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDictBase
from torch import Tensor, nn

from stare_lit import keys
from stare_lit.algorithms.checkpointing import in_micro_batches
from stare_lit.algorithms.lora import LoraSettings
from stare_lit.algorithms.optim import Schedule, require_positive, split_value_head, warmup_schedule
from stare_lit.algorithms.phase import PhaseModule
from stare_lit.objectives.imitation import action_token_cross_entropy


class SFTModule(PhaseModule):
    """Cross entropy of the demonstrator's action tokens (StARe-VLA's first phase; settings ours for the small policy).

    A batch is a TensorDict [B] with ``observation``, the instruction, ``vla_action/chunk`` [B, H, A] and ``action_is_pad`` [B, H].

    Args:
        policy: a ``types.Policy``.
        learning_rate: peak of AdamW.
        weight_decay: of AdamW.
        warmup_steps: optimizer steps over which the learning rate rises.
        schedule: ``cosine`` to 5 % of the peak at the end of training, or ``constant``.
        classes: what a token is told from: ``bins`` (the action bins) or ``vocabulary`` (all ids, as OpenVLA).
        action_statistics: ``dataset`` takes the normalisation of the demonstrations; ``policy`` keeps that of a policy trained before.
        micro_batch_size: most decisions whose activations are in memory at once; beyond it they are recomputed in the backward pass, with
            identical gradients, at one more forward. None never splits.
        checkpointing: keep only the input of each transformer block and run it again in the backward pass: less memory, a third more time.
        lora: train a fresh adapter instead of all weights.
    """

    batches_of_decisions = True

    def __init__(
        self,
        policy: nn.Module,
        *,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup_steps: int = 50,
        schedule: Schedule = "cosine",
        classes: Literal["bins", "vocabulary"] = "bins",
        action_statistics: Literal["dataset", "policy"] = "dataset",
        micro_batch_size: int | None = None,
        checkpointing: bool = False,
        lora: LoraSettings | None = None,
    ) -> None:
        require_positive(learning_rate=learning_rate, micro_batch_size=1 if micro_batch_size is None else micro_batch_size)
        super().__init__(policy, lora, train_value_head=False, checkpointing=checkpointing)
        self.save_hyperparameters(ignore=["policy"], logger=False)
        self.learning_rate, self.weight_decay, self.warmup_steps, self.schedule = learning_rate, weight_decay, warmup_steps, schedule
        self.classes, self.action_statistics, self.micro_batch_size = classes, action_statistics, micro_batch_size

    def check_data(self, data: Any) -> None:
        """Raises ValueError where demonstrations and policy differ in the chunk or in what is seen."""
        for name, value in getattr(data, "environment", {}).items():  # a data module of one's own need not have it
            if value != (own := self.policy.environment.get(name, [])):
                raise ValueError(f"data.{name}={value!r} but the policy has {own!r}; set both alike")

    def setup(self, stage: str) -> None:
        """Checks that data and policy fit, and takes the action statistics of the data."""
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        self.check_data(data)
        if self.action_statistics == "dataset" and stage == "fit":
            self.policy.set_action_statistics(data.action_statistics)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained, _ = split_value_head(self.policy)
        optimizer = torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        total = int(self.trainer.estimated_stepping_batches) if self.schedule == "cosine" else None
        scheduler = warmup_schedule(optimizer, warmup_steps=self.warmup_steps, total_steps=total, schedule=self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _step(self, batch: TensorDictBase, phase: str) -> Tensor:
        tokens = self.policy.encode_actions(batch[keys.ACTION_CHUNK])
        batch.set(keys.ACTION_TOKENS, tokens)
        vocabulary = self.classes == "vocabulary"
        logits = in_micro_batches(partial(self.policy.logits, full_vocabulary=vocabulary), batch, self.micro_batch_size)
        targets = tokens + self.policy.window_offset if vocabulary else tokens
        output = action_token_cross_entropy(logits, targets, action_is_pad=batch[keys.ACTION_IS_PAD])
        metrics = {f"{phase}/{name}": value for name, value in output.metrics.items()}
        self.log_dict({f"{phase}/loss": output.mean.detach()} | metrics, prog_bar=True, batch_size=len(batch), sync_dist=True)
        return self.joint_loss(output)
