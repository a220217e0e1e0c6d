"""One update of each phase on made-up data; each process takes its share of the batch. Run by test_strategies.py: alone, and by torchrun in two processes.

python joint_gradient.py <strategy> <folder for the gradients and logged metrics> <sft|sta_tpo|sta_ppo|sta_ppo_micro> ...
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import save_file
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from stare_lit import keys
from stare_lit.algorithms.sft import SFTModule
from stare_lit.algorithms.sta_ppo import StaPPOModule
from stare_lit.algorithms.sta_tpo import StaTPOModule
from stare_lit.models.vla.presets import tiny

CHUNK, STAGES = 2, 3


def policy():
    torch.manual_seed(0)
    return tiny(4, image_size=16, chunk_size=CHUNK, hidden_size=32, num_layers=1, num_bins=8, channels=(8, 16), keypoints=2, film=True)


def observations(*batch: int) -> TensorDict:
    td = TensorDict(batch_size=batch)
    td[keys.IMAGE] = torch.randint(0, 256, (*batch, 3, 16, 16), dtype=torch.uint8)
    td[keys.STATE] = torch.randn(*batch, 4)
    td[keys.INSTRUCTION_TOKENS] = policy().prompts(["put the block on the red target"]).expand(*batch, -1).clone()
    return td


def decisions(num: int) -> TensorDict:
    """Those of another policy than the one that learns, so that ratios are not 1."""
    td = observations(num)
    td[keys.ACTION_TOKENS] = torch.randint(0, 8, (num, CHUNK, 7))
    td[keys.next_(keys.NUM_STEPS)] = torch.randint(1, CHUNK + 1, (num, 1))
    with torch.no_grad():
        td[keys.LOG_PROBS] = policy().evaluate_actions(td)["log_probs"] + 0.02 * torch.randn(num, CHUNK, 7)
    return td


def share(batch: TensorDict, rank: int, world: int) -> TensorDict:
    size = len(batch) // world
    return batch[rank * size : (rank + 1) * size]


def imitation(rank: int, world: int) -> TensorDict:
    """Padding falls unevenly on the halves: a mean of means would be wrong."""
    td = observations(8)
    td[keys.ACTION_CHUNK] = torch.rand(8, CHUNK, 7) * 2 - 1
    td[keys.ACTION_IS_PAD] = torch.arange(8)[:, None].expand(8, CHUNK) % 4 < torch.tensor([3, 1]).repeat_interleave(4)[:, None]
    return share(td, rank, world)


def preference(rank: int, world: int) -> TensorDict:
    """Four pairs, each side of three decisions; the first half holds more stage pairs than the second."""
    rows = decisions(24)
    rows["reference_log_prob"] = torch.randn(24)
    num, offset = 4 // world, rank * 4 // world
    sides = torch.cat([torch.arange(offset, offset + num), 4 + torch.arange(offset, offset + num)])  # a of each pair, then b
    chosen = (sides[:, None] * 3 + torch.arange(3)).flatten()
    preferred = torch.tensor([[1, -1, 1], [1, 1, 0], [0, -1, 0], [1, 0, 0]])
    cost = torch.rand(2, 4, STAGES)
    return TensorDict(
        decisions=rows[chosen],
        decision=torch.arange(len(chosen)),
        trajectory=torch.arange(2 * num).repeat_interleave(3),
        position=torch.arange(3).repeat(2 * num),
        stage_index=torch.arange(STAGES).repeat(2 * num),
        preferred=preferred[offset : offset + num],
        cost=cost[:, offset : offset + num],
    )


def interaction(rank: int, world: int) -> TensorDict:
    """A round [4, 3] in which no episode is cut but at its end."""
    td = decisions(12).reshape(4, 3)
    td[keys.STATE_VALUE] = torch.randn(4, 3, 1)
    done = torch.tensor([False, True, False]).expand(4, 3)[..., None]
    after = {keys.REWARD: torch.randn(4, 3, 1), "sparse_reward": torch.randn(4, 3, 1), keys.DONE: done, keys.TERMINATED: done, keys.SUCCESS: done}
    after |= {keys.OBSERVATION: observations(4, 3)[keys.OBSERVATION], keys.INSTRUCTION_TOKENS: td[keys.INSTRUCTION_TOKENS].clone()}
    td["next"].update(after | {keys.SIGNALS: TensorDict(batch_size=[4, 3])})
    return share(td, rank, world)


INTERACTION = {"num_epochs": 1, "minibatch_size": 100, "max_grad_norm": 1e9, "value_warmup_rounds": 0, "entropy_coeff": 0.01}
PHASES = {
    "sft": (lambda: SFTModule(policy(), action_statistics="policy"), imitation),
    "sta_tpo": (lambda: StaTPOModule(policy()), preference),
    "sta_ppo": (lambda: StaPPOModule(policy(), **INTERACTION), interaction),
    "sta_ppo_micro": (lambda: StaPPOModule(policy(), micro_batch_size=2, **INTERACTION), interaction),
}


class Data(LightningDataModule):
    """One batch, this process's share of it, and the settings that the modules read."""

    chunk_size, temperature, seconds, env_steps = CHUNK, 1.0, {"simulate": 1.0, "policy": 1.0, "wait": 2.0}, 12
    lag, group_size = 0, None
    reward = SimpleNamespace(gamma=0.99, bootstrap_truncation=True)
    stage_names = ("reach", "grasp", "place")

    def __init__(self, make):
        super().__init__()
        self.make = make

    def train_dataloader(self) -> DataLoader:
        torch.manual_seed(7)
        batch = self.make(self.trainer.global_rank, self.trainer.world_size)
        return DataLoader([batch], batch_size=None, sampler=[0], collate_fn=lambda batch: batch)


def whole(gradient: torch.Tensor) -> torch.Tensor:
    """A copy of a gradient, put together where it is sharded."""
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()


class KeepGradients(Callback):
    """What the optimizer is about to use."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.gradients = {name: whole(p.grad) for name, p in pl_module.named_parameters() if p.grad is not None}


class CountSyncs(Callback):
    """How many backward passes DDP is kept from averaging."""

    blocked = passes = 0

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        self.passes += 1
        self.blocked += not getattr(trainer.strategy.model, "require_backward_grad_sync", True)


def update(phase: str, strategy: str, folder: Path) -> None:
    """Write `<phase>.safetensors`, the gradients of one update, and `<phase>.json`, what was logged and counted."""
    make_module, make_batch = PHASES[phase]
    kept, counted = KeepGradients(), CountSyncs()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    devices = int(os.environ.get("WORLD_SIZE", 1))
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1) if strategy == "fsdp" else strategy,
        max_epochs=1,
        use_distributed_sampler=False,
        callbacks=[kept, counted],
        **quiet,
    )
    module = make_module()
    trainer.fit(module, Data(make_batch))
    whole = module.whole_policy()  # of all processes
    if trainer.is_global_zero:
        assert whole.state_dict().keys() == policy().state_dict().keys()
        assert whole.act(observations(2), temperature=0.0)[keys.ACTION_CHUNK].isfinite().all()
        save_file({name: gradient.contiguous() for name, gradient in kept.gradients.items()}, folder / f"{phase}.safetensors")
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        found = {"metrics": metrics, "blocked": counted.blocked, "passes": counted.passes}
        (folder / f"{phase}.json").write_text(json.dumps(found))


def main() -> None:
    strategy, folder, *phases = sys.argv[1:]
    torch.set_num_threads(1)
    for phase in phases:
        update(phase, strategy, Path(folder))


if __name__ == "__main__":
    main()
