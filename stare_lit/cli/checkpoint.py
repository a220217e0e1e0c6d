"""Lightning checkpoints that are whole or not there, and that are checked before anything in them is used."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

PART = ".part"
WAY_OUT = "give another checkpoint of that run (--ckpt_path <file>.ckpt), or start it anew in another --run_dir"
KEYS = {"state_dict", "pytorch-lightning_version"}


class CheckedCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint and renames (Lightning writes to the system's temporary folder and copies, which a kill can cut short).

    Every entry of the file carries a CRC-32, which ``torch.load`` does not look at; here it is compared before loading. Tensors and plain values
    only: nothing is ever unpickled.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".*{PART}"):  # of a killed run; the run folder's lock says that nobody else writes here
            leftover.unlink()
        temporary = path.with_name(f".{path.name}{PART}")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error.__context__, KeyboardInterrupt):  # torch's writer of archives fails in turn when it is cut short
                raise error.__context__ from None
            if not isinstance(error, (OSError, RuntimeError)):
                raise
            raise OSError(f"{path} cannot be written ({error}); the checkpoint before it is whole: make room, then go on with --ckpt_path last") from error

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        check_checkpoint(path)
        return super().load_checkpoint(path, map_location=map_location, weights_only=True)


def check_checkpoint(path: str | Path) -> None:
    """Raises ValueError unless ``path`` is a whole, undamaged Lightning checkpoint of tensors and plain values."""
    if not Path(path).is_file():
        raise ValueError(f"ckpt_path={str(path)!r} is not a file; give the .ckpt file of an earlier run, or --run_dir with --ckpt_path last")
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        keys = set() if damaged else set(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception as error:
        reason = str(error).split("\n")[0].split(". This ")[0]
        raise ValueError(f"ckpt_path={str(path)!r} cannot be read as a checkpoint ({type(error).__name__}: {reason}); {WAY_OUT}") from error
    if damaged:
        raise ValueError(f"ckpt_path={str(path)!r} is damaged: the checksum of {damaged} does not fit; {WAY_OUT}")
    if missing := KEYS - keys:
        raise ValueError(f"ckpt_path={str(path)!r} is no Lightning checkpoint: it lacks {sorted(missing)}; {WAY_OUT}")
