"""How our pictures look and are written: one style, and a figure that needs no display."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

from settings.errors import InputError
from weights.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAIN, ACCENT, FAINT = "#2b5f8a", "#d1782b", "#8a939c"
"""The palette: what is measured, what stands out, what is only there to compare with."""

_STYLE: Any = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "xtick.color": "#4a5259",
    "ytick.color": "#4a5259",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "grid.alpha": 0.3,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    # A client called $x$ is not a formula.
    "text.parse_math": False,
}
_DPI = 130
_KINDS = (".png", ".svg", ".pdf", ".jpg")


@contextmanager
def drawing() -> Iterator[None]:
    """Our style, for figures that are made and written inside.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError:
        raise InputError("the picture needs the extra: pip install 'fedferry[plot]'") from None
    with rc_context(_STYLE), catch_warnings():
        # Names of clients may be in any script; a font without it draws a box.
        filterwarnings("ignore", message="Glyph")
        yield


def new_figure(width: float, height: float, title: str = "") -> "Figure":
    """An empty figure of a size in inches, with a title above everything."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def check_picture(path: Path) -> None:
    """Raise InputError unless the name says what kind of picture is to be written."""
    if path.suffix not in _KINDS:
        raise InputError(f"{path}: the name of a picture must end in {', '.join(_KINDS)}")


def write_picture(figure: "Figure", path: Path) -> None:
    """Write a figure as what the name says, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format=path.suffix[1:])
