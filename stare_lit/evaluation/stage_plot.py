"""Draws an ``Episode``: whether a separator is right shall be seen at a glance, as a picture and on the terminal."""

from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from stare_lit.evaluation.episode import Episode

MAX_IMAGES = 12  # in the camera strip
DONE = "done"
BARS = " ▁▂▃▄▅▆▇█"


def _legend(episode: Episode) -> list[tuple[str, str, str]]:
    """Name, colour and the colour of text on it, of each stage and of done: an order that also reads in grey."""
    num = len(episode.stage_names)
    stages = [(name, to_hex(colormaps["viridis"](0.15 + 0.7 * k / max(1, num - 1))), "white") for k, name in enumerate(episode.stage_names)]
    return [*stages, (DONE, "#b8e0b8", "black")]


def _title(episode: Episode) -> str:
    return f'{episode.task}, seed {episode.seed}: "{episode.instruction}", {"success" if episode.success else "no success"}'


def _strip(ax: Axes, episode: Episode) -> None:
    """Camera images over the steps at which they were taken."""
    chosen = torch.linspace(0, len(episode.images) - 1, min(MAX_IMAGES, len(episode.images))).round().long()
    picture = torch.cat([episode.images[i].permute(1, 2, 0) for i in chosen], dim=1)
    ax.imshow(picture.numpy(), aspect="equal", interpolation="nearest")
    side = episode.images.shape[-1]
    ax.set_xticks([side * (i + 0.5) for i in range(len(chosen))], [str(int(episode.time[i])) for i in chosen])
    ax.set_yticks([])
    ax.set_xlabel("step")


def _bands(axes: list[Axes], episode: Episode) -> None:
    """Stages as bands behind the curves, named in the first of ``axes``."""
    legend, bands = _legend(episode), episode.bands()
    end = bands[-1][2]
    for index, first, last in bands:
        name, colour, ink = legend[index]
        for i, ax in enumerate(axes):
            ax.axvspan(first, last, color=colour, alpha=0.9 if i == 0 else 0.25, linewidth=0)
        if last - first > end / 40:
            axes[0].text((first + last) / 2, 0.5, name, ha="center", va="center", color=ink)
        elif last == end:  # too narrow for its name, which stands beside it
            axes[0].text(1.005, 0.5, name, ha="left", va="center", transform=axes[0].transAxes)
    axes[0].set_yticks([])
    axes[0].set_ylabel("stage", rotation=0, ha="right", va="center")


def draw(episode: Episode) -> Figure:
    """Camera strip on top, then the stage as bands, and below them the stage error, the potential and the reward of each decision."""
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    strip, stage, error, potential, reward = figure.subplots(5, 1, height_ratios=[2.2, 0.6, 1.2, 1.2, 1.2])
    figure.suptitle(_title(episode))
    _strip(strip, episode)
    _bands([stage, error, potential, reward], episode)
    time = episode.time.numpy()
    for ax, values, name in ((error, episode.stage_error, "error d"), (potential, episode.potential, "potential Φ")):
        ax.plot(time, values.numpy(), color="black", marker=".", markersize=4)
        ax.set_ylim(-0.05, 1.05)
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
    shaping, bars = episode.reward - episode.sparse_reward, {"width": (episode.time.diff() * 0.9).numpy(), "align": "edge"}
    reward.bar(time[:-1], shaping.numpy(), color="#444444", label="shaping F", **bars)
    reward.bar(time[:-1], episode.sparse_reward.numpy(), color="none", edgecolor="black", label="success R", **bars)
    reward.axhline(0, color="black", linewidth=0.8)
    reward.set_ylabel("reward", rotation=0, ha="right", va="center")
    reward.legend(loc="upper left", fontsize="small")
    reward.set_xlabel("environment step")
    for ax in (stage, error, potential, reward):
        ax.set_xlim(0, episode.bands()[-1][2])
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def check_path(path: str | Path) -> None:
    """Raises ValueError for a file whose ending names no format that can be drawn."""
    known = Figure().canvas.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".") not in known:
        raise ValueError(f"output={str(path)!r}: its ending chooses the format; choose one of .{', .'.join(sorted(known))}")


def save(episode: Episode, path: str | Path) -> Path:
    """Write ``draw(episode)`` to ``path`` (the ending chooses the format: .png, .pdf, .svg)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(episode).savefig(path, dpi=120)
    return path


def _spark(values: Tensor, low: float, high: float) -> str:
    """One character a value, higher for more; values are clipped to [low, high]."""
    share = ((values - low) / max(high - low, 1e-9)).clamp(0, 1)
    return "".join(BARS[int(round(float(x) * (len(BARS) - 1)))] for x in share)


def terminal(episode: Episode) -> Group:
    """The same for rich: one character a state, bands in colour with their names and steps."""
    legend, line = _legend(episode), Text()
    for name, colour, ink in (legend[index] for index in episode.stage_index.tolist()):
        line.append(name[0], style=f"{ink} on {colour}")
    table = Table.grid(padding=(0, 2))
    table.add_row("stage", line)
    table.add_row("error", Text(_spark(episode.stage_error, 0, 1)))
    table.add_row("potential", Text(_spark(episode.potential, 0, 1)))
    most = float(episode.reward.abs().max())
    table.add_row("reward", Text(" " + _spark(episode.reward, -most, most)))
    end = int(episode.time[-1])
    steps = [(*legend[index], f"{first}-{last}" if last <= end else f"{first}") for index, first, last in episode.bands()]
    spans = Text(", ").join(Text.assemble((f" {name} ", f"{ink} on {colour}"), f" {text}") for name, colour, ink, text in steps)
    return Group(Text(_title(episode), style="bold"), table, spans)
