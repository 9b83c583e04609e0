"""The pictures of a run's report, each from its history alone. Pure: what is drawn, not where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from stepwell.report import Chart, Series
from stepwell.train.history import DEPTH, SINCE_LOWEST, History, Record, by_depth, column, names

LOSS_UNIT: Final = "loss, nats a label"
SMOOTH_FROM: Final = 12  # records; fewer are their own curve
SMOOTHED_SHARE: Final = 0.08  # of the records, which one mean is taken of
LOG_SPAN: Final = 30.0  # a curve that falls by more is drawn on a logarithmic axis
MOST_DEPTHS: Final = 8

PACE: Final[Mapping[str, tuple[str, str]]] = {
    "lr": ("Learning rate", "learning rate"),
    "grad_norm": ("Gradient norm before clipping", "norm"),
    "tokens_per_s": ("Tokens a second", "tokens a second"),
    "skipped": ("Updates skipped since the last record", "updates"),
}


def run_charts(history: History) -> dict[str, Chart]:
    """The pictures that a run has the records for, by the names of their files."""
    drawn = {
        "loss": loss_chart(history),
        "accuracy": accuracy_chart(history),
        "accuracy_by_depth": depth_chart(history),
        "accuracy_over_steps": depths_over_steps_chart(history),
        **other_charts(history),
        **pace_charts(history.training),
    }
    return {name: chart for name, chart in drawn.items() if chart is not None}


def loss_chart(history: History) -> Chart | None:
    """Training loss, raw and smoothed, and validation loss, with the best weights marked."""
    raw, checked = column(history.training, "loss"), column(history.validation, "loss")
    if not raw[0] and not checked[0]:
        return None
    series = [Series("training", *raw)]
    if len(raw[0]) >= SMOOTH_FROM:
        series.append(Series("training, smoothed", raw[0], smoothed(raw[1])))
    if checked[0]:
        series.append(Series("validation", *checked))
    if history.best_step is not None and "loss" in history.best:
        marks = [history.best_step], [history.best["loss"]]
        series.append(Series("best weights", *marks, style="points"))
    values = raw[1] + checked[1]
    series += session_marks(history, values)
    return Chart("Loss", "step", LOSS_UNIT, series, y_log=spans_widely(values))


def session_marks(history: History, values: Sequence[float]) -> list[Series]:
    """A vertical line where each further session went on, as high as the values."""
    finite = [value for value in values if math.isfinite(value)]
    steps = [step for session in history.sessions if (step := session.get("after_step"))]
    if not finite or not steps:
        return []
    x = [place for step in steps for place in (step, step, math.nan)]
    y = [place for _ in steps for place in (min(finite), max(finite), math.nan)]
    return [Series("went on", x, y, style="reference")]


def accuracy_chart(history: History) -> Chart | None:
    """The accuracies of the evaluations by step, those of single depths left out."""
    kinds = [name for name in names(history.validation) if is_share(name) and DEPTH not in name]
    series = [Series(plain(name), *column(history.validation, name)) for name in kinds]
    if not series:
        return None
    return Chart("Accuracy", "step", "right", series, y_percent=True, y_range=(0.0, 1.0))


def depths_over_steps_chart(history: History) -> Chart | None:
    """Accuracy by step, a line for each depth; where there are many depths, some of them."""
    depths = sorted({depth for each in history.validation for depth in by_depth(each, "accuracy")})
    if len(depths) < 2:
        return None
    shown = spaced(depths, MOST_DEPTHS)
    note = "" if len(shown) == len(depths) else f"{len(shown)} of {len(depths)} depths."
    series = [
        Series(f"depth {depth}", *column(history.validation, f"accuracy{DEPTH}{depth}"))
        for depth in shown
    ]
    fixed = {"y_percent": True, "y_range": (0.0, 1.0), "ordered": True}
    title = "Accuracy by depth, over steps"
    return Chart(title, "step", "right", series, note=note, **fixed)  # type: ignore[arg-type]


def depth_chart(history: History) -> Chart | None:
    """The accuracy of the best weights by depth."""
    depths = by_depth(history.best, "accuracy")
    if not depths:
        return None
    bars = Series("best weights", range(len(depths)), list(depths.values()), style="bars")
    return Chart(
        f"Accuracy by depth, best weights (step {history.best_step:,})",
        "depth",
        "right",
        [bars],
        y_percent=True,
        y_range=(0.0, 1.0),
        categories=[str(depth) for depth in depths],
    )


def other_charts(history: History) -> dict[str, Chart]:
    """A picture for each further metric of the evaluations, such as those of one's own trainer."""
    return {
        name.replace("/", "_"): Chart(
            plain(name).capitalize(),
            "step",
            plain(name),
            [Series("validation", *column(history.validation, name))],
        )
        for name in names(history.validation)
        if name not in ("loss", SINCE_LOWEST) and not is_share(name) and DEPTH not in name
    }


def pace_charts(training: Sequence[Record]) -> dict[str, Chart]:
    """Learning rate, gradient norm, tokens a second; skipped updates where there were any."""
    charts = {}
    for name, (title, unit) in PACE.items():
        steps, values = column(training, name)
        if not steps or (name == "skipped" and not any(values)):
            continue
        log = name == "grad_norm" and spans_widely(values)
        charts[name] = Chart(title, "step", unit, [Series(unit, steps, values)], y_log=log)
    return charts


# -- arithmetic ----------------------------------------------------------------------------------


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean around each value, over a share of all that shrinks to fit at both ends.

    Values that are not finite do not count; NaN where no other is near.
    """
    reach = max(1, round(SMOOTHED_SHARE * len(values) / 2))
    array = np.asarray(values, dtype=np.float64)
    seen = np.isfinite(array)
    sums = np.concatenate([[0.0], np.cumsum(np.where(seen, array, 0.0))])
    counts = np.concatenate([[0], np.cumsum(seen)])
    places = np.arange(len(array))
    near = np.minimum(reach, np.minimum(places, len(array) - 1 - places))
    first, end = places - near, places + near + 1
    with np.errstate(invalid="ignore"):
        means = (sums[end] - sums[first]) / (counts[end] - counts[first])
    return [float(mean) for mean in means]


def spans_widely(values: Sequence[float]) -> bool:
    """Whether positive values differ so much that a linear axis hides the small ones."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > LOG_SPAN * min(finite)


def spaced(items: Sequence[int], limit: int) -> list[int]:
    """At most `limit` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    places = [round(number * (len(items) - 1) / (limit - 1)) for number in range(limit)]
    return [items[place] for place in places]


def is_share(name: str) -> bool:
    """Whether a metric is a share of what was right, from 0 to 1."""
    return name.partition(DEPTH)[0].endswith("accuracy")


def plain(name: str) -> str:
    """A metric's name as people write it."""
    return name.replace("_", " ").replace("/", ", ")
