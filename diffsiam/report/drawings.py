"""Figures 3.1 and 4.8: drawings of the architecture and of the two strategies, from the real modules' shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import UNet2DModel
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor, nn

from diffsiam import runtime
from diffsiam.models import segments
from diffsiam.models.decoder import Decoder
from diffsiam.models.encoder import Encoder
from diffsiam.models.simsiam import Heads
from diffsiam.models.unet import DiffusionModel

FROZEN, TRAINED, DATA, MASKED = "#d9dee6", "#f7c98b", "#ffffff", "#f2f2f2"  # grey: frozen, orange: trained


class Block(NamedTuple):
    """Width of what a block puts out, and the sides of the feature maps that it takes in and puts out."""

    width: int
    side: int
    side_out: int


@dataclass(frozen=True)
class Shapes:
    """Sizes of the real modules.

    Attributes:
        stages: the encoder's, in the order that an image passes them.
        projector, predictor: widths, input first.
        down, middle, up: the U-Net's; the decoder's middle and up path have the same.
    """

    image_size: int
    dim: int
    segments: int
    stages: list[Block]
    projector: list[int]
    predictor: list[int]
    down: list[Block]
    middle: Block
    up: list[Block]


def shapes(representation: Path, diffusion: Path) -> Shapes:
    """Build encoder, heads, diffusion model and decoder without memory and watch an image pass through them.

    Args:
        representation: config.json of a trained encoder.
        diffusion: config.json of its diffusion model, diffusers' layout.
    """
    record = runtime.read_json(representation)
    config = {k: v for k, v in runtime.read_json(diffusion).items() if not k.startswith("_")}
    with torch.device("meta"):
        encoder = Encoder(record["encoder_width"], record["image_size"], record.get("stem", "auto"))
        heads = Heads(record["dim"])
        dm = DiffusionModel(UNet2DModel.from_config(config)).eval()
        decoder = Decoder(dm.unet, record["dim"])
        x = torch.empty(2, 3, record["image_size"], record["image_size"])
        stages = _watch([*encoder.layer1, *encoder.layer2, *encoder.layer3, *encoder.layer4])  # a block each
        down = _watch(dm.unet.down_blocks)
        middle, up = _watch([decoder.unet.mid_block]), _watch(decoder.unet.up_blocks)
        z = encoder(x)
        decoder(z, dm.trunk(x, torch.ones(2, dtype=torch.int64)))
    return Shapes(
        record["image_size"],
        z.shape[1],
        record["segments"],
        stages,
        _widths(heads.projector),
        _widths(heads.predictor),
        down,
        middle[0],
        up,
    )


def _watch(modules: list[nn.Module] | nn.ModuleList) -> list[Block]:
    """A list that gets each module's sizes when it runs."""
    seen: list[Block] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        out = output[0] if isinstance(output, tuple) else output
        seen.append(Block(out.shape[1], args[0].shape[2], out.shape[2]))

    for module in modules:
        module.register_forward_hook(note)
    return seen


def _widths(head: nn.Sequential) -> list[int]:
    linear = [m for m in head if isinstance(m, nn.Linear)]
    return [linear[0].in_features, *(m.out_features for m in linear)]


# --------------------------------------------------------------------------------------------------- elements
def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, colour: str, size: float = 8) -> None:
    style = "round,pad=0,rounding_size=0.06"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor="black", lw=0.8))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 0.9, "shrinkA": 0, "shrinkB": 0}
    )


def _strip(ax: Axes, x: float, y: float, width: float, height: float, kept: list[bool]) -> None:
    """z as a row of segments: those that the decoder sees in the colour of what is trained, the others crossed out."""
    step = width / len(kept)
    for i, keep in enumerate(kept):
        colour = TRAINED if keep else MASKED
        ax.add_patch(Rectangle((x + i * step, y), step, height, facecolor=colour, edgecolor="grey", lw=0.4))
        if not keep:
            ax.plot([x + i * step, x + (i + 1) * step], [y, y + height], color="lightgrey", lw=0.5)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    fig = Figure(figsize=(width, height))
    ax = fig.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def kept(strategy: str, k: int, dim: int, count: int) -> list[bool]:
    """Which of ``count`` segments of z the decoder sees at k, as the training masks them."""
    edges = segments.even_edges(dim, count)
    masked = segments.mask(torch.ones(1, dim), torch.tensor([k]), edges, strategy)[0]
    return [bool(masked[int(edges[i])]) for i in range(count)]


