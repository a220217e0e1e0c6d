"""What the DataModules of the three phases share: ``stare validate`` and ``stare test`` measure success in the simulator and need no data."""

from lightning import LightningDataModule
from torch.utils.data import DataLoader


def fitting(data: LightningDataModule) -> bool:
    """Whether ``data`` has to serve batches: in training, and where it is used without a Trainer."""
    return data.trainer is None or data.trainer.state.fn == "fit"


def simulator_only() -> DataLoader:
    """One batch, None: Lightning then runs the hooks in which ``RolloutEvaluation`` measures, and no more."""
    return DataLoader([None], batch_size=None, collate_fn=lambda batch: batch)
