"""RUN/report.md: every facet of a run on one page, from the document of report.json alone.

    report.json's document ─► groups of facets ─┬► report.md      (here)
                                                └► scorecard.png  (scorecard_plot)

A facet is one measure of several rows: of all models, or of our model with something taken away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mmrec.evaluation.exposure import BY_EVENTS, NEW
from mmrec.evaluation.groups import worst_group
from mmrec.evaluation.report_plots import OURS
from mmrec.evaluation.report_tables import ours_first
from mmrec.evaluation.report_words import shown_slices, size_in_words
from mmrec.evaluation.significance import Interval

Better = Literal["higher", "lower"] | None


@dataclass(frozen=True)
class Facet:
    """One measure, a value a row.

    Attributes:
        title: what it is measured on.
        measure: its name, with its unit where it has one.
        values: row -> value; None where a row has none.
        better: which end is; None where neither is.
        intervals: row -> 95 % interval over users.
        form: format of a value.
    """

    title: str
    measure: str
    values: Mapping[str, float | None]
    better: Better = "higher"
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    form: str = ".4f"

    def text(self, row: str) -> str:
        """A row's value as it is shown; shares as papers print them, without the leading zero."""
        value = self.values.get(row)
        return "–" if value is None else _share(format(value, self.form))

    def best(self) -> float | None:
        """The best value, where an end is better and there is something to choose from."""
        given = [value for value in self.values.values() if value is not None]
        if self.better is None or len(given) < 2:
            return None
        return max(given) if self.better == "higher" else min(given)


@dataclass(frozen=True)
class Group:
    """Facets that belong together.

    Attributes:
        title: of the group.
        note: what a reader must know of it.
        marked: the row that is our model as it is.
        facets: of the same rows, in the order shown.
    """

    title: str
    note: str
    marked: str
    facets: Sequence[Facet]

    @property
    def rows(self) -> list[str]:
        """Names of the rows, from top to bottom."""
        return list(self.facets[0].values)


def facet_groups(document: Mapping[str, Any]) -> list[Group]:
    """What a report says of a run, by facet; a group without input is left out.

    Args:
        document: of `report_document.report_document`.
    """
    models = ours_first(document["models"])
    labels = shown_slices(models[OURS])
    groups = [
        _accuracy(models, labels, document["intervals"]),
        _fairness(models, document["breakdowns"], document["exposures"]),
        _lists(models, document["lists"]),
        _robustness(document["knockout"], labels),
        _stability(document["stability"]),
        _training(models, document["before"], labels),
        _over_fitting(document["learning"]["gap"]),
        _calibration(document["reliability"]),
        *_cost(document["costs"]),
    ]
    return [group for group in groups if group.facets]


def _accuracy(models: Any, labels: Mapping[str, str], intervals: Any) -> Group:
    facets = [
        Facet(
            label,
            metric.upper(),
            {model: (slices.get(name) or {}).get(metric) for model, slices in models.items()},
            intervals={
                model: found[name][metric]
                for model, found in intervals.items()
                if metric in found.get(name, {})
            },
        )
        for metric in ("ndcg@10", "hr@10")
        for name, label in labels.items()
    ]
    note = "Mean over users, all candidates ranked. In brackets: 95 % interval over users."
    return Group("Accuracy", note, OURS, facets)


def _fairness(models: Any, breakdowns: Sequence[Any], exposures: Sequence[Any]) -> Group:
    """To items and to users of whom little is known."""
    facets = []
    words = {"item": "items", "user": "users, warm targets"}
    for each in breakdowns:
        if each["by"] not in words or (each["by"] == "user" and each["slice"] != "warm"):
            continue
        for part in ("head", "tail"):
            if part in each["groups"]:
                of_part = {m: each["models"].get(m, {}).get(part) or {} for m in models}
                values = {model: own.get("ndcg@10") for model, own in of_part.items()}
                facets.append(Facet(f"{part.capitalize()} {words[each['by']]}", "NDCG@10", values))
    for each in breakdowns:
        if "." in each["by"] and (worst := worst_group(each, OURS)) is not None:
            values = {
                m: (each["models"].get(m, {}).get(worst) or {}).get("ndcg@10") for m in models
            }
            users = each["models"][OURS][worst]["num_users"]
            title = f"Worst of {each['by']}: {worst}, {users:,} users"
            facets.append(Facet(title, "NDCG@10", values))
    shown = {model: (slices.get("all") or {}).get("gini@10") for model, slices in models.items()}
    if any(value is not None for value in shown.values()):
        facets.append(Facet("Exposure of items", "Gini@10", shown, "lower"))
    for each in exposures:
        for part in ("tail", NEW) if each["by"] == BY_EVENTS else ():
            if each["candidates"][part] > 0:
                own = {model: each["models"].get(model, {}).get(part) for model in models}
                facets.append(Facet(f"Exposure of {part} items", "share", own, None))
    note = (
        "Head and tail items hold a third of the training events each, head and tail users are "
        "the thirds with the longest and the shortest histories. The worst group is "
        "that of our model, of those with twenty users or more. Gini: 0 = all candidates are shown "
        "equally often, 1 = one item to everybody. Shares of the exposure count first places more; "
        "those of groups stand in report.html."
    )
    return Group("Fairness", note, OURS, facets)