# ------------------------------------------------------------------------------------------------- Figure 3.1
def architecture(dataset: str, s: Shapes) -> Figure:
    """Figure 3.1: the encoder and SimSiam, one term of Eq. 3.11, and the networks inside."""
    # Inches; the networks inside, more of them for a model of more levels, stand below the other two parts.
    width, above, below = 10.0, 5.4, 2.1 + min(0.85 * len(s.down), 3.0)
    fig, ax = _canvas(width, above + below)
    ax.set_ylim(6.0 - above - below, 6.0)
    ax.text(5.0, 5.75, f"DiffSiam as trained on {dataset}, {s.image_size}x{s.image_size}", ha="center", fontsize=11)
    _left(ax, s)
    _middle(ax, s)
    inside = fig.add_axes((0.0, 0.0, 1.0, below / (above + below)), xlim=(8.1, 18.1), ylim=(5.5 - below, 5.5))
    inside.axis("off")
    _right(inside, s)
    for y, colour, text in ((-0.9, TRAINED, "trained"), (-1.3, FROZEN, "frozen")):
        ax.add_patch(Rectangle((0.2, y), 0.3, 0.2, facecolor=colour, edgecolor="black", lw=0.8))
        ax.text(0.6, y + 0.1, text, va="center", fontsize=8)
    return fig


def _left(ax: Axes, s: Shapes) -> None:
    ax.text(2.7, 5.25, "(1) Encoder and SimSiam", ha="center", fontsize=9)
    image = f"3x{s.image_size}x{s.image_size}"
    for y, name in ((4.1, "view 1"), (3.1, "view 2"), (1.0, r"$\mathbf{x}_0$")):
        _box(ax, 0.2, y, 0.95, 0.7, f"{name}\n{image}", DATA)
        _arrow(ax, (1.15, y + 0.35), (1.45, y + 0.35))
    stages = "\n".join(f"{stage.width}x{stage.side_out}x{stage.side_out}" for stage in s.stages)
    _box(ax, 1.45, 0.8, 1.1, 4.1, f"$f_\\omega$\nResNet-10\n\n{stages}\n\nmean over\npixels", TRAINED)
    for y in (4.45, 3.45):
        _arrow(ax, (2.55, y), (2.85, y))
    _box(ax, 2.85, 3.05, 1.1, 1.8, "projector\n" + "\n".join(map(str, s.projector)), TRAINED)
    _arrow(ax, (3.95, 4.45), (4.2, 4.45))
    _box(ax, 4.2, 4.05, 1.1, 0.8, f"predictor $p_\\gamma$\n{'-'.join(map(str, s.predictor))}", TRAINED, 7.5)
    _arrow(ax, (4.75, 4.05), (4.75, 3.65))
    _arrow(ax, (3.95, 3.35), (4.2, 3.35))
    _box(ax, 4.2, 3.05, 1.1, 0.6, r"$-\cos$ (Eq. 3.9)", DATA, 7.5)
    ax.text(4.08, 2.87, "stop-gradient", ha="center", fontsize=7.5)
    _arrow(ax, (2.55, 1.35), (2.85, 1.35))
    _strip(ax, 2.85, 1.15, 2.45, 0.4, [True] * s.segments)
    note = f"$\\mathbf{{z}}$: d = {s.dim} in n = {s.segments} segments of {s.dim // s.segments}"
    ax.text(4.08, 0.9, note, ha="center", fontsize=7.5)


