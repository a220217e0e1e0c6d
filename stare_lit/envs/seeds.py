"""The seeds that episodes start from, and what each split is for."""

from typing import Literal

from stare_lit.envs.robots import OFFICIAL_LAYOUTS

# Episode seeds, [low, high). Nothing is chosen on TEST; checkpoints, early stops and settings are chosen on VALIDATION.
# OFFICIAL is the protocol of the Bridge tasks: seed low + i is their fixed layout i. Their other splits draw layouts that are none of these.
SEED_RANGES: dict[str, tuple[int, int]] = {
    "train": (0, 1_000_000),
    "validation": (1_000_000, 2_000_000),
    "test": (2_000_000, 3_000_000),
    "official": (3_000_000, 3_000_000 + max(OFFICIAL_LAYOUTS.values())),
}
Split = Literal["train", "validation", "test", "official"]


def split_range(split: Split, task: str | None = None) -> range:
    """All episode seeds of ``split``.

    Args:
        task: whose layouts the official split means; the others do not depend on it.

    Raises:
        ValueError: unknown split, or official layouts of a task that has none.
    """
    if split not in SEED_RANGES:
        raise ValueError(f"split={split!r}: choose one of {sorted(SEED_RANGES)}.")
    low, high = SEED_RANGES[split]
    if split != "official":
        return range(low, high)
    if task not in OFFICIAL_LAYOUTS:
        raise ValueError(f"split='official': {task} has no fixed layouts; choose the split 'test', or one of the tasks {sorted(OFFICIAL_LAYOUTS)}.")
    return range(low, low + OFFICIAL_LAYOUTS[task])


def split_seeds(split: Split, num_episodes: int | None = None, *, task: str | None = None) -> list[int]:
    """The ``num_episodes`` first episode seeds of ``split``.

    Args:
        num_episodes: None for every official layout; the other splits are too long to be run whole.
        task: see ``split_range``, which also says what it raises.

    Raises:
        ValueError: more seeds than the split has, or none.
    """
    seeds = split_range(split, task)
    if num_episodes is None:
        if split != "official":
            raise ValueError(f"num_episodes=None: the {split} split has no natural length; say how many of its seeds.")
        num_episodes = len(seeds)
    if not 1 <= num_episodes <= len(seeds):
        raise ValueError(f"num_episodes={num_episodes}: the {split} split has the seeds {seeds[0]}..{seeds[-1]}.")
    return list(seeds[:num_episodes])


def official_layout(task: str, seed: int) -> int | None:
    """The fixed layout that ``seed`` means, or None for a seed of another split.

    Raises:
        ValueError: the task does not have this layout.
    """
    low, high = SEED_RANGES["official"]
    if not low <= seed < high:
        return None
    if seed - low >= OFFICIAL_LAYOUTS.get(task, 0):
        raise ValueError(f"seed={seed}: of the official split, of which {task} has {OFFICIAL_LAYOUTS.get(task, 0)} layouts; use the seeds of another split.")
    return seed - low
