"""The current window against the window before it, and against the same window a year ago, each with its own verdict.

A pinned reference tells how far things are from where they stood; the window before tells a jump from a slow change,
the same window a year ago tells season from change. The score is the energy U-statistic between the two. What is
usual comes from the pinned reference: the energies between its own windows at the same lag, at n0 rows (kept from the
pass that made its A/A null), and where it holds too few such pairs, as for a year in a shorter reference, between any
two of its windows. K windows make all those pairs, so only K - 1 degrees of freedom are then counted. The rule is that
of ``calibrate`` with energy alone: warning, alert in two windows running, hysteresis, in a history of its own
(``<reference id>-previous``, ``<reference id>-year_ago``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import combinations

from gpudrift.calibrate import HEADLINE, AANull, calibrate, decide, gate, judge
from gpudrift.context import Context, codes_of, read
from gpudrift.engine.pairs import Pairs
from gpudrift.history import History
from gpudrift.kernels import PairSums, Prepared
from gpudrift.metrics.pairs import PairEstimate, estimate, null_scale, null_sd
from gpudrift.pinning import unstable_reason
from gpudrift.records import HistoryPoint, Lagged, Metric, Window
from gpudrift.scoring import Scorer, Taken
from gpudrift.verdict import before_in_history
from gpudrift.windows import at_edges

Step = Callable[[Window], Window]
KEPT_ROWS = 500_000  # of windows kept in memory, a backfill's year of small ones among them
AHEAD_ROWS = 20_000  # rows read at a time of earlier windows that are expected: files hold more than one window


@dataclass(frozen=True)
class _Side:
    """A window's rows in pairs, and the sums among them."""

    rows: int
    prepared: Prepared
    sums: PairSums


