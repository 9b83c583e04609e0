"""Figures and tables, and the two ways to show them: a PNG, and one self-contained HTML page.

`figure` says what is shown; `png` and `html` draw it. Knows nothing of models, tasks or runs.
"""

from __future__ import annotations

from stepwell.report.figure import (
    Chart,
    Choice,
    Column,
    Estimate,
    Facts,
    Heatmap,
    HeatmapGrid,
    Preformatted,
    Series,
    Table,
    TokenStrip,
)
from stepwell.report.html import Page
from stepwell.report.png import write_png

__all__ = [
    "Chart",
    "Choice",
    "Column",
    "Estimate",
    "Facts",
    "Heatmap",
    "HeatmapGrid",
    "Page",
    "Preformatted",
    "Series",
    "Table",
    "TokenStrip",
    "write_png",
]