def _lists(models: Any, lists: Mapping[str, Any]) -> Group:
    measures: list[tuple[str, str, str, Better, str]] = [
        ("coverage@10", "Coverage", "share of candidates", "higher", ".4f"),
        ("novelty@10", "Novelty", "bits an item", None, ".2f"),
        ("diversity@10", "Diversity", "1 - mean cosine in a list", None, ".4f"),
        ("behaviour_diversity@10", "Behaviour diversity", "1 - mean cosine", None, ".4f"),
        ("categories@10", "Categories", "number in a list", None, ".2f"),
        ("miscalibration@10", "Miscalibration", "nats", "lower", ".3f"),
    ]
    facets = []
    for name, title, measure, better, form in measures:
        values = {model: (slices.get("all") or {}).get(name) for model, slices in models.items()}
        if any(value is not None for value in values.values()):
            facets.append(Facet(title, measure, values, better, form=form))
    note = "Of the ten items shown; novelty and diversity have no better end."
    if lists["diversity_by"]:
        note += (
            f" Diversity by {lists['diversity_by']}; of behaviour by who met an item in training."
        )
    if lists["miscalibration_by"]:
        by = lists["miscalibration_by"]
        note += f" Categories: different {by} of a list. Miscalibration: how far the {by} of a "
        note += "list are from those of the history."
    return Group("Lists: coverage, novelty, diversity", note, OURS, facets)


def _robustness(rows: Sequence[Any], labels: Mapping[str, str]) -> Group:
    shown = [name for name in labels if any(row["ndcg"].get(name) is not None for row in rows)]
    facets = [
        Facet(labels[name], "NDCG@10", {row["name"]: row["ndcg"].get(name) for row in rows})
        for name in shown
    ]
    note = "The same model, asked again with media hidden from it; nothing was trained anew."
    return Group("Robustness: media left out", note, rows[0]["name"] if rows else "", facets)


def _stability(found: Mapping[str, Any] | None) -> Group:
    """How much of a list stays when media change a little, or when only the seed differs."""
    if found is None:
        return Group("Stability", "", "", [])
    overlaps = {each["name"]: each["overlap"] for each in found["perturbations"]}
    cosines = {each["name"]: each["cosine"] for each in found["perturbations"]}
    note = (
        f"{found['num_draws']} draws of each change, {found['num_users']:,} users; RBO: 1 = the "
        "same lists, 0 = no item in common. The deviation is over draws"
    )
    if found["seeds"] is not None:
        num_runs = len(found["seeds"]["runs"])
        overlaps |= {"another seed": found["seeds"]["overlap"]}
        note += f"; of another seed over the pairs of {num_runs} runs"
    means = {name: each["mean"] for name, each in overlaps.items()}
    spread = {name: each["over_repetitions"] for name, each in overlaps.items()}
    facets = [
        Facet("Lists before and after", f"RBO@{found['list_length']}", means, None),
        Facet("Lists before and after, deviation", "RBO", spread, None),
        Facet(
            "Contents before and after", "cosine", {name: cosines.get(name) for name in means}, None
        ),
    ]
    return Group("Stability: media changed a little", note + ".", "", facets if means else [])


def _training(models: Any, before: Any, labels: Mapping[str, str]) -> Group:
    both = {"after training": models[OURS], "before training": before or {}}
    both |= {"popularity": models["popularity"]} if "popularity" in models else {}
    facets = [
        Facet(
            label, "NDCG@10", {n: (own.get(name) or {}).get("ndcg@10") for n, own in both.items()}
        )
        for name, label in (labels if before else {}).items()
    ]
    note = "Before: the same network at its first step."
    return Group("Before and after training", note, "after training", facets)


def _over_fitting(gap: Mapping[str, Any] | None) -> Group:
    """Targets of training beside those of validation."""
    if gap is None:
        return Group("Over-fitting", "", "", [])
    sides = {"training": gap["train_ndcg"], "validation": gap["validation_ndcg"]}
    low, high = gap["interval"]
    note = (
        f"A gap of {gap['difference']:+.4f} ({low:+.4f} to {high:+.4f}) from the last target of "
        f"training to the validation target of the same {gap['num_users']:,} users. The weights "
        "were chosen on validation."
    )
    return Group("Over-fitting", note, "", [Facet("Targets of", "NDCG@10", sides, None)])


