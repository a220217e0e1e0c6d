"""Samples a second of imitation under the Lightning trainer, against a bare loop over the same model. Target: at least 0.9 of the bare loop.

Run alone on the machine: python benchmarks/sft_speed.py [--pairs 7] [--steps 20]

A pair is ``steps`` updates by `SFTModule` under a Trainer, with the data module, callbacks and logger of the shipped configuration, and as many
by the bare loop: batches made beforehand (images shifted, prompts tokenised, actions encoded), forward, cross entropy, backward, clipping, AdamW. The
same policy, batch size and precision; who begins alternates. Times of both start after the first update. Demonstrations are the toy's at
the image size of the shipped policy, for they are made in seconds; an update does not depend on what the images show.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from rich.table import Table
from saving import save
from tensordict import TensorDict
from torch import nn

from stare_lit import keys
from stare_lit.algorithms.sft import SFTModule
from stare_lit.callbacks import NonFiniteGuard
from stare_lit.data.demos import DemoDataModule
from stare_lit.evaluation.report import console
from stare_lit.models.vla.presets import tiny
from stare_lit.objectives.imitation import action_token_cross_entropy

RESULTS = Path(__file__).parent / "results"
TARGET = 0.9


class Watch(Callback):
    """Seconds from the end of the first update to the end of the last."""

    def __init__(self, steps: int) -> None:
        self.steps, self.started, self.seconds = steps, 0.0, 0.0

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == 1:
            self.started = time.perf_counter()
        elif trainer.global_step == self.steps + 1:
            self.seconds = time.perf_counter() - self.started


def under_the_trainer(policy: nn.Module, data: DemoDataModule, arguments: argparse.Namespace) -> float:
    """Seconds for ``steps`` updates as `stare fit --config configs/sft.yaml` makes them."""
    watch = Watch(arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu", max_steps=arguments.steps + 1, max_epochs=-1, precision=arguments.precision, gradient_clip_val=1.0, log_every_n_steps=20,
            logger=CSVLogger(folder), callbacks=[NonFiniteGuard(), watch], enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(SFTModule(policy), data)
    return watch.seconds


def bare_loop(policy: nn.Module, batches: list[TensorDict], arguments: argparse.Namespace) -> float:
    """Seconds for ``steps`` updates of nothing but the model."""
    policy.value_head.requires_grad_(False)  # as in the phase
    policy.train()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)
    started = 0.0
    for step in range(arguments.steps + 1):
        batch = batches[step % len(batches)]
        with torch.autocast("cpu", torch.bfloat16) if arguments.precision == "bf16-mixed" else nullcontext():
            output = action_token_cross_entropy(policy.logits(batch), batch[keys.ACTION_TOKENS], action_is_pad=batch[keys.ACTION_IS_PAD])
        optimizer.zero_grad()
        output.mean.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step == 0:
            started = time.perf_counter()
    return time.perf_counter() - started


def prepared(data: DemoDataModule, policy: nn.Module, num: int) -> list[TensorDict]:
    """Batches as the model takes them, made with the data module's own parts."""
    batches = []
    while len(batches) < num:  # one epoch of few demonstrations may hold fewer
        for batch in data.train_dataloader():
            batch = data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)
            batch.set(keys.INSTRUCTION_TOKENS, policy.prompts(batch.pop(keys.INSTRUCTION).tolist()))
            batches.append(batch.set(keys.ACTION_TOKENS, policy.encode_actions(batch[keys.ACTION_CHUNK])))
            if len(batches) == num:
                break
    return batches


def main(line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--num_episodes", type=int, default=60)
    parser.add_argument("--hidden_size", type=int, default=192)
    parser.add_argument("--num_layers", type=int, default=3)
    parser.add_argument("--precision", default="bf16-mixed", choices=("bf16-mixed", "32-true"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--output", default=str(RESULTS / "sft_speed.json"))
    arguments = parser.parse_args(line)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    torch.manual_seed(0)
    policy = tiny(4, image_size=arguments.image_size, hidden_size=arguments.hidden_size, num_layers=arguments.num_layers)
    with tempfile.TemporaryDirectory() as folder:
        data = DemoDataModule(
            "Toy-v0", folder=f"{folder}/demos", num_episodes=arguments.num_episodes, batch_size=arguments.batch_size, chunk_size=policy.chunk_size,
            image_size=arguments.image_size, max_shift=4, num_workers=0,
        )  # fmt: skip
        data.prepare_data()
        data.setup("fit")
        policy.set_action_statistics(data.action_statistics)
        batches = prepared(data, policy, min(arguments.steps, 8))
        sides = {"trainer": lambda: under_the_trainer(policy, data, arguments), "bare loop": lambda: bare_loop(policy, batches, arguments)}
        pairs: list[dict[str, float]] = []
        for pair in range(arguments.pairs + 1):
            names = list(sides) if pair % 2 == 0 else list(sides)[::-1]
            pairs.append({name: arguments.batch_size * arguments.steps / sides[name]() for name in names})
    pairs = pairs[1:]  # the first warms everything up
    shares = sorted(pair["trainer"] / pair["bare loop"] for pair in pairs)
    rates = {name: statistics.median(pair[name] for pair in pairs) for name in sides}
    share = statistics.median(shares)
    table = Table("", "samples/s", title=f"imitation, batches of {arguments.batch_size}, {arguments.precision}")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:.0f}")
    table.add_row("trainer / bare loop [min-max]", f"{share:.3f} [{shares[0]:.3f}-{shares[-1]:.3f}], target {TARGET}: {'yes' if share >= TARGET else 'no'}")
    console().print(table)
    content = {"samples_per_second": rates, "share": share, "shares": shares, "target": TARGET}
    save(arguments.output, arguments, content | {"torch_threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