class Neighbours:
    """Compares windows with earlier ones of the corpus; reads a window at most once, and keeps its rows in pairs."""

    def __init__(self, ctx: Context, scorer: Scorer) -> None:
        self.ctx, self.scorer = ctx, scorer
        self._counts: dict[str, int] = {}
        self._expected: list[Window] = []  # earlier windows, those asked for first at the end
        self._sides: dict[str, _Side | None] = {}  # the latest used last
        self._histories = {
            name: History(ctx.history_path, ctx.job.name, f"{scorer.reference.id}-{name}")
            for name in ctx.job.calibrate.also
        }

    @contextmanager
    def together(self) -> Iterator[None]:
        """What comparisons inside find enters their histories at the end, and not at all where the inside fails."""
        with ExitStack() as stack:
            for history in self._histories.values():
                stack.enter_context(history.together())
            yield

    def expect(self, windows: Sequence[Window]) -> None:
        """Windows that will be known and compared, in that order: all rows are counted in one pass over the files, and
        earlier windows, which have to be read, are read several at a time."""
        if not (windows and self._histories):
            return
        steps = [self._step(name) for name in self._histories]
        known = {window.label: window for window in windows}
        earlier = {other.label: other for window in windows for step in steps if (other := step(window))}
        wanted = list((known | earlier).values())
        self._counts |= {w.label: rows for w, rows in zip(wanted, self.ctx.source.count(wanted), strict=True)}
        self._expected = [window for label, window in reversed(earlier.items()) if label not in known]

    def know(self, taken: Taken) -> None:
        """A window that was read already."""
        if self.ctx.job.calibrate.also:
            self._keep(taken.cloud.windows[0], self._side(taken))

    def compare(self, window: Window) -> tuple[Lagged, ...]:
        """The comparisons that ``calibrate.also`` asks for; they enter histories of their own."""
        return tuple(self._compare(name, window) for name in self.ctx.job.calibrate.also)

    def lacks(self, window: Window) -> bool:
        """Whether the window is in the history of the job, but a comparison that is asked for is not in its own: the
        run that scored it was killed between the two, or did not ask for it."""
        return any(history.get(window) is None for history in self._histories.values())

    def _compare(self, name: str, window: Window) -> Lagged:
        history = self._histories[name]
        before = before_in_history(self.ctx, history, window)
        earlier = self.ctx.period.previous(window)
        if before is None and self._covered(earlier):  # an alert needs two windows: the one before is compared now
            found = self._judge(name, earlier, before_in_history(self.ctx, history, earlier))
            if found.calibration is not None:
                before = found.point(earlier, self._count(earlier))
                history.write(before, [])
        found = self._judge(name, window, before)
        history.write(found.point(window, self._count(window)), [])
        return found

    def _judge(self, name: str, window: Window, before: HistoryPoint | None) -> Lagged:
        step = self._step(name)
        other = step(window)
        missing = unstable_reason(self.ctx.job, self.scorer.reference)
        x, y = (None, None) if missing is not None else (self._of(other), self._of(window))
        if missing is None and x is not None and not self._covered(other):
            missing, x = f"the data do not cover all of {other.label}", None
        if x is None or y is None:
            short = other if x is None else window
            reason = missing or f"fewer than {self.ctx.job.windows.min_rows} rows in {short.label}"
            return Lagged(name, other, self._count(other), None, (), "insufficient", reason)
        null, movement = self._usual(step, min(x.rows, y.rows), window)
        energy = _energy(x, y, self.scorer.pairs)
        found = calibrate(energy.value, energy.se, null, null_sd_now=energy.null_sd, limits=self.ctx.limits)
        gates = gate({HEADLINE: Metric(HEADLINE, energy.value, energy.se)}, null, [HEADLINE], self.ctx.limits)
        verdict, reason = decide(judge(gates, self.ctx.limits), before, self.ctx.limits)
        if other.label in {w.window.label for w in self.scorer.reference.dropped}:
            reason = f"{reason}; {other.label} is a burst that reference hygiene dropped"
        return Lagged(name, other, self._count(other), found, gates, verdict, reason, movement)

    def _step(self, name: str) -> Step:
        return {"previous": self.ctx.period.previous, "year_ago": self.ctx.period.year_before}[name]

    def _covered(self, window: Window) -> bool:
        """Whether the data neither begin nor end inside a window."""
        return at_edges(window, self.ctx.extent.first, self.ctx.extent.last).complete

    def _usual(self, step: Step, rows: int, window: Window) -> tuple[AANull, str]:
        """What two windows of the reference at this lag differ by, at so many rows. Pairs with the window
        itself, where it is one of them, are left out."""
        null, least = self.scorer.null_at(rows), self.ctx.job.calibrate.min_windows
        kept = [w.window for w in self.scorer.reference.kept]
        places = {one.label: k for k, one in enumerate(kept) if one.label != window.label}
        earlier = [(k, places.get(step(kept[k]).label)) for k in places.values()]
        pairs = [(k, j) for k, j in earlier if j is not None]
        independent, movement = None, f"{len(pairs)} pairs of reference windows at this lag"
        if len(pairs) < least:
            pairs = list(combinations(places.values(), 2))
            independent, movement = len(places), f"any two of the reference's {len(places)} windows"
        scores = {f"{kept[k].label} to {kept[j].label}": null.between[k][j] for k, j in pairs}
        scale = null_scale(self.scorer.self_sums, 0, self.scorer.rows.prepared.clusters)
        c = null_sd(scale, null.n0, null.n0)
        return AANull(null.n0, scores, c, independent=independent), movement

    def _of(self, window: Window) -> _Side | None:
        """A window ready for pairs; None where it has too few rows."""
        known = window.label in self._sides
        side = self._sides.get(window.label)
        if side is not None and side.prepared.precision != self.scorer.arithmetic.precision:
            known = False  # another window needed a wider range since
        found = {window: side} if known else self._read(window)
        for one, its in reversed(found.items()):
            self._keep(one, its)
        return found[window]

    def _keep(self, window: Window, side: _Side | None) -> None:
        """Remember a window, and forget those used longest ago beyond ``KEPT_ROWS``."""
        self._sides.pop(window.label, None)
        self._sides[window.label] = side
        rows = sum(kept.rows for kept in self._sides.values() if kept is not None)
        for label, kept in list(self._sides.items())[:-1]:
            if rows <= KEPT_ROWS:
                break
            rows -= 0 if kept is None else kept.rows
            del self._sides[label]

    def _read(self, window: Window) -> dict[Window, _Side | None]:
        """A window ready for pairs, then those that will be asked for next; None where one has too few rows."""
        least, found = self.ctx.job.windows.min_rows, dict[Window, _Side | None]()
        together = [one for one in self._with_next(window) if self._count(one) >= least]
        if window not in together:
            return {window: None}
        more = f" and {len(together) - 1} more" if len(together) > 1 else ""
        cloud, _ = read(self.ctx, together, f"{window.label}{more}")
        for k, one in enumerate(together):
            part = cloud.window(k)
            # rows of their own, as if it were read alone: a product's last bit depends on how its factors are aligned
            part = replace(part, embeddings=part.embeddings.clone())
            enough = len(part) >= least
            found[one] = self._side(self.scorer.take(part, codes_of(self.ctx, part, one.label))) if enough else None
        return found

    def _with_next(self, window: Window) -> list[Window]:
        """The window, and with an expected one those expected next, as many as fit in ``AHEAD_ROWS``."""
        found, rows = [window], self._count(window)
        if window not in self._expected:
            return found
        while self._expected:
            following = self._expected[-1]
            rows += 0 if following == window else self._count(following)
            if rows > AHEAD_ROWS and following != window:
                break
            self._expected.pop()
            if following != window and following.label not in self._sides:
                found.append(following)
        return found

    def _side(self, taken: Taken) -> _Side:
        prepared = self.scorer.ready(taken)
        return _Side(len(prepared), prepared, self.scorer.pairs.self_sums(prepared, name="YY"))

    def _count(self, window: Window) -> int:
        if window.label not in self._counts:
            (self._counts[window.label],) = self.ctx.source.count([window])
        return self._counts[window.label]


def _energy(x: _Side, y: _Side, pairs: Pairs) -> PairEstimate:
    cross = pairs.cross_sums(x.prepared, y.prepared)
    clusters = {"clusters_x": x.prepared.clusters, "clusters_y": y.prepared.clusters}
    return estimate(x.sums, y.sums, cross, 0, **clusters)