def _calibration(found: Sequence[Any]) -> Group:
    """How far our probabilities are from the shares of hits."""
    names = {each["k"]: "first item" if each["k"] == 1 else f"first {each['k']}" for each in found}
    errors = {names[each["k"]]: each["error"] for each in found}
    facet = Facet("Probabilities", "expected calibration error", errors, None)
    note = "Of the probability that the next item is among the first: 0 is exact. Our model alone."
    return Group("Calibration", note, "", [facet] if found else [])


def _cost(costs: Mapping[str, Any] | None) -> Iterator[Group]:
    if costs is None:
        return
    parts = {part: float(each["trainable"]) for part, each in costs["parameters"].items()}
    frozen = {part: float(each["frozen"]) for part, each in costs["parameters"].items()}
    seconds = f"{costs['training_s']:,.0f} s"
    training = f"{seconds} in {costs['steps']:,} steps"
    if costs["peak_memory_bytes"] is not None:
        training += f", peak memory {size_in_words(costs['peak_memory_bytes'])}"
    vectors = f"vectors of the candidates {size_in_words(costs['vector_bytes'])}"
    facets = [Facet("Parameters trained", "number", parts, None, form=",.0f")]
    if any(frozen.values()):
        facets.append(Facet("Parameters frozen", "number", frozen, None, form=",.0f"))
    yield Group(f"Cost of training: {seconds}", f"{training}; {vectors}.", "", facets)
    latency = costs["latency"]
    if latency is not None:
        values = {"median": latency["p50_ms"], "95 % are faster": latency["p95_ms"]}
        note = (
            f"{latency['num_calls']} calls one after another, {latency['num_candidates']:,} "
            f"candidates, {latency['device']}, threads: {latency['num_threads']}."
        )
        facet = Facet("One recommendation", "milliseconds", values, None, form=".3g")
        yield Group("Cost of use", note, "", [facet])


def scorecard_markdown(document: Mapping[str, Any]) -> str:
    """The text of report.md.

    Args:
        document: of `report_document.report_document`.
    """
    ours = document["models"][OURS]["all"]
    protocol = document["protocol"]
    lines = [f"# {document['name']}: scorecard", ""]
    if document["simulated"]:
        lines += ["**Simulated data:** every figure here is a simulated one.", ""]
    lines += [
        f"{ours['num_targets']:,} test targets of {ours['num_users']:,} users, protocol "
        f"{protocol.get('name')} ({str(protocol.get('hash'))[:16]}), {document['checkpoint']}. "
        f"One run, seed {document['seed']}: intervals are over users and say nothing of other "
        "seeds; `mmrec compare` takes several. Bold: best of its column, whoever's it is.",
        "",
        *(f"- {sentence}" for sentence in document["sentences"]),
        "",
        "![All facets against the baselines](scorecard.png)",
        "",
    ]
    for group in facet_groups(document):
        lines += [f"## {group.title}", "", *_table(group), "", group.note, ""]
        if group.title == "Accuracy":
            lines += [*_against_best(document), ""]
    if not document["knockout"]:
        lines += ["The model reads no media: none can be left out to see how robust it is.", ""]
    lines += ["All figures are in report.json; pictures, curves and limits are in report.html."]
    return "\n".join(lines) + "\n"


def _table(group: Group) -> Iterator[str]:
    yield "| | " + " | ".join(f"{each.title}: {each.measure}" for each in group.facets) + " |"
    yield "|---|" + "---:|" * len(group.facets)
    for row in group.rows:
        name = f"**{row}**" if row == group.marked else row
        yield f"| {name} | " + " | ".join(_cell(each, row) for each in group.facets) + " |"


def _cell(facet: Facet, row: str) -> str:
    text = facet.text(row)
    value, best = facet.values.get(row), facet.best()
    if value is not None and value == best:
        text = f"**{text}**"
    if row in facet.intervals:
        low, high = (_share(format(end, facet.form)) for end in facet.intervals[row])
        text += f" ({low}–{high})"
    return text


def _against_best(document: Mapping[str, Any]) -> Iterator[str]:
    """A line a slice: ours minus the baseline that does best there, user by user."""
    models, tests = document["models"], document["tests"]
    labels = shown_slices(models[OURS])
    for name, label in labels.items():
        own = [each for each in tests if each["slice"] == name]
        if own:
            best = max(own, key=lambda each: models[each["second"]][name]["ndcg@10"])
            low, high = best["interval"]
            yield (
                f"- {label}: {OURS} minus {best['second']}, the best baseline, NDCG@10 "
                f"{best['difference']:+.4f} ({low:+.4f} to {high:+.4f}; p = {best['p_value']:.2g})"
            )


def _share(text: str) -> str:
    """.1941 for 0.1941, -.1 for -0.1."""
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
