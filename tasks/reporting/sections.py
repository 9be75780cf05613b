"""The sections of the report: what each shows, as plain values and charts for the template to set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tasks.contracts.values import Check, ClassRecall, Outcome, Scorecard, StageResult
from tasks.ml.statistics import bootstrap
from tasks.ml.statistics.bootstrap import Interval
from tasks.reporting import charts, measures, numbers
from tasks.reporting.evidence import TITLES, Comparison, SeedRun, balanced_accuracy, over_seeds
from tasks.reporting.measures import Measure

SPEED_FIELDS = {
    "latency_p50_ms": 3,
    "latency_p95_ms": 3,
    "latency_p99_ms": 3,
    "throughput_per_s": 3,
    "load_time_s": 2,
    "peak_memory_mb": 2,
}
"""What the table of speeds shows, with significant digits."""

GENERATION_FIELDS = {"prefill_per_s": 3, "decode_per_s": 3, "first_token_ms": 3, "memory_mb": 3}
"""What the table of generation shows, with significant digits."""

Row = Mapping[str, Any]
FRACTION = measures.of("accuracy")


def _beside_teacher(rows: Sequence[Row], comparisons: Mapping[str, Comparison]) -> list[tuple[Any, ...]]:
    """Title, quality, interval and what it is: the teacher's quality less the paired interval of the drop."""
    start, measure = rows[0]["quality"], measures.of(rows[0]["metric"])
    found: list[tuple[Any, ...]] = [(rows[0]["title"], start, None, "the teacher")]
    for row in rows[1:]:
        one = comparisons[row["stage"]]
        about = (
            f"{_lost(one.drop.measured, measure)}, 95 % interval {_range(one.drop, measure)}, of n = {one.counts.n:,}"
        )
        found.append((row["title"], row["quality"], (start - one.drop.high, start - one.drop.low), about))
    return found


def _lost(drop: float, measure: Measure) -> str:
    if not measure.percent:
        return f"{measure.difference(-drop)} beside the teacher"
    return f"{numbers.points(abs(drop))} {'below' if drop > 0 else 'above'} the teacher" if drop else "as the teacher"


def _range(interval: Interval, measure: Measure = FRACTION) -> str:
    """The change that an interval of a drop stands for: ``−1.4 to +0.3 points``."""
    ends = (-interval.high, -interval.low) if measure.percent else (-interval.low, -interval.high)
    return numbers.between(*ends, measure.difference)


def _wavering(row: Row) -> tuple[float, float] | None:
    """The interval of a latency over its rounds."""
    rounds = row.get("latency_p50_rounds_ms")
    if not rounds:
        return None
    interval = bootstrap.median(rounds)
    return min(interval.low, row["latency_p50_ms"]), max(interval.high, row["latency_p50_ms"])


