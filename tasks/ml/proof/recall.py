"""The checks that hold whatever the drop: better than the majority answer, and no class lost.

When they pass, fail or are undecidable, and why: ``infra/decisions/0002-verdict-rule.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.contracts.values import Check, CheckStatus, ClassRecall
from tasks.ml.quoting import quoted

if TYPE_CHECKING:
    from tasks.ml.quality.classwise import Fate, Standing, Tally

FLOOR, LOST_CLASSES = "floor", "lost_classes"
NAMED = 3
"""Classes that a sentence names."""
LONGEST_LABEL = 40


def _majority(counts: Tally, about: Mapping[str, Any]) -> int:
    return max(about["majority"], int(counts.rows.argmax()), key=lambda c: counts.rows[c])


def _beats(found: Standing, confidence: float) -> bool:
    told_apart = found.gain.high >= 0 and found.others_p < (1 - confidence) / 2
    return found.gain.low > 0 or told_apart


def is_decidable(counts: Tally, about: Mapping[str, Any], *, confidence: float) -> bool:
    """Whether these rows would show that a model without errors beats the answer that is always the same."""
    from tasks.ml.quality import classwise

    perfect = classwise.against_majority(
        classwise.Tally(counts.rows, counts.rows, counts.rows), _majority(counts, about), confidence=confidence
    )
    return _beats(perfect, confidence)


def floor(counts: Tally, about: Mapping[str, Any], *, who: str, split: str, confidence: float) -> Check:
    """Whether a model beats the answer that is always the same: the most frequent label of these rows.

    Which label that is may differ from the training rows', of which a balanced sample may be made; a model that names
    one label only then still beats none.

    Args:
        about: ``labels`` by class index, ``majority``, a class index, and ``majority_share`` of the training rows.
        who: the model, and ``split``: whose rows were counted, for the sentence.
    """
    from tasks.ml.quality import classwise

    majority = _majority(counts, about)
    found = classwise.against_majority(counts, majority, confidence=confidence)
    always = quoted(about["labels"][majority], LONGEST_LABEL)
    gain, others = found.gain, found.n - found.majority_right
    decidable = is_decidable(counts, about, confidence=confidence)
    if _beats(found, confidence):
        status = CheckStatus.PASSED
    elif gain.measured > 0 or not decidable:
        status = CheckStatus.UNDECIDABLE
    else:
        status = CheckStatus.FAILED
    explanation = (
        f"{who} is right on {found.right:,} of {found.n:,} {split} rows, and always answering {always} on "
        f"{found.majority_right:,}: a gain of {_points(gain.measured)} points ({100 * confidence:g} % interval "
        f"{_points(gain.low)} to {_points(gain.high)}), balanced accuracy {_percent(found.balanced_accuracy)}"
    )
    if not decidable:
        few = "no row has another label" if not others else f"only {others:,} have another label"
        explanation += (
            f"; undecidable, because {few}, too few even for a model without errors: raise data.{split}_fraction, or "
            "add rows"
        )
    elif status is CheckStatus.UNDECIDABLE:
        needed = found.rows_needed
        rows = "no number of rows is enough" if needed is None else f"at least {needed:,} {split} rows are needed"
        explanation += f"; undecidable at this n: {rows} to tell it from the majority answer"
    elif status is CheckStatus.FAILED:
        explanation += "; it must be better than that"
    elif gain.low <= 0:
        explanation += f"; it tells others from {always} better than chance (exact test, p = {found.others_p:.2g})"
    return Check(
        name=FLOOR, **gain._asdict(), limit=0.0, direction="at_least", n=found.n, status=status,
        explanation=explanation,
    )  # fmt: skip


def lost(fates: Mapping[int, Fate], labels: Sequence[str], *, max_drop: float, confidence: float) -> Check:
    """How many classes the shipped model lost: of those surely, the finding; of all that may be, the upper end.

    Args:
        max_drop: accuracy that may be lost, which says what accuracy cannot see.
    """
    level = 1 - confidence
    halved = {c: fate for c, fate in fates.items() if fate.is_halved}
    beyond_churn = {c: fate for c, fate in halved.items() if fate.churn_p < level}
    shown = {c: fate for c, fate in beyond_churn.items() if fate.mcnemar_p < level}
    n = sum(fate.rows for fate in fates.values())
    status = CheckStatus.FAILED if shown else CheckStatus.UNDECIDABLE if beyond_churn else CheckStatus.PASSED
    return Check(
        name=LOST_CLASSES,
        measured=len(beyond_churn),
        low=len(shown),
        high=len(halved),
        limit=0.0,
        direction="at_most",
        n=n,
        status=status,
        explanation=_account(fates, labels, shown or beyond_churn, status, max_drop=max_drop, confidence=confidence),
    )


def _account(
    fates: Mapping[int, Fate],
    labels: Sequence[str],
    gone: Mapping[int, Fate],
    status: CheckStatus,
    *,
    max_drop: float,
    confidence: float,
) -> str:
    """The sentence behind the check of lost classes."""
    from tasks.ml.statistics import discordance

    def said(c: int) -> str:
        fate = fates[c]
        return (
            f"{quoted(labels[c], LONGEST_LABEL)}, of whose {fate.rows:,} test rows the teacher finds {fate.teacher:,} "
            f"and the shipped model {fate.shipped:,}"
        )

    worst = sorted(gone or fates, key=lambda c: fates[c].change.measured)
    if gone:
        more = f", and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
        count = "1 class is" if len(gone) == 1 else f"{len(gone)} of {len(fates)} classes are"
        explanation = f"{count} lost: {'; '.join(map(said, worst[:NAMED]))}{more}"
    else:
        explanation = f"none of {len(fates)} classes is lost; the largest fall is that of {said(worst[0])}"
    if status is CheckStatus.UNDECIDABLE:
        fate = fates[worst[0]]
        needed = discordance.rows_needed(fate.lost, fate.gained, fate.rows, rule_out=0.0, confidence=confidence)
        explanation += f"; undecidable at this n: at least {needed} rows of the class are needed"
    n = sum(fate.rows for fate in fates.values())
    unseen = [c for c, fate in fates.items() if fate.rows <= max_drop * n]
    if unseen:
        before, after = (_mean_recall(fates, name) for name in ("teacher", "shipped"))
        smallest = min(unseen, key=lambda c: fates[c].rows)
        explanation += (
            f"; accuracy cannot see the loss of {quoted(labels[smallest], LONGEST_LABEL)}, "
            f"{_percent(fates[smallest].rows / n)} of the rows where {_percent(max_drop)} may be lost: balanced "
            f"accuracy can, and went from {_percent(before)} to {_percent(after)}"
        )
    return explanation


def _mean_recall(fates: Mapping[int, Fate], name: str) -> float:
    return sum(getattr(fate, name) / fate.rows for fate in fates.values()) / len(fates)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def recalls(fates: Mapping[int, Fate], labels: Sequence[str]) -> tuple[ClassRecall, ...]:
    """Every class that has rows, in the order of the labels."""
    return tuple(
        ClassRecall(
            label=labels[c],
            n=fate.rows,
            teacher=fate.teacher,
            shipped=fate.shipped,
            change_low=fate.change.low,
            change_high=fate.change.high,
        )
        for c, fate in fates.items()
    )


def _points(fraction: float) -> str:
    """A fraction in points, with the sign that typography has for it."""
    return f"{100 * fraction:.2f}".replace("-", "−")
