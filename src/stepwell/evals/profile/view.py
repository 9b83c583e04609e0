"""A profile for people: its headline values, its tables, a page and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from stepwell.evals.profile.result import PHASES, InferenceProfile
from stepwell.report import Chart, Column, Facts, Page, Preformatted, Series, Table

TITLE: Final = "Where the time of one answer goes"
BAR_WIDTH: Final = 24


def text(profile: InferenceProfile) -> str:
    """The profile in lines: phases, parts where there are any, then the headline values."""
    phases = [(*cells, bar(share)) for *cells, share in phase_rows(profile)]
    parts = [(*cells, bar(share)) for *cells, share in part_rows(profile)]
    blocks = [_columns([PHASE_HEADS, *phases], numeric=(1, 2, 3))]
    blocks += [_columns([PART_HEADS, *parts], numeric=(2, 3))] if parts else []
    return "\n\n".join([*blocks, _columns(facts(profile), numeric=())])


PHASE_HEADS: Final = ("phase", "time", "share", "a token", "computed by", "")


def phase_rows(profile: InferenceProfile) -> list[tuple[str, str, str, str, str, float]]:
    """A row for each phase, its cells as text and its share, under PHASE_HEADS."""
    return [
        (
            phase.name,
            time_text(phase.seconds),
            f"{phase.share:.1%}",
            "" if phase.per_token_s is None else time_text(phase.per_token_s),
            " + ".join(phase.computed_by),
            phase.share,
        )
        for phase in profile.phases
    ]


PART_HEADS: Final = ("forwards of", "part", "time", "share", "")


def part_rows(profile: InferenceProfile) -> list[tuple[str, str, str, str, float]]:
    """A row for each part of the model, its cells as text and its share, under PART_HEADS."""
    return [
        (part.phase, part.name, time_text(part.seconds), f"{part.share:.1%}", part.share)
        for part in profile.parts
    ]


def bar(share: float) -> str:
    """A bar as long as the share, BAR_WIDTH characters for the whole."""
    return "█" * round(share * BAR_WIDTH)


def facts(profile: InferenceProfile) -> list[tuple[str, str]]:
    """The headline values, each under its name."""
    runs = f"{time_text(min(profile.runs))} to {time_text(max(profile.runs))}"
    named = [
        ("whole", f"{time_text(profile.seconds)}; {len(profile.runs)} runs took {runs}"),
        ("tokens", f"{profile.prompt_tokens} read, {profile.completion_tokens} generated"),
        ("prefill", f"{profile.prefill_rate:,.0f} tokens/s"),
        ("decoding", _decoding(profile)),
        ("first token", _first_token(profile)),
        ("weights", _weights(profile)),
        ("where", f"{profile.device}, threads: {profile.threads}"),
    ]
    return [(name, value) for name, value in named if value]


def _decoding(profile: InferenceProfile) -> str:
    """How fast tokens come behind the first; nothing where none did."""
    rate, median, most = profile.decode_rate, profile.median_gap_s, profile.p95_gap_s
    if rate is None or median is None or most is None:
        return ""
    return (
        f"{rate:,.0f} tokens/s; {time_text(median)} between two, {time_text(most)} at most for"
        " 95 of 100"
    )


def _first_token(profile: InferenceProfile) -> str:
    """When the first token comes, without and with the prompt in the cache."""
    shown = f"after {time_text(profile.first_token_s)}"
    if profile.cached_first_token_s is None:
        return shown
    cached = time_text(profile.cached_first_token_s)
    return f"{shown}; {cached} with {profile.cached_tokens} tokens of the prompt in the cache"


def _weights(profile: InferenceProfile) -> str:
    """How fast decoding reads the weights; nothing where no token was decoded."""
    rate, share = profile.weights_gb_per_s, profile.memory_share
    if rate is None:
        return ""
    shown = f"{profile.weight_bytes / 1e6:,.1f} MB a token, {rate:.1f} GB/s"
    if share is None:
        return shown
    return f"{shown}: {share:.0%} of a read-only pass, {profile.memory_gb_per_s:.1f} GB/s"


def _headline(profile: InferenceProfile) -> list[tuple[str, str]]:
    """The four numbers that come first on a page, or fewer."""
    found = [
        ("first token", time_text(profile.first_token_s)),
        ("prefill", f"{profile.prefill_rate:,.0f} tokens/s"),
    ]
    if profile.decode_rate is not None:
        found.append(("decoding", f"{profile.decode_rate:,.0f} tokens/s"))
    if profile.weights_gb_per_s is not None:
        found.append(("reading weights", f"{profile.weights_gb_per_s:.1f} GB/s"))
    return found


def page(profile: InferenceProfile, command: str = "") -> Page:
    """The page that holds the whole profile."""
    made = Page(TITLE, lead=_lead(profile), command=command)
    made.add(Facts(_headline(profile)), Table(["what", "measured"], facts(profile)))
    made.section("Phases").add(phases_chart(profile), _table(PHASE_HEADS, phase_rows(profile)))
    made.add("; ".join(f"{name}: {what}" for name, what in PHASES.items()).capitalize() + ".")
    if profile.parts:
        made.section("Parts of the model").add(
            "Measured in runs of their own, by hooks, which cost some time themselves.",
            *part_charts(profile),
            _table(PART_HEADS, part_rows(profile)),
        )
    if profile.gaps:
        made.section("Tokens").add(tokens_chart(profile))
    return made.section("The answer").add(Preformatted(profile.text))


def phases_chart(profile: InferenceProfile) -> Chart:
    """Milliseconds of each phase."""
    return _bars(TITLE, {each.name: each.seconds for each in profile.phases}, _lead(profile))


def part_charts(profile: InferenceProfile) -> list[Chart]:
    """Milliseconds of the parts of the model, a chart for each phase that has any."""
    phases = dict.fromkeys(part.phase for part in profile.parts)
    return [
        _bars(
            f"Forwards of {phase}, by part of the model",
            {part.name: part.seconds for part in profile.parts if part.phase == phase},
        )
        for phase in phases
    ]


def tokens_chart(profile: InferenceProfile) -> Chart:
    """When each token came."""
    times = list(accumulate(profile.gaps, initial=profile.first_token_s))
    return Chart(
        "When each token came",
        x_label="token of the answer",
        y_label="time since the call, ms",
        series=[Series("tokens", range(1, len(times) + 1), [1e3 * time for time in times])],
        x_range=(1, None),
        y_range=(0, None),
    )


def _bars(title: str, seconds: dict[str, float], note: str = "") -> Chart:
    """A bar in milliseconds for each name."""
    values = [1e3 * value for value in seconds.values()]
    return Chart(
        title,
        x_label="",
        y_label="time, ms",
        series=[Series("time", range(len(values)), values, style="bars")],
        categories=list(seconds),
        y_range=(0, None),
        note=note,
    )


def _lead(profile: InferenceProfile) -> str:
    """What was measured, in a sentence."""
    tokens = f"{profile.prompt_tokens} tokens read and {profile.completion_tokens} generated"
    where = f"{profile.device}, threads: {profile.threads}"
    return f"{tokens} in {time_text(profile.seconds)}; {where}."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str | float]]) -> Table:
    """The rows with their shares, which come last, as numbers."""
    place = heads.index("share")
    columns = [Column(name, percent=name == "share") for name in heads[:-1]]
    return Table(columns, [(*row[:place], row[-1], *row[place + 1 : -1]) for row in rows])


def time_text(seconds: float) -> str:
    """A length of time in the unit that suits it: "12.3 µs", "4.56 ms", "1.23 s"."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}" if seconds < 100 else f"{seconds:.0f} s"
    return f"{seconds * 1e6:.3g} µs"


def _columns(rows: Sequence[Sequence[str]], numeric: tuple[int, ...]) -> str:
    """The rows in columns; those that are numeric stand to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if place in numeric else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
