"""One writer a folder: a lock that the kernel takes back when its process ends, however it ends."""

import fcntl
import os
import platform
import warnings
from pathlib import Path
from typing import TextIO

LOCK = ".lock"


def lock_folder(folder: Path, *, argument: str) -> TextIO:
    """Makes ``folder`` where absent and holds it until the returned file is closed or this process is gone.

    A file system without locks (some network mounts) is used without one, with a warning.

    Args:
        argument: the setting that named the folder, for messages.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / LOCK, "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise ValueError(
            f"{argument}={str(folder)!r}: another process ({owner}) is writing to it; wait for it to end (or end it), or choose another folder"
        ) from None
    except OSError as error:
        warnings.warn(f"{folder} cannot be locked ({error.strerror}): see to it yourself that only one process writes to it", stacklevel=2)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file
