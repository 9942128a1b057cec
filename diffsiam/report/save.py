"""How every picture of the reports goes to disk."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffsiam import runtime

DPI = 300


def save(fig: Figure, out: Path) -> None:
    """Write ``out`` (.png, 300 dpi) and the .pdf beside it; the same figure gives the same bytes every day."""
    FigureCanvasAgg(fig)
    with runtime.atomic(out) as temporary:
        fig.savefig(temporary, format="png", dpi=DPI)
    with runtime.atomic(out.with_suffix(".pdf")) as temporary:
        fig.savefig(temporary, format="pdf", metadata={"CreationDate": None})
