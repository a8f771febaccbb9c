"""What happened, in words: a moved mean, another spread, clusters that are new, gone, grown or shrunk.

Only what is beyond its own usual movement is said. A gating metric is (it *fired*) where its Holm-adjusted p is below
``p``, and a U-statistic also above the floor of a warning. A cluster is where q < fdr and p_usual < p; where no metric
fired, p_usual is held against p over the number of clusters, so that a stable window is told of a cluster once in 1/p.

One change shows in many numbers, and is told once (``changed``): clusters that new ones thin out are not told as
shrunk; and since a change of shares moves the mean, a mean shift beside clusters is told only where the score less the
changes of share is still above energy's usual limit, or where the AUC exceeds its usual by more than such changes can
make it, v - v^2 / 2 for shares that differ by v in total variation. Where more than half of the window lies in new
clusters and more than a quarter of the reference in clusters that are gone, the whole cloud has moved: one shift. A
mean that moved without a distance beyond its usual movement did so along directions of little variance, unless
components that matter account for the AUC.

New clusters come first, then those gone; the others follow by their part of the score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

from gpudrift.attribution.changed import Changed, changed
from gpudrift.attribution.phrases import digits, listed, name, number, percent, percents
from gpudrift.calibrate import SCORE_FLOOR
from gpudrift.records import ClusterShift, ComponentShift, GateMetric, Metric, Phenomenon

_NORMAL = NormalDist()
_DISTANCES = ("energy", "mmd2_")
_SPREADS = ("log_variance_ratio", "residual_energy")
_SURE = 2.0  # standard errors
_NAMED = 3  # ids of a cluster, and clusters by themselves
_MOST, _MANY = 0.5, 0.25  # shares of the rows from which the whole cloud has moved
_MOSTLY = 0.5  # share of a cluster's rows that have a label, for it to be named after it


def explain(
    gates: Sequence[GateMetric],
    metrics: Mapping[str, Metric],
    clusters: Sequence[ClusterShift],
    components: Sequence[ComponentShift],
    *,
    fdr: float = 0.05,
    p: float = 0.01,
) -> tuple[Phenomenon, ...]:
    """What happened to a window, the most important first; empty where nothing is beyond its usual movement.

    Sentences are plain text of one line, without a full stop; names from the data in them are cut to 40 characters.
    ``evidence``: names of metrics, and ``cluster 3`` for clusters by index. size: rows' share (new, gone), share that
    changed hands (reweighted), reference standard deviations (mean_shift), AUC (low_variance_shift), relative change
    against the usual (spread), the metric's value (other).

    Args:
        gates: the window's, of all metrics that gate. metrics: the panel's, for ``mean_shift``.
        clusters, components: as attributed; either may be empty.
        fdr: of the clusters told. p: level of the usual movement.
    """
    fired = {g.metric: g for g in gates if _fired(g, p)}
    found = changed(clusters, fdr, p if fired else p / max(len(clusters), 1), p)
    distances = [g for metric, g in fired.items() if metric.startswith(_DISTANCES)]
    spread = [fired[metric] for metric in _SPREADS if metric in fired]
    energy, auc = fired.get("energy"), fired.get("classifier_auc")
    if auc is not None and auc.value <= auc.usual:
        auc = None  # told apart less than usual: nothing has moved
    more_than_clusters = (
        not found.told
        or (energy is not None and found.rest > energy.high)
        or (auc is not None and auc.value - auc.usual - _SURE * (auc.se or 0.0) > found.moved - found.moved**2 / 2)
    )
    along = _along(components, auc)
    mean = metrics.get("mean_shift")
    # without a distance beyond its usual movement only a shift along components that matter is one of the mean
    if mean is None or not (distances or (auc and along)) or not mean.value > _SURE * (mean.se or 0.0):
        mean = None
    # rows that are new make none go: where most are new and many gone, it is the same ones that moved
    whole = mean is not None and _share(found.new) > _MOST and sum(c.reference_share for c in found.gone) > _MANY

    # by the part of the score that changes of share make, or the rest, and then by p
    by_share = 0.0
    if energy is not None and found.score > 0:
        by_share = min(max(found.explained / found.score, 0.0), 1.0)
    ranked: list[tuple[float, float, Phenomenon]] = []
    # the classifier sees a moved mean best: where it does not, and there is another change, that one is enough
    if mean is not None and (whole or (more_than_clusters and (auc or not (spread or found.told)))):
        spread = [g for g in spread if not _made_by(mean, g, spread, metrics)]
        p_mean = min(g.p_holm for g in (*distances, *([] if auc is None else [auc])))
        ranked.append(
            (0.0 if whole else by_share, p_mean, _mean_shift(mean, along, bool(components), auc, found, whole))
        )
    elif auc is not None and more_than_clusters:
        ranked.append((by_share, auc.p_holm, _low_variance(auc)))
    if spread:
        ranked.append((by_share, min(g.p_holm for g in spread), _spread(spread, not more_than_clusters)))
    if (found.grown or found.shrunk) and not whole:
        ranked.append((1.0 - by_share, 0.0, _reweighted(found)))
    first = [] if whole else [make(told) for make, told in ((_new, found.new), (_gone, found.gone)) if told]
    ordered = [phenomenon for _, _, phenomenon in sorted(ranked, key=lambda entry: entry[:2])]
    if first or ordered:
        return (*first, *ordered)
    return (_other(tuple(fired.values())),) if fired else ()


def _share(clusters: Sequence[ClusterShift]) -> float:
    return sum(c.share for c in clusters)


def _fired(gate: GateMetric, p: float) -> bool:
    return gate.p_holm < p and (gate.null_sd is None or gate.value > SCORE_FLOOR * gate.null_sd)


def _new(clusters: Sequence[ClusterShift]) -> Phenomenon:
    size = sum(c.share for c in clusters)
    label = _label(clusters)
    if len(clusters) == 1:
        sentence = f"a new cluster of about {percent(size)} of the rows{label}{_ids(clusters[0].ids)}"
    else:
        parts = [(c.share, "" if label else _label([c]), c.ids) for c in clusters]
        sentence = (
            f"{number(len(clusters))} new clusters, together about {percent(size)} of the rows{label}: {_each(parts)}"
        )
    return Phenomenon("new_cluster", size, sentence, _evidence(clusters))


def _gone(clusters: Sequence[ClusterShift]) -> Phenomenon:
    size = sum(c.reference_share for c in clusters)
    almost = "almost " if any(c.rows for c in clusters) else ""
    # labels are those of the few current rows where there are any
    label = "" if almost else _label(clusters)
    if len(clusters) == 1:
        named = f"{label}{_ids(clusters[0].reference_ids)}"
        sentence = f"a cluster that was about {percent(size)} of the reference is {almost}gone{named}"
    else:
        parts = [(c.reference_share, "" if label or c.rows else _label([c]), c.reference_ids) for c in clusters]
        sentence = (
            f"{number(len(clusters))} clusters that were together about {percent(size)} of the reference are "
            f"{almost}gone{label}: {_each(parts)}"
        )
    return Phenomenon("gone_cluster", size, sentence, _evidence(clusters))


def _reweighted(found: Changed) -> Phenomenon:
    sides: list[str] = []
    size = 0.0
    for verb, clusters in (("grew", found.grown), ("shrank", found.shrunk)):
        if not clusters:
            continue
        before, now = sum(c.reference_share for c in clusters), sum(c.share for c in clusters)
        size = max(size, abs(now - before))
        noun = "" if sides else " cluster" if len(clusters) == 1 else " clusters"
        first, last = percents(before, now)
        named = f"{_label(clusters[:1])}{_ids(clusters[0].ids or clusters[0].reference_ids)}"
        if len(clusters) > 1:
            named = f" together{', most of all the one' * bool(named)}{named.removeprefix(',')}"
        sides.append(f"{number(len(clusters))}{noun} {verb}, from {first} to {last} of the rows{named}")
    return Phenomenon("reweighted_clusters", size, ", and ".join(sides), _evidence(found.grown + found.shrunk))


def _mean_shift(
    metric: Metric, along: int | None, known: bool, auc: GateMetric | None, found: Changed, whole: bool
) -> Phenomenon:
    size = math.sqrt(metric.value)
    far = digits(size)
    unit = "of a reference standard deviation" if float(far.replace(",", "")) < 1 else "reference standard deviations"
    where = f", most along component {along}" if along else ", most of it outside the leading components" * known
    rest = ", more than the change of clusters accounts for" if found.told else ""
    evidence = ["mean_shift", *(["classifier_auc"] if auc is not None else [])]
    if whole:
        share = percent(sum(c.share for c in found.new))
        rest = (
            f", and {'all' if share == '100%' else f'about {share} of the'} rows lie where the reference had hardly any"
        )
        evidence += _evidence(found.new + found.gone)
    return Phenomenon("mean_shift", size, f"the mean moved by {far} {unit}{where}{rest}", tuple(evidence))


def _along(components: Sequence[ComponentShift], auc: GateMetric | None) -> int | None:
    """The component along which the mean moved most, in its own sd; None where none is certain to have moved, or where
    all together are far from what the classifier sees."""
    known = [(c.component, c.shift, c.shift_se or 0.0) for c in components if c.component and c.shift is not None]
    sure = [(-abs(shift), component) for component, shift, error in known if abs(shift) > _SURE * error]
    # the AUC of two normal clouds, d apart along the best direction in its own sd, is Phi(d / sqrt 2)
    apart = 0.0 if auc is None else math.sqrt(2.0) * _NORMAL.inv_cdf(min(0.5 + auc.value, 1.0 - 1e-9))
    squares = sum(max(shift**2 - error**2, 0.0) for _, shift, error in known)
    return None if not sure or squares < apart**2 / 4 else min(sure)[1]


def _made_by(mean: Metric, gate: GateMetric, spread: Sequence[GateMetric], metrics: Mapping[str, Metric]) -> bool:
    """Whether a residual that grew alone is no more than the shift of the mean: it is taken about the pinned mean."""
    if gate.metric != "residual_energy" or len(spread) > 1:
        return False
    own = metrics.get(gate.metric)
    share = 0.0 if own is None else float(own.extra.get("share_reference", 0.0))
    return share > 0 and 0 < math.expm1(min(gate.value - gate.usual, 700.0)) <= mean.value / share


def _low_variance(auc: GateMetric) -> Phenomenon:
    now, usual = 0.5 + auc.value, 0.5 + auc.usual
    decimals = 2 if f"{now:.2f}" != f"{usual:.2f}" else 3
    sentence = (
        "rows moved along directions of little variance, which the distances hardly see (a classifier tells the "
        f"windows apart with AUC {now:.{decimals}f}, usually {usual:.{decimals}f})"
    )
    return Phenomenon("low_variance_shift", now, sentence, ("classifier_auc",))


def _spread(fired: Sequence[GateMetric], maybe_clusters: bool) -> Phenomenon:
    changes = {g.metric: math.expm1(min(g.value - g.usual, 700.0)) for g in fired}
    names = {"log_variance_ratio": "in total variance", "residual_energy": "outside the principal components"}
    texts = [(_change(change), names[metric]) for metric, change in changes.items()]
    if len(texts) == 2 and (texts[0][0].split()[0] != texts[1][0].split()[0]):
        said = f"{texts[0][0]} {texts[0][1]} but {texts[1][0]} {texts[1][1]}"
    elif len(texts) == 2:
        said = f"{texts[0][0]} {texts[0][1]} and {texts[1][0].split(maxsplit=1)[1]} {texts[1][1]}"
    else:
        said = " ".join(texts[0])
    rest = ", which the change of clusters may account for" if maybe_clusters else ""
    return Phenomenon("spread", next(iter(changes.values())), f"the spread {said}{rest}", tuple(changes))


def _change(change: float) -> str:
    if change >= 1.0:
        factor = 1.0 + change
        return f"grew {f'{factor:.2g}' if factor < 99.5 else 'more than 99'}-fold"
    return f"{'grew' if change > 0 else 'shrank'} by {percent(abs(change))}"


def _other(fired: Sequence[GateMetric]) -> Phenomenon:
    first = min(fired, key=lambda g: g.p_holm)
    below = [g.metric for g in fired if g.low is not None and g.value < g.usual]
    beyond = [g.metric for g in fired if g.metric not in below]
    said = []
    for names, side in ((beyond, "beyond"), (below, "below")):
        if names:
            is_its = "is {} its" if len(names) == 1 else "are {} their"
            said.append(f"{listed(names)} {is_its.format(side)} usual movement")
    sentence = f"{' and '.join(said)}, but no cluster, mean or spread stands out"
    return Phenomenon("other", first.value, sentence, tuple(g.metric for g in fired))


def _evidence(clusters: Sequence[ClusterShift]) -> tuple[str, ...]:
    return tuple(f"cluster {c.index}" for c in clusters)


def _label(clusters: Sequence[ClusterShift]) -> str:
    """``, mostly language=de`` where most rows of each have that same label."""
    labels = {c.labels[0][0] if c.labels and c.labels[0][1] >= _MOSTLY else "" for c in clusters}
    label = labels.pop()
    return f", mostly {name(label)}" if label and not labels else ""


def _ids(ids: Sequence[str]) -> str:
    return f" ({'id' if len(ids) == 1 else 'ids'} {', '.join(map(name, ids[:_NAMED]))})" if ids else ""


def _each(clusters: Sequence[tuple[float, str, Sequence[str]]]) -> str:
    """The first few clusters, from share, label and ids of all."""
    parts = [f"about {percent(share)}{label}{_ids(ids)}" for share, label, ids in clusters[:_NAMED]]
    left = len(clusters) - len(parts)
    return listed([*parts, f"{number(left)} smaller"] if left else parts)