def _middle(ax: Axes, s: Shapes) -> None:
    ax.text(7.75, 5.25, "(2) One term of Eq. (3.11)", ha="center", fontsize=9)
    _box(ax, 5.8, 3.9, 1.1, 0.7, r"$\mathbf{x}_{t+k}$, $t$", DATA)
    _arrow(ax, (6.9, 4.25), (7.2, 4.25))
    _box(ax, 7.2, 3.8, 1.2, 0.9, "$u_\\theta$\nU-Net", FROZEN)
    _arrow(ax, (8.4, 4.25), (8.75, 4.25))
    _box(ax, 8.75, 3.9, 0.95, 0.7, r"$\hat{\mathbf{x}}_0$", DATA)
    _arrow(ax, (7.8, 3.8), (7.8, 2.9))
    ax.text(7.9, 3.35, "features of the down path", fontsize=7.5, va="center")
    k = max(1, s.segments // 3)
    _strip(ax, 5.6, 2.3, 1.35, 0.4, kept("hierarchical", k, s.dim, s.segments))
    ax.text(6.27, 2.05, f"$\\bar{{\\mathbf{{z}}}}_k$, here k = {k}", ha="center", fontsize=7.5)
    _arrow(ax, (6.95, 2.5), (7.2, 2.5))
    _box(ax, 7.2, 2.1, 1.2, 0.8, "$g_\\phi$\ndecoder", TRAINED)
    _arrow(ax, (8.4, 2.5), (8.75, 2.5))
    _box(ax, 8.75, 2.15, 0.95, 0.7, r"$w_t\, g_\phi$", DATA)
    _box(ax, 5.8, 0.8, 3.9, 0.7, r"$\lambda_t\,\|\mathbf{x}_0-(\hat{\mathbf{x}}_0+w_t\,g_\phi)\|^2$", DATA, 10)
    _arrow(ax, (9.22, 2.15), (9.22, 1.5))
    ax.plot([9.7, 9.85, 9.85], [4.25, 4.25, 1.15], color="black", lw=0.9)
    _arrow(ax, (9.85, 1.15), (9.7, 1.15))


def _size(block: Block) -> str:
    return f"{block.width}, {block.side}x{block.side}"


def _right(ax: Axes, s: Shapes) -> None:
    ax.text(13.1, 5.25, "(3) Inside: one down path, two ways up", ha="center", fontsize=9)
    columns = {"up": 10.4, "down": 12.25, "own": 14.1}
    heads = {"up": r"$u_\theta$, up path", "down": r"$u_\theta$, down path", "own": r"$g_\phi$, up path"}
    for name, x in columns.items():
        ax.text(x + 0.75, 4.9, heads[name], ha="center", fontsize=8)
    levels = len(s.down)
    height = min(0.7, 3.0 / levels - 0.15)
    tops = [4.7 - (i + 1) * (height + 0.15) for i in range(levels)]
    for i, y in enumerate(tops):
        up = s.up[levels - 1 - i]
        _box(ax, columns["down"], y, 1.5, height, _size(s.down[i]), FROZEN, 7.5)
        _box(ax, columns["up"], y, 1.5, height, _size(up), FROZEN, 7.5)
        _box(ax, columns["own"], y, 1.5, height, _size(up), TRAINED, 7.5)
        _arrow(ax, (columns["down"], y + height / 2), (columns["up"] + 1.5, y + height / 2))
        _arrow(ax, (columns["down"] + 1.5, y + height / 2), (columns["own"], y + height / 2))
        if i:
            above = tops[i - 1]
            _arrow(ax, (columns["down"] + 0.75, above), (columns["down"] + 0.75, y + height))
            for name in ("up", "own"):
                _arrow(ax, (columns[name] + 0.75, y + height), (columns[name] + 0.75, above))
    y = tops[-1] - 0.2 - 0.6
    text = f"middle\n{_size(s.middle)}"
    for name, colour in (("up", FROZEN), ("own", TRAINED)):
        _box(ax, columns[name], y, 1.5, 0.6, text, colour, 7.5)
        _arrow(ax, (columns[name] + 0.75, y + 0.6), (columns[name] + 0.75, tops[-1]))
        side = columns[name] + (1.5 if name == "up" else 0.0)
        _arrow(ax, (columns["down"] + 0.75, tops[-1]), (side, y + 0.3))
    ax.text(14.85, y - 0.12, "each block: a group norm scaled and\nshifted by the step, then by "
            r"$\bar{\mathbf{z}}_k$", ha="center", va="top", fontsize=7.5)  # fmt: skip


# ------------------------------------------------------------------------------------------------- Figure 4.8
_STRATEGIES = {
    "hierarchical": "(a) Hierarchical: all segments up to k",
    "sequential": "(b) Sequential: segment k alone",
}
_SHOWN = 8  # segments of z drawn; the first of the real ones


def strategies(dataset: str, dim: int, count: int) -> Figure:
    """Figure 4.8: which segments guide the reconstruction after k extra forward steps, by either strategy.

    Args:
        dim, count: d and n of the encoder; the first segments are drawn, masked by the function that training uses.
    """
    shown = min(_SHOWN, count)
    steps = [1, 2, 3, shown]
    fig, ax = _canvas(12.0, 4.4)
    title = f"Two strategies, d = {dim} in n = {count} segments ({dataset}); the first {shown} are drawn"
    ax.text(6.0, 4.12, title, ha="center", fontsize=13)
    for panel, (strategy, name) in enumerate(_STRATEGIES.items()):
        left = 0.2 + 6.0 * panel
        ax.text(left + 2.8, 3.7, name, ha="center", fontsize=12)
        for row, k in enumerate(steps):
            y = 2.85 - 0.85 * row
            _box(ax, left, y, 0.9, 0.5, f"$\\mathbf{{x}}_{{t+{k}}}$", DATA, 11)
            _arrow(ax, (left + 0.9, y + 0.25), (left + 1.2, y + 0.25))
            _strip(ax, left + 1.2, y + 0.05, 2.3, 0.4, kept(strategy, k, dim, count)[:shown])
            _arrow(ax, (left + 3.5, y + 0.25), (left + 3.8, y + 0.25))
            _box(ax, left + 3.8, y, 0.7, 0.5, r"$w_t\,g_\phi$", TRAINED, 10)
            _arrow(ax, (left + 4.5, y + 0.25), (left + 4.8, y + 0.25))
            _box(ax, left + 4.8, y, 0.7, 0.5, r"$\hat{\mathbf{x}}_0$", DATA, 11)
            if row:
                _arrow(ax, (left + 0.45, y + 0.85), (left + 0.45, y + 0.5))
                more = "" if k == steps[row - 1] + 1 else " …"
                ax.text(left + 0.55, y + 0.67, f"+ noise{more}", fontsize=9, va="center")
    return fig