def waterfall(
    rows: Sequence[Row], found: Sequence[Check], comparisons: Mapping[str, Comparison] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Quality, size and latency after each stage, as aligned panels."""
    panels = []
    measured = [row for row in rows if row["quality"] is not None]
    if measured:
        allowed = next((check.limit for check in found if check.name == "quality_drop"), None)
        measure = measures.of(measured[0]["metric"])
        reference = measured[0]["quality"]
        floor = None if allowed is None else reference - (allowed if measure.percent else allowed * abs(reference))
        paired = {row["stage"] for row in measured[1:]} <= comparisons.keys()
        alone = [(row["title"], row["quality"], None, f"n = {row['n']:,}") for row in measured]
        dots, metric = (
            _beside_teacher(measured, comparisons) if paired else alone,
            numbers.capital(measure.name),
        )
        what = f", with paired 95{numbers.SPACE}% intervals against the teacher" if paired else ""
        panels.append({
            "title": metric,
            "note": f"{measured[0]['split']} split, n = {measured[0]['n']:,}{what}",
            "chart": charts.quality(dots, label=f"{metric} after each stage", floor=floor, measure=measure),
        })  # fmt: skip
    if any(row["size_mb"] is not None for row in rows):
        sizes = [(row["title"], row["size_mb"], None) for row in rows]
        chart = charts.waterfall(sizes, label="Size", unit="MB")
        panels.append({"title": "Size", "note": "weights on disk", "chart": chart})
    if any(row["latency_p50_ms"] is not None for row in rows):
        times = [(row["title"], row["latency_p50_ms"], _wavering(row)) for row in rows]
        note = "p50 of one real text" + (", with intervals over rounds" if any(ends for _, _, ends in times) else "")
        chart = charts.waterfall(times, label="Latency", unit="ms")
        panels.append({"title": "Latency", "note": note, "chart": chart})
    return panels


def quality(rows: Sequence[Row], comparisons: Mapping[str, Comparison]) -> list[dict[str, str]]:
    """Every model beside the teacher, row by row; empty where rows were not kept."""
    found = []
    for row in rows:
        one, measure = comparisons.get(row["stage"]), measures.of(row["metric"])
        if row["quality"] is None or (one is None and row is not rows[0]):
            continue
        found.append({
            "title": row["title"],
            "quality": measure.precise(row["quality"]),
            "change": measure.difference(-one.drop.measured) if one else "",
            "interval": _range(one.drop, measure) if one else "",
            "lost": f"{one.counts.lost:,}" if one else "",
            "gained": f"{one.counts.gained:,}" if one else "",
            "mcnemar": numbers.p_value(one.mcnemar_p).removeprefix("p ").removeprefix("= ") if one else "",
        })  # fmt: skip
    return found if comparisons else []


def recalls(found: Sequence[ClassRecall]) -> dict[str, Any]:
    """Every class beside the teacher, and the mean over classes; what fell most comes first if there are many."""
    if not found:
        return {}
    rows = [
        {
            "label": one.label,
            "n": f"{one.n:,}",
            **_recall(one.teacher / one.n, one.shipped / one.n),
            "interval": numbers.between(one.change_low, one.change_high, lambda x: numbers.points(x, signed=True)),
        }
        for one in (sorted(found, key=lambda one: one.change) if len(found) > MANY_CLASSES else found)
    ]
    return {"rows": rows, "mean": _recall(*balanced_accuracy(found))}


MANY_CLASSES = 10


def _recall(teacher: float, shipped: float) -> dict[str, Any]:
    return {
        "teacher": numbers.percent(teacher),
        "shipped": numbers.percent(shipped),
        "teacher_part": round(100 * teacher, 1),
        "shipped_part": round(100 * shipped, 1),
        "change": numbers.points(shipped - teacher, signed=True),
    }


def seeds(runs: Sequence[SeedRun]) -> dict[str, Any]:
    """The recipe's runs with other seeds, each beside its teacher, and all together; empty where there are none."""
    if not runs:
        return {}
    together = over_seeds(runs)
    return {
        "rows": [
            {
                "seed": one.seed,
                "date": one.date,
                "run_id": one.run_id,
                "teacher": numbers.percent(float(one.teacher.mean()), 2),
                "shipped": numbers.percent(float(one.shipped.mean()), 2),
                "change": numbers.points(float(one.shipped.mean() - one.teacher.mean()), signed=True),
                "interval": _range(bootstrap.quality_difference(one.teacher, one.shipped)),
            }
            for one in runs
        ],
        "change": numbers.points(-together.measured, signed=True),
        "interval": _range(together),
    }


def _lines(title: str, model: str, series: Mapping[str, charts.Points], form: charts.Format) -> dict[str, Any]:
    shown = {name: points for name, points in series.items() if points}
    return {"title": title, "lines": list(shown), "chart": charts.lines(shown, label=f"{model}: {title}", form=form)}


def curves(result: StageResult, history: Row) -> dict[str, Any]:
    """The learning curves of one stage: loss and quality over epochs, and what they say."""
    points, evaluations, card = history["points"], history["evaluations"], result.scorecard
    title = TITLES.get(result.stage, result.stage)
    # A composed loss (of a distillation) is in other units than the selection split's loss: never on one axis.
    composed = any(part.endswith("_loss") for point in points for part in point)
    panels = []
    if points:
        loss = {"training": [(point["epoch"], point["loss"]) for point in points]}
        if not composed:
            loss["selection"] = [(point["epoch"], point["loss"]) for point in evaluations]
        name = "Loss against the teacher" if composed else "Loss"
        panels.append(_lines(name, title, loss, numbers.number))
        for key, name in (("gradient_norm", "Gradient norm"), ("learning_rate", "Learning rate")):
            line = {"training": [(point["epoch"], point[key]) for point in points if key in point]}
            panels.append(_lines(name, title, line, numbers.number))
    facts = []
    if evaluations:
        best = max(evaluations, key=lambda point: (point["quality"], -point["loss"]))
        measure = measures.of(card.metric)
        scale = measure.scale
        facts.append(f"best {measure.value(best['quality'])} at epoch {best['epoch']:.2g}")
        # Quality on training rows is measured once, of the weights that are kept: those of the best evaluation.
        fit = [] if card.train_quality is None else [(best["epoch"], scale * card.train_quality)]
        quality = {"training": fit, "selection": [(point["epoch"], scale * point["quality"]) for point in evaluations]}
        if len(evaluations) > 1:
            name = f"{numbers.capital(measure.name)}{', %' if measure.percent else ''}"
            panels.append(_lines(name, title, quality, lambda value: measure.value(value / scale)))
    if card.overfit_gap is not None:
        gap = measures.of(card.metric)
        bits = f"{gap.difference(card.overfit_gap)}{numbers.SPACE}{measures.BITS}"
        said = numbers.points(card.overfit_gap) if gap.percent else bits
        facts.append(f"train{numbers.MINUS}selection gap {said}")
    if card.samples_per_s is not None:
        facts.append(f"{numbers.number(card.samples_per_s)} rows/s")
    if shares := [point["flops_utilization"] for point in points if "flops_utilization" in point]:
        facts.append(f"{numbers.percent(sum(shares) / len(shares), 0)} of the measured matrix-product peak")
    return {"title": title, "panels": panels, "facts": facts, "precision": history["notes"].get("precision", "")}


def speed(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Latency percentiles, throughput, load time and memory of every model that was timed."""
    return [
        {
            "title": row["title"],
            "runtime": row["runtime"],
            **{
                name: "–" if row.get(name) is None else numbers.number(float(row[name]), digits)
                for name, digits in SPEED_FIELDS.items()
            },
        }
        for row in rows
        if row["latency_p50_ms"] is not None
    ]


def grid(validation: Row) -> dict[str, Any]:
    """Teacher against shipped at each batch and length: times faster, and ms; empty if not both were timed."""
    timed = {(cell["stage"], cell["batch"], cell["length"]): cell for cell in validation.get("grid", ())}
    pairs = {
        (batch, length): (timed["train", batch, length], cell)
        for (stage, batch, length), cell in timed.items()
        if stage == "validate" and ("train", batch, length) in timed
    }
    if not pairs:
        return {}
    ratios = {key: before["p50_ms"] / after["p50_ms"] for key, (before, after) in pairs.items()}
    low, span = min(ratios.values()), max(ratios.values()) - min(ratios.values())
    cells = {}
    for key, (before, after) in pairs.items():
        milliseconds = f"{numbers.number(before['p50_ms'])} → {numbers.unit(after['p50_ms'], 'ms')}"
        cells[key] = {
            "figure": numbers.times(ratios[key]),
            "shade": round(6 + 40 * ((ratios[key] - low) / span if span else 0.5)),
            "detail": milliseconds,
            "tip": f"batch {key[0]} × {key[1]} tokens: {milliseconds}, {numbers.number(after['rows_per_s'])} rows/s",
        }
    return charts.heat(cells)


def generation(validation: Row) -> list[dict[str, str]]:
    """How fast models generate after each length of context; empty where none of them does."""
    titles = {row["stage"]: row["title"] for row in validation.get("models", ())}
    return [
        {"title": titles[cell["stage"]], "context": f"{cell['context']:,}"}
        | {name: numbers.number(float(cell[name]), digits) for name, digits in GENERATION_FIELDS.items()}
        for cell in validation.get("generation", ())
    ]


def parity(validation: Row) -> list[tuple[str, str]]:
    """What came of holding the shipped file against its simulation: what was measured, and its value."""
    found = validation.get("parity")
    if not found:
        return []
    rows = _token_parity(found) if "perplexity_change" in found else _row_parity(found)
    return [
        *rows,
        ("values not finite", f"{found['non_finite']:,}"),
        ("shapes tried", ", ".join("×".join(map(str, shape)) for shape in found["shapes"])),
    ]


def _row_parity(found: Row) -> list[tuple[str, str]]:
    flips, n = found["label_flips"], found["n"]
    itself = numbers.number(found["allowed_abs_error"])
    return [
        ("rows compared", f"{n:,}"),
        ("answers that changed", f"{flips} ({numbers.percent(flips / n, 2)})"),
        ("answers that changed at the shapes below", f"{found['shape_flips']} of {found['shape_rows']}"),
        (f"largest logit difference (quantization itself: {itself})", numbers.number(found["max_abs_error"])),
        ("median logit difference", numbers.number(found["median_abs_error"])),
        ("mean logit difference", numbers.number(found["mean_abs_error"])),
    ]


def _token_parity(found: Row) -> list[tuple[str, str]]:
    change, allowed = (numbers.percent(found[f"{name}perplexity_change"], 3) for name in ("", "allowed_"))
    flips = found["label_flips"] + found["shape_flips"]
    ties = found["tied_flips"] + found["shape_tied_flips"]
    return [
        ("next tokens compared", f"{found['n'] + found['shape_rows']:,} of {found['rows']:,} rows and shapes"),
        ("perplexity, simulated and shipped", " → ".join(
            numbers.number(found[name]) for name in ("simulated_perplexity", "perplexity")
        )),
        (f"change of perplexity (allowed: {allowed})", change),
        ("next tokens that both would say", numbers.percent(found["agreement"], 2)),
        ("next tokens that changed, ties among them", f"{flips:,}, {ties:,}"),
        ("largest difference of what a token loses, nats", numbers.number(found["max_abs_error"])),
        ("logits of a text read in two parts, largest difference", numbers.number(found["chunk_error"])),
        (f"texts continued alike for {found['generated']} tokens", f"{found['whole_prompts']} of {found['prompts']}"),
        ("texts that part in a tie", f"{found['tied_prompts']}"),
        ("first tokens that are alike, of each text", ", ".join(map(str, found["common_prefixes"]))),
    ]  # fmt: skip


def operators(document: Row) -> list[tuple[str, int | None, int]]:
    """Operator, nodes expected (``None`` if the architecture asks for no number) and found; the expected first."""
    expected, counts = document.get("expected", {}), document.get("counts", {})
    others = sorted(set(counts) - set(expected), key=lambda name: (-counts[name], name))
    return [(name, n, counts.get(name, 0)) for name, n in expected.items()] + [
        (name, None, counts[name]) for name in others
    ]


def data(profile: Row) -> dict[str, Any]:
    """Class balance per split, token lengths of all labelled rows, and what was dropped; empty without a profile."""
    if not profile:
        return {}
    splits = profile["splits"]
    labelled = {name: split for name, split in splits.items() if split["labels"]}
    names = list(dict.fromkeys(label for split in labelled.values() for label in split["labels"]))
    balance = [
        (
            name,
            [
                (split["labels"].get(name, 0), split["labels"].get(name, 0) / split["rows"])
                for split in labelled.values()
            ],
        )
        for name in names
    ]
    counts = [sum(bins) for bins in zip(*(split["token_histogram"] for split in labelled.values()), strict=True)]
    total = sum(split["rows"] for split in labelled.values())
    cut = sum(split["rows_cut"] for split in labelled.values())
    mean = sum(split["tokens_mean"] * split["rows"] for split in labelled.values()) / total
    dropped = [f"{n:,} {reason.replace('_', ' ')}" for reason, n in profile["dropped"].items() if n]
    return {
        "splits": {name: f"{split['rows']:,}" for name, split in labelled.items()},
        "unlabeled": sum(split["rows"] for name, split in splits.items() if name not in labelled),
        "balance": balance,
        "largest": max(part for _, parts in balance for _, part in parts),
        "dropped": ", ".join(dropped) or "none",
        "warnings": profile["warnings"],
        "lengths_note": f"mean {mean:.1f}; {numbers.percent(cut / total)} cut at the maximum length",
        "lengths": charts.histogram(profile["token_histogram_edges"], counts, label="Tokens per text", x_name="tokens"),
    }


def _of_rows(card: Scorecard) -> str:
    """Of how many rows agreement was told, where not of all."""
    told, rows = card.agreement_rows, card.num_examples
    return f" on {told:,} of {rows:,} rows" if told is not None and rows is not None and told < rows else ""


def stages(outcome: Outcome) -> list[dict[str, Any]]:
    """What each stage took and gave."""
    rows = []
    for result in outcome.stages:
        card = result.scorecard
        alike = card.agreement_with_teacher
        gave = [
            f"{card.metric} {numbers.percent(card.quality)} on {card.split}" if card.quality is not None else "",
            f"{numbers.percent(alike)} as the teacher{_of_rows(card)}" if alike is not None else "",
            numbers.unit(card.size_mb, "MB") if card.size_mb is not None else "",
            numbers.unit(card.num_parameters / 1e6, "M parameters") if card.num_parameters is not None else "",
            f"{card.num_rows:,} rows" if card.num_rows is not None else "",
            f"{numbers.unit(card.latency_p50_ms, 'ms')} p50" if card.latency_p50_ms is not None else "",
        ]
        rows.append({
            "stage": result.stage,
            "status": "Cached" if result.cached else "computed",
            "time": numbers.duration(result.seconds),
            "gave": " · ".join(part for part in gave if part),
            "run_id": result.run_id,
        })  # fmt: skip
    return rows
