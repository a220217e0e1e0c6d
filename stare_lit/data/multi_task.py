"""Demonstrations of several tasks for one policy, which has only the instruction to tell them apart."""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NonTensorData, TensorDict
from torch import Tensor

from stare_lit import keys
from stare_lit.data.demos import DemoDataModule
from stare_lit.data.metadata import read_metadata
from stare_lit.data.phase import fitting
from stare_lit.envs.factory import TOY


class MultiTaskDemoDataModule(DemoDataModule):
    """As ``DemoDataModule``, with its settings for each of ``tasks`` (so many demonstrations of each), all shuffled together.

    ``instruction_id`` counts through the texts of all tasks.

    Args:
        tasks: tasks of one robot (one action space, one proprioception), each kept in its own folder. With ``observation="state"`` also their objects must
            be as many, for a policy reads states of one size.
        settings: of ``DemoDataModule`` but ``folder``, the same for every task.

    Raises:
        ValueError: no task, one twice, tasks of different robots, the toy beside another, one folder for all, or a setting that does not fit.
    """

    def __init__(self, tasks: Sequence[str], **settings: Any) -> None:
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError(f"tasks={list(tasks)}: name one or more tasks, each once")
        if settings.get("folder") is not None:
            raise ValueError(f"folder={settings['folder']!r}: each task is kept in a folder of its own; leave it out")
        if TOY in tasks and len(tasks) > 1:
            raise ValueError(f"tasks={list(tasks)}: {TOY} has a world and a state of its own, which one policy cannot share with others; leave it out")
        super().__init__(tasks[0], **settings)
        self.tasks, self.parts = tuple(tasks), [DemoDataModule(task, **settings) for task in tasks]
        modes = {part.task: part.settings.metadata((0, 1)).control_mode for part in self.parts}
        if len(set(modes.values())) > 1:
            raise ValueError(f"tasks={list(tasks)}: are of different robots ({modes}), whose actions and states one policy cannot share; choose those of one")
        self.instructions = tuple(dict.fromkeys(text for part in self.parts for text in part.instructions))
        self._texts = [NonTensorData(text) for text in self.instructions]

    def prepare_data(self) -> None:
        """Makes the demonstrations that the folders lack (one process of each node).

        Raises:
            ValueError: the tasks' states have different sizes, or one lacks a camera; asked of the simulators first, for demonstrations take long.
        """
        if fitting(self) and (self.settings.observation == "state" or self.settings.cameras):
            _check_sizes({part.task: _stored_size(part) or _simulated_size(part) for part in self.parts})
        for part in self.parts:
            part.trainer = self.trainer
            part.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Reads and checks the demonstrations of every task, and puts them together, once.

        Raises:
            FileNotFoundError, ValueError: as ``DemoDataModule``; also states of different sizes.
        """
        if self._rows is not None or not fitting(self):
            return
        _check_sizes({part.task: size for part in self.parts if (size := _stored_size(part)) is not None})
        train: list[TensorDict] = []
        served: list[Tensor] = []
        validation: list[TensorDict] = []
        for part in self.parts:
            part.trainer = self.trainer
            part.setup(stage)
            served.append(part._served + sum(map(len, train)))
            own = torch.tensor([self.instructions.index(text) for text in part.instructions])
            for rows, kept in ((part._rows, train), (part._val_rows, validation)):
                if rows is not None:
                    kept.append(rows.set(keys.INSTRUCTION_ID, own[rows[keys.INSTRUCTION_ID]]))
            part._rows = part._val_rows = None  # held once
        self._val_rows = torch.cat(validation) if validation else None
        self._hold(torch.cat(train), torch.cat(served))


def _stored_size(part: DemoDataModule) -> int | None:
    """Numbers in a state of the demonstrations in the part's folder; None where there are none yet."""
    layout = read_metadata(part.folder, {})[1] if (part.folder / "metadata.json").exists() else None
    return None if layout is None else layout["/".join(keys.STATE)][1][-1]


def _simulated_size(part: DemoDataModule) -> int:
    """The same, of a simulator made for it (a second)."""
    env, _ = part.settings.demonstrator()
    try:
        return env.observation_spec[keys.STATE].shape[-1]
    finally:
        env.close()


def _check_sizes(sizes: dict[str, int]) -> None:
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"tasks={list(sizes)}: their states have different sizes ({sizes}), and a policy reads states of one; "
            "choose tasks whose states are alike, or observation='image'"
        )
