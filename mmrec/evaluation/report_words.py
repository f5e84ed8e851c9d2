"""The report's sentences: what came out, won or lost, and what it cannot show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from mmrec.evaluation.data_facts import DataFacts
from mmrec.evaluation.findings import Findings
from mmrec.evaluation.report_plots import OURS
from mmrec.evaluation.significance import Interval

Models = Mapping[str, Mapping[str, Mapping[str, float] | None]]
Intervals = Mapping[str, Mapping[str, Mapping[str, Interval]]]

SLICE_LABELS = {
    "all": "All targets",
    "warm": "Warm items",
    "cold": "Cold items, among all",
    "cold_among_cold": "Cold items, among cold",
    "new_users": "New users",
}


def shown_slices(ours: Mapping[str, Any]) -> dict[str, str]:
    """The slices that have targets, in words; not `all` beside one other, which it would repeat.

    Args:
        ours: slice -> metrics of our model, None where the slice has no target.
    """
    labels = {name: label for name, label in SLICE_LABELS.items() if ours.get(name)}
    if len(labels) == 2:
        labels.pop("all", None)
    return labels


def headline(models: Models, labels: Mapping[str, str]) -> list[str]:
    """One sentence a slice: our HR@10 beside the best baseline's, won or lost."""
    sentences = []
    where = {
        "all": "Over all test targets",
        "warm": "For items met in training",
        "cold": "For items nobody had met, ranked among all candidates",
        "cold_among_cold": "For items nobody had met, ranked among themselves",
        "new_users": "For users without history",
    }
    for name in labels:
        ours = (models[OURS][name] or {})["hr@10"]
        others = {m: s[name]["hr@10"] for m, s in models.items() if m != OURS and s.get(name)}  # type: ignore[index]
        sentence = f"{where[name]}, the right one is in the first ten for {ours:.1%} of users"
        if others:
            best = max(others, key=lambda model: others[model])
            verdict = "ahead of" if ours > others[best] else "behind"
            verdict = "level with" if ours == others[best] else verdict
            sentence += f", {verdict} the best baseline, {best}, at {others[best]:.1%}"
        sentences.append(sentence + ".")
    return sentences


def zero_shot(models: Models, labels: Mapping[str, str]) -> list[str]:
    """What pretrained encoders give before any training on the log; nothing of a run of ids."""
    slices = models.get("content_knn", {})
    found = {name: slices[name] for name in labels if slices.get(name)}
    if not found:
        return []
    shares = ", ".join(
        f"{labels[name]}: {metrics['hr@10']:.1%}"  # type: ignore[index]
        for name, metrics in found.items()
    )
    return [
        "Zero-shot, without any training on the log: content_knn lists what is nearest to the last "
        "ten items a user met, by the states of the encoders as they began (pretrained, or random "
        f"where a run names no weights). The right item is in its first ten for {shares}."
    ]


def limits(
    document: Mapping[str, Any], findings: Findings, intervals: Intervals, *, simulated: bool
) -> list[str]:
    """What the figures cannot show: of any such log, then of these data.

    Args:
        document: metrics-test.json.
        findings: of the evaluation.
        intervals: of every model, by slice and metric; may be empty.
        simulated: the log was made up by a program.
    """
    slices = document["models"][OURS]
    sentences = [
        "The log says what users met, not what they were shown. It was written under what users "
        "could see at the time: an item that was never shown looks like one that nobody wanted, "
        "and a model that ranks as the old site did looks good. Only a test with users can tell.",
        "It does not say in which place of a list an item stood, so nothing here is corrected "
        "for position.",
        "A user has few targets, and an item ranked high that is not among them counts as wrong "
        "even where the user would have liked it.",
    ]
    if slices.get("cold"):
        sentences.append(
            "Cold figures say how items would rank had users been shown them. The items were held "
            "out of a log in which people did meet them; really new ones may be of another kind."
        )
    sentences.append(
        f"This is one run with one seed ({document.get('seed')}) on one draw of the split. "
        "Intervals are over users: they say nothing of other seeds, other cold items or other data."
    )
    sentences += _smallest_difference(intervals)
    if findings.facts is not None:
        sentences += _of_data(findings.facts)
    if not slices.get("new_users"):
        sentences.append("Nothing here is about users without any history.")
    if findings.costs is not None and findings.costs.latency is not None:
        sentences.append(
            "Latency was measured in one process on the machine that evaluated, busy or not; it "
            "is no benchmark of a service."
        )
    if simulated:
        sentences.append(
            "Simulated tastes are simpler and stronger than people's: expect smaller gains "
            "elsewhere."
        )
    return sentences


def _smallest_difference(intervals: Intervals) -> Iterator[str]:
    for name, metrics in intervals.get(OURS, {}).items():
        if name in ("warm", "cold") and "ndcg@10" in metrics:
            low, high = metrics["ndcg@10"]
            yield (
                f"On {name} targets our NDCG@10 is known to ±{(high - low) / 2:.4f} (95 %, over "
                "users): a change smaller than that is no evidence unless tested user by user."
            )


def _of_data(facts: DataFacts) -> Iterator[str]:
    if facts.num_users_asked < facts.num_users:
        yield (
            f"{facts.num_users_asked:,} of {facts.num_users:,} users of the catalogue have a test "
            "target; the figures are about them alone."
        )
    yield (
        f"{facts.num_candidates_met:,} of {facts.num_candidates:,} candidates are anybody's test "
        "target; how the others would do is not seen."
    )
    if facts.tied_share is None:
        yield (
            "The log has no times: nothing can be said of seasons, trends or the age of items."
            if facts.ordered_by == "order"
            else "The log's times are not known."
        )
        return
    if facts.tied_share > 0:
        by = (
            "the log's own column of order parts them"
            if facts.ordered_by == "order"
            else "they stand in the order of the file"
        )
        yield (
            f"{facts.tied_share:.0%} of the events in the histories asked with carry the same "
            f"time as the one before; {by}. Which of them came next is then not known from "
            "the times."
        )
    if facts.first_time is not None and facts.last_time is not None:
        yield (
            f"Events lie between {_day(facts.first_time)} and {_day(facts.last_time)}; tastes and "
            "items of other times may differ."
        )


def _day(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d")


def size_in_words(size_bytes: int) -> str:
    """Bytes with the largest unit that leaves a number of 1 or more: 1.5 GB."""
    power = min(int(math.log(max(size_bytes, 1), 1000)), 4)
    unit = ("bytes", "kB", "MB", "GB", "TB")[power]
    return f"{size_bytes / 1000**power:.3g} {unit}"
