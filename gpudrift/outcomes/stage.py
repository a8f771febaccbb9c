"""A job's product metrics: their table, read before anything is computed, and what it says beside the history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gpudrift import sample
from gpudrift.config.statistics import OutcomesConfig
from gpudrift.context import Context
from gpudrift.outcomes.analysis import analyse
from gpudrift.outcomes.records import Direction, Outcomes, OutcomeSeries
from gpudrift.outcomes.table import read_outcomes
from gpudrift.records import HistoryPoint, Window


@dataclass(frozen=True)
class OutcomeTable:
    """Product metrics by window, and notes on what of the table was left out."""

    series: tuple[OutcomeSeries, ...]
    notes: tuple[str, ...]


def read_table(ctx: Context) -> OutcomeTable | None:
    """The table of ``outcomes.uri``, with the sample corpus its own; None where none is configured.

    Raises what ``read_outcomes`` raises: a table that cannot be read ends the run before it has cost anything.
    """
    wanted = settings_of(ctx)
    if wanted.uri is None:
        return None
    with ctx.stage("outcomes"):
        series, notes = read_outcomes(
            wanted.uri,
            time_column=wanted.time_column or ctx.job.source.time_column,
            worse=worse_of(wanted),
            count_column=wanted.count_column,
            segment_columns=tuple(ctx.job.source.segment_columns),
            period=ctx.period,
            source=ctx.source,
        )
    return OutcomeTable(series, notes)


def settings_of(ctx: Context) -> OutcomesConfig:
    """As configured; with the sample corpus, and nothing configured, what ships beside it."""
    wanted = ctx.job.outcomes
    if ctx.job.source.uri != "sample" or wanted.uri is not None:
        return wanted
    return replace(
        wanted,
        uri=str(sample.outcomes_path()),
        time_column="week_start",
        count_column="queries",
        lower_is_worse=["retrieval_success_rate"],
        higher_is_worse=["no_answer_rate"],
    )


def worse_of(wanted: OutcomesConfig) -> dict[str, Direction]:
    """Each metric's column with the way that is worse."""
    lower: dict[str, Direction] = dict.fromkeys(wanted.lower_is_worse, "lower")
    return lower | dict.fromkeys(wanted.higher_is_worse, "higher")


def beside_history(
    ctx: Context, table: OutcomeTable | None, windows: Sequence[Mapping[str, HistoryPoint]], until: Window | None = None
) -> Outcomes | None:
    """The table beside the windows of the history, each by segment; none later than ``until``."""
    if table is None:
        return None
    wanted = ctx.job.outcomes
    with ctx.stage("outcomes"):
        found = analyse(
            table.series,
            windows,
            ctx.period,
            until=until,
            lags=wanted.lags,
            spike_p=wanted.spike_p,
            fdr=wanted.fdr,
            min_windows=wanted.min_windows,
            permutations=wanted.permutations,
            seed=ctx.job.seed,
        )
    return replace(found, notes=(*table.notes, *found.notes))
