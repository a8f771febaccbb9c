"""Where a run is told beside its own files: a webhook, a Pushgateway, the textfile of node_exporter's collector.

None of them can change a verdict or an exit code, or end a run: what failed is said and recorded.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

from gpudrift.context import Context, textfile_of
from gpudrift.errors import GpudriftError
from gpudrift.monitoring.message import message_of
from gpudrift.monitoring.metrics import samples_of, write_textfile
from gpudrift.monitoring.notify import Delivery, notify
from gpudrift.monitoring.push import push
from gpudrift.report.wording import VerdictSummary
from gpudrift.result import Run


def tell(ctx: Context, ran: Run, summary: VerdictSummary) -> tuple[Delivery, ...]:
    """Tell every configured sink; the textfile comes last, since it tells how the others went."""
    ended, told = datetime.now(UTC), list[Delivery]()
    if ctx.job.notify.webhook.value != "none":
        told.append(_webhook(ctx, ran, summary))
    wanted = ctx.job.prometheus
    if wanted.push is not None:
        registry = samples_of(ran, ran.outcomes, _taken(told), ended=ended)
        try:
            push(registry, wanted.push, job=ran.job, timeout=wanted.timeout_seconds, environ=os.environ)
            told.append(Delivery("pushgateway", True, True, "delivered", 1))
        except GpudriftError as error:
            told.append(Delivery("pushgateway", False, False, _line(error), 1))
    try:
        path = textfile_of(ctx.job)
        write_textfile(samples_of(ran, ran.outcomes, _taken(told), ended=ended), path)
        told.append(Delivery("textfile", True, True, str(path)))
    except (GpudriftError, OSError) as error:
        told.append(Delivery("textfile", False, False, _line(error)))
    for one in told:
        if not one.ok:
            ctx.reporter.warn(f"{one.sink}: {one.reason}; the verdict stands")
        elif one.sink != "textfile":
            ctx.reporter.note(f"{one.sink}: {one.reason}")
    return tuple(told)


def _webhook(ctx: Context, ran: Run, summary: VerdictSummary) -> Delivery:
    wanted = ctx.job.notify
    report = wanted.report_url if ctx.job.report.html else None
    return notify(
        message_of(ran, summary, outcomes=ran.outcomes, report_url=report),
        form="slack" if wanted.webhook.value == "slack" else "json",
        url_env=wanted.url_env,
        verdicts=wanted.verdicts,
        cooldown_hours=wanted.cooldown_hours,
        timeout_seconds=wanted.timeout_seconds,
        attempts=wanted.attempts,
        directory=ctx.history_path / ran.job,
    )


def _taken(told: list[Delivery]) -> dict[str, bool]:
    return {one.sink: one.ok for one in told}


def _line(error: Exception) -> str:
    return "; ".join(part.strip() for part in str(error).splitlines())
