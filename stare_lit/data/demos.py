"""Demonstrations as batches for imitation; what is missing is made first."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning import LightningDataModule
from tensordict import NonTensorData, NonTensorStack, TensorDict
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from stare_lit import keys
from stare_lit.data.batches import IMAGE_SHIFT, BatchLoader, action_chunks, random_shift, start_repeated
from stare_lit.data.collect import collect_demos
from stare_lit.data.demonstrator import DemoSettings
from stare_lit.data.metadata import read_metadata
from stare_lit.data.phase import fitting, simulator_only
from stare_lit.data.trajectories import Trajectories
from stare_lit.envs.seeds import SEED_RANGES
from stare_lit.envs.signals import instructions_of
from stare_lit.models.vla import ActionStatistics

__all__ = ["DemoDataModule", "collect_demos"]


class DemoDataModule(LightningDataModule):
    """Batches [B] of single decisions: observation, instruction and the chunk of the expert's next actions.

    A batch holds ``observation``, ``instruction_id``, ``language_instruction`` (text), ``vla_action/chunk`` [B, H, A] and ``action_is_pad``
    [B, H]. All rows are kept in memory (uint8 images: 12 kB a row and camera at 64 px).

    Args:
        task: "Toy-v0" or a ManiSkill3 task.
        folder: of the trajectories; None is ``data/demos/`` and a name from task, image size, cameras and noise.
        num_episodes: demonstrations used, the first successes in the order of their seeds.
        first_seed: of the training range, where these begin; other ones are other demonstrations.
        val_episodes: further demonstrations, kept apart for a validation loss.
        batch_size: decisions in a batch, of each process.
        chunk_size: H, actions that the policy predicts at once.
        image_size, action_noise, max_episode_steps, visuals, observation, cameras, gripper_noise, arm_noise, disguised: how
            demonstrations are made; a folder made otherwise is refused.
        start_repeats: how often an epoch serves each of an episode's first three decisions (the others: once). In these nothing that the arm has done
            tells where it has to go; they are a tenth of the decisions, and a small policy learns them last (ours).
        max_shift: random shift of the training images by up to so many pixels, 0 for none.
        num_workers: processes that make missing demonstrations; None takes one for each core.
        seed: of the order of the batches and the shifts.
    """

    def __init__(
        self,
        task: str,
        *,
        folder: str | None = None,
        num_episodes: int = 100,
        first_seed: int = 0,
        val_episodes: int = 0,
        batch_size: int = 128,
        chunk_size: int = 4,
        image_size: int = 64,
        action_noise: float = 0.0,
        max_episode_steps: int | None = None,
        visuals: Literal["auto", "light", "exact"] = "auto",
        observation: Literal["image", "state"] = "image",
        cameras: tuple[str, ...] = (),
        gripper_noise: float = 0.0,
        arm_noise: float = 0.0,
        disguised: float = 0.0,
        start_repeats: int = 1,
        max_shift: int = 0,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("num_episodes", num_episodes, 1), ("val_episodes", val_episodes, 0), ("batch_size", batch_size, 1),
            ("chunk_size", chunk_size, 1), ("start_repeats", start_repeats, 1), ("max_shift", max_shift, 0),
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"{name}={value}: at least {least}")
        if not 0 <= first_seed < SEED_RANGES["train"][1]:
            raise ValueError(f"first_seed={first_seed}: the training range has the seeds 0..{SEED_RANGES['train'][1] - 1}")
        self.task, self.seed_range = task, (first_seed, SEED_RANGES["train"][1])
        self.settings = DemoSettings(
            task, image_size, action_noise, max_episode_steps, visuals, observation, tuple(cameras), gripper_noise, arm_noise, disguised
        )
        self.instructions = instructions_of(task)
        own = self.settings.folder.with_name(self.settings.folder.name + (f"-from{first_seed}" if first_seed else ""))
        self.folder = own if folder is None else Path(folder)
        self.num_episodes, self.val_episodes, self.batch_size, self.chunk_size = num_episodes, val_episodes, batch_size, chunk_size
        self.start_repeats, self.max_shift, self.num_workers, self.seed = start_repeats, max_shift, num_workers, seed
        self._texts = [NonTensorData(text) for text in self.instructions]
        self._rows: TensorDict | None = None
        self._served: Tensor | None = None
        self._val_rows: TensorDict | None = None
        self._statistics: ActionStatistics | None = None

    # -- data ----------------------------------------------------------------------------------------------------------
    def prepare_data(self) -> None:
        """Makes the demonstrations that the folder lacks (one process of each node)."""
        if not fitting(self):
            return
        wanted = self.num_episodes + self.val_episodes
        if (self.folder / "metadata.json").exists():
            stored = self._trajectories()
            if stored.num_episodes >= wanted or "imported_from" in stored.metadata.config:
                return
        collect_demos(self.settings, wanted, out=self.folder, num_workers=self.num_workers, seed_range=self.seed_range)

    def setup(self, stage: str | None = None) -> None:
        """Reads and checks the demonstrations, and builds their chunks, once.

        Raises:
            FileNotFoundError: there are none.
            ValueError: they are others than asked for, damaged, too few, shorter than a chunk, or start from seeds outside the training range.
        """
        if self._rows is not None or not fitting(self):
            return
        stored = self._trajectories(verify=True)
        wanted = self.num_episodes + self.val_episodes
        episodes = stored.select(success=True, limit=wanted)
        if len(episodes) < wanted:
            raise ValueError(f"num_episodes={self.num_episodes} and val_episodes={self.val_episodes}: {self.folder} holds {len(episodes)} demonstrations; "
                             f"make more with `stare demos --task {self.settings.task} --num_episodes {wanted} --out {self.folder}`")  # fmt: skip
        training, validation = episodes.tensor_split([self.num_episodes])
        self._val_rows = self._with_chunks(stored, validation) if self.val_episodes else None
        self._hold(self._with_chunks(stored, training), start_repeated(stored.episodes["length"][training], self.start_repeats))

    def _hold(self, rows: TensorDict, served: Tensor) -> None:
        """Keeps the training rows, of which row numbers ``served`` make an epoch, and the statistics of their actions."""
        statistics = ActionStatistics.from_actions(rows[keys.ACTION_CHUNK][:, 0])
        self._statistics = replace(statistics, mask=(True,) * (len(statistics.mask) - 1) + (False,))
        self._rows, self._served = rows, served

    def _trajectories(self, *, verify: bool = False) -> Trajectories:
        """The folder's trajectories; refuses others than the settings ask for. Imported ones were not made by our settings, but show what a policy sees."""
        asked = self.settings.metadata(self.seed_range)
        free = set(asked.config) - {"cameras"} if "imported_from" in read_metadata(self.folder, {})[0].config else set()
        return Trajectories(self.folder, verify=verify, **{name: value for name, value in asked.flat().items() if name not in free})

    def _with_chunks(self, stored: Trajectories, episodes: Tensor) -> TensorDict:
        lengths = stored.episodes["length"][episodes]
        if self.chunk_size > int(lengths.max()):
            raise ValueError(f"chunk_size={self.chunk_size} is longer than every demonstration in {self.folder} (at most {int(lengths.max())} steps); lower it")
        if keys.ACTION not in stored.layout:
            raise ValueError(f"folder={str(self.folder)!r} holds trajectories without actions (imported for stage labels only); choose another folder")
        seeds, (low, high) = stored.episodes["seed"][episodes], SEED_RANGES["train"]
        if (foreign := (seeds < low) | (seeds >= high)).any():  # of recordings that were imported before `stare demos --h5` refused them
            raise ValueError(f"folder={str(self.folder)!r}: {int(foreign.sum())} of {len(seeds)} demonstrations start from seeds outside the training range "
                             f"{low}..{high - 1} (such as {int(seeds[foreign][0])}), where policies may be measured; choose another folder")  # fmt: skip
        rows = stored.rows(stored.row_index(episodes), [keys.OBSERVATION, keys.INSTRUCTION_ID, keys.ACTION])
        chunk, is_pad = action_chunks(rows.pop(keys.ACTION), lengths, self.chunk_size)
        return rows.set(keys.ACTION_CHUNK, chunk).set(keys.ACTION_IS_PAD, is_pad)

    @property
    def environment(self) -> dict[str, Any]:
        """What a policy has to agree with (``Policy.environment``); images of another size it resizes."""
        return {"chunk_size": self.chunk_size, "observation": self.settings.observation, "cameras": list(self.settings.cameras)}

    @property
    def action_statistics(self) -> ActionStatistics:
        """1 % and 99 % quantiles of the training actions; the gripper (last dimension) is not normalised."""
        if self._statistics is None:
            raise RuntimeError("no action statistics before the demonstrations are read: call prepare_data() and setup() first")
        return self._statistics

    # -- loaders -------------------------------------------------------------------------------------------------------
    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches without end effects: each epoch serves whole batches only."""
        return self._loader(self._rows, served=self._served, shuffle=True, max_shift=self.max_shift)

    def val_dataloader(self) -> BatchLoader | DataLoader | list:
        """The demonstrations kept apart, in order; none where ``val_episodes`` is 0."""
        if not fitting(self):
            return simulator_only()
        return self._loader(self._val_rows, shuffle=False) if self.val_episodes else []

    def test_dataloader(self) -> DataLoader:
        """No data: a test is success in the simulator."""
        return simulator_only()

    def _loader(self, rows: TensorDict | None, *, shuffle: bool, served: Tensor | None = None, max_shift: int = 0) -> BatchLoader:
        if rows is None:
            raise RuntimeError("no demonstrations yet: call prepare_data() and setup() first (a Trainer does)")
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        data = rows if served is None else Subset(rows, served)  # type: ignore[arg-type]  # both take whole tensors of row numbers
        return BatchLoader(data, self.batch_size, seed=self.seed, shuffle=shuffle, max_shift=max_shift, rank=rank, world_size=world_size)

    def on_before_batch_transfer(self, batch: TensorDict | None, dataloader_idx: int) -> TensorDict | None:
        """Writes the instructions' text."""
        return batch if batch is None else batch.set(keys.INSTRUCTION, NonTensorStack(*(self._texts[i] for i in batch[keys.INSTRUCTION_ID].tolist())))

    def on_after_batch_transfer(self, batch: TensorDict | None, dataloader_idx: int) -> TensorDict | None:
        """Shifts the images, on the device."""
        shift = None if batch is None else batch.pop(IMAGE_SHIFT, None)
        if shift is not None:
            image = batch.get(keys.IMAGE)
            if isinstance(image, Tensor):
                batch.set(keys.IMAGE, random_shift(image, shift, self.max_shift))
            else:  # by camera
                image.update({name: random_shift(one, shift, self.max_shift) for name, one in image.items()})
        return batch
