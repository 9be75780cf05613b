"""The X-ray as a page: where a model's FLOPs, bytes, time and memory go, in theory and measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from tasks.ml.xray import cost_model
from tasks.ml.xray.cost_model import COMPONENTS
from tasks.reporting import charts, numbers, page, xray_charts

if TYPE_CHECKING:
    from tasks.ml.xray.xray import XRay

SHORT = {
    "embeddings": "embeddings", "qkv": "QKV", "attention": "attention", "attention_output": "output", "ffn": "FFN",
    "norms": "norms", "head": "head",
}  # fmt: skip
MEMORY = {
    "weights": "weights", "gradients": "gradients", "optimizer": "optimizer", "activations": "activations",
    "cache": "KV cache",
}  # fmt: skip
OUTSIDE = "outside"
TIMES = {**COMPONENTS, OUTSIDE: "outside operators"}

Cell = tuple[int, int]


def shape(cell: Cell) -> str:
    """``8 × 128 tokens``."""
    return f"{cell[0]} × {cell[1]:,} tokens"


def main_cell(found: XRay) -> Cell:
    """The cell that is looked at closely: of those measured, the one with the most work; else the smallest."""
    cells = list(found.measured) or [min(found.skipped)]
    return max(cells, key=lambda cell: found.flops(*cell))


def _lengths(found: XRay) -> list[int]:
    """Doubling lengths that the model has positions for, up to ten."""
    longest = found.architecture.max_length
    return [length for length in (32 * 2**power for power in range(10)) if length <= longest] or [longest]


def headline(found: XRay) -> str:
    """What the X-ray shows, in one sentence."""
    cell = main_cell(found)
    rows = {row["component"]: row for row in found.components(*cell)}
    flops = sum(row["flops"] for row in rows.values())
    first = max(rows.values(), key=lambda row: row["flops"])["component"]

    def said(name: str, of_flops: str = "", of_time: str = "") -> str:
        text = numbers.percent(rows[name]["flops"] / flops, 0) + of_flops
        measured = found.measured.get(cell)
        if measured:
            text += f" and {numbers.percent(measured.component_seconds[name] / measured.seconds, 0)}{of_time}"
        return f"{text} are {COMPONENTS[name]}"

    others = [said("attention")] if first != "attention" else []
    return f"At {shape(cell)}, {'; '.join([said(first, ' of the FLOPs', ' of the time'), *others])}."


def disturbed(found: XRay) -> str:
    """A warning if the machine was not left alone; else empty."""
    if not found.measured or found.others_share <= page.DISTURBING:
        return ""
    share = numbers.percent(found.others_share, 0)
    return f"Other processes took {share} of the processor meanwhile: the times are longer than they would be alone."


def shares(found: XRay) -> Markup:
    """Parameters, FLOPs, bytes and time of the main cell, each divided among the components."""
    cell = main_cell(found)
    rows = found.components(*cell)
    quantities = (
        ("parameters", "parameters", ""),
        ("FLOPs", "flops", "FLOP"),
        ("bytes moved", "bytes", "B"),
        ("time at the roofline", "roofline_seconds", "s"),
    )
    bars = [
        xray_charts.Bar(title, {row["component"]: row[column] for row in rows}, unit)
        for title, column, unit in quantities
    ]
    if cell in found.measured:
        bars.append(xray_charts.Bar("time measured", found.measured[cell].component_seconds, "s"))
    return xray_charts.shares(bars, TIMES, label=f"What each component takes at {shape(cell)}")


def crossover(architecture: cost_model.Architecture) -> dict[str, str]:
    """The length from which on attention's quadratic part costs most."""
    crossing, longest = cost_model.crossover_length(architecture), architecture.max_length
    if crossing is None:
        return numbers.tile("none", "makes attention half of the FLOPs", "no layer has heads")
    length = round(crossing)
    detail = f"more than the {longest:,} it has positions for" if length > longest else f"it takes up to {longest:,}"
    return numbers.tile(f"{length:,}{numbers.SPACE}tokens", "make attention half of the FLOPs", detail)


def tiles(found: XRay) -> list[dict[str, str]]:
    """The headline numbers."""
    architecture, (_, length) = found.architecture, main_cell(found)
    layers = {(layer.heads, layer.kv_heads, layer.ffn) for layer in architecture.layers}
    first = architecture.layers[0]
    heads = f"{first.heads} heads" + (f" ({first.kv_heads} of keys)" if first.kv_heads != first.heads else "")
    widths = f"{heads}, FFN {first.ffn:,}" if len(layers) == 1 else "layers of different widths"
    per_token = cost_model.forward_flops(architecture, batch=1, length=length) / length

    found_tiles = [
        numbers.tile(
            numbers.unit(cost_model.num_parameters(architecture) / 1e6, "M"),
            "parameters",
            f"{len(architecture.layers)} layers of {architecture.hidden}, {widths}",
        ),
        numbers.tile(numbers.scaled(per_token, "FLOP"), "forward, per token", f"at {length:,} tokens"),
        crossover(architecture),
    ]
    if architecture.causal:
        cache = cost_model.kv_cache_bytes_per_token(architecture, bytes_per_element=found.element)
        held = cost_model.num_parameters(architecture) * found.element + cache * length
        detail = f"{numbers.scaled(held, 'B')} with the weights at {length:,} tokens"
        found_tiles.append(numbers.tile(numbers.scaled(cache, "B"), "KV cache, per token", detail))
    if found.measured:
        best = max(found.measured, key=lambda cell: found.flops(*cell) / found.measured[cell].seconds)
        rate = found.flops(*best) / found.measured[best].seconds
        share = numbers.percent(rate / found.roof.flops_per_s, 0)
        detail = (
            f"{numbers.scaled(rate, 'FLOP/s')} of {numbers.scaled(found.roof.flops_per_s, 'FLOP/s')}, {shape(best)}"
        )
        found_tiles.append(numbers.tile(share, "of the peak, at best", detail))
    return found_tiles


def growth(found: XRay) -> list[dict[str, Any]]:
    """What each component's share is as sequences grow: of FLOPs, of the least time, of the time measured."""
    batch = main_cell(found)[0]
    flops, least, taken = [], [], []
    for length in _lengths(found):
        rows, title = found.components(batch, length), f"{length:,} tokens"
        flops.append(xray_charts.Bar(title, {row["component"]: row["flops"] / batch for row in rows}, "FLOP"))
        least.append(xray_charts.Bar(title, {row["component"]: row["roofline_seconds"] for row in rows}, "s"))
    for (sequences, length), measured in sorted(found.measured.items()):
        if sequences == batch:
            taken.append(xray_charts.Bar(f"{length:,} tokens", measured.component_seconds, "s"))
    of = "a training step" if found.training else "a forward pass"
    together = f"{batch} sequence{'s' if batch > 1 else ''}"
    panels = [
        ("FLOPs", f"{of}, per sequence", flops),
        ("Least time", f"{together}, at the roofline", least),
        ("Time measured", f"{together}, by the profiler", taken),
    ]
    return [
        {
            "title": title,
            "note": note,
            "chart": xray_charts.stacked(bars, TIMES, label=f"{title} by length", shares=True),
        }
        for title, note, bars in panels
        if bars
    ]


def rooflines(found: XRay) -> list[dict[str, Any]]:
    """The roofline with the components of the smallest and of the largest cell measured."""
    smallest = min(found.measured, key=lambda cell: found.flops(*cell), default=None)
    dots = {
        cell: [
            xray_charts.Dot(row["component"], SHORT[row["component"]], row["flops_per_byte"], row["flops_per_s"])
            for row in found.components(*cell)
            if row["flops"]
        ]
        for cell in (smallest, main_cell(found))
        if cell in found.measured
    }
    panels = []
    for cell, shown in dots.items():
        chart = xray_charts.roofline(
            shown, found.roof, cache_bytes_per_s=found.machine.cache_bytes_per_s,
            within=[dot for one in dots.values() for dot in one], label=f"Roofline at {shape(cell)}",
        )  # fmt: skip
        seconds = found.measured[cell].seconds
        rate = numbers.scaled(found.flops(*cell) / seconds, "FLOP/s")
        panels.append({"title": shape(cell), "note": f"a pass in {_time(seconds)}, {rate}", "chart": chart})
    return panels


def _time(seconds: float) -> str:
    return numbers.scaled(seconds, "s") if seconds else "–"


def table(found: XRay, cell: Cell) -> dict[str, Any]:
    """Theory beside the profiler, a row per component."""
    measured = found.measured.get(cell)
    rows = [
        {
            "key": row["component"],
            "title": numbers.capital(COMPONENTS[row["component"]]),
            "parameters": numbers.scaled(row["parameters"], "") if row["parameters"] else "–",
            "flops": numbers.scaled(row["flops"], "FLOP") if row["flops"] else "–",
            "bytes": numbers.scaled(row["bytes"], "B"),
            "intensity": numbers.number(row["flops_per_byte"]) if row["flops"] else "–",
            "least": _time(row["roofline_seconds"]),
            "took": numbers.known(row["seconds"], _time),
            "rate": numbers.known(row["flops_per_s"] or None, lambda value: numbers.number(value / 1e9)),
            "share": numbers.known(row["share_of_roofline"], lambda value: numbers.percent(value, 0)),
        }
        for row in found.components(*cell)
    ]
    found_table = {"title": shape(cell), "rows": rows, "outside": "", "total": ""}
    if measured:
        found_table["outside"] = _time(measured.component_seconds[OUTSIDE])
        found_table["total"] = _time(measured.seconds)
    return found_table


def grid(found: XRay) -> dict[str, Any]:
    """Time and share of the peak at each batch and length."""
    cells = {}
    for cell, measured in found.measured.items():
        rate = found.flops(*cell) / measured.seconds
        share = rate / found.roof.flops_per_s
        tokens = numbers.number(round(cell[0] * cell[1] / measured.seconds))
        between = numbers.between(measured.fastest, measured.slowest, _time)
        cells[cell] = {
            "figure": _time(measured.seconds),
            "detail": f"{numbers.percent(share, 0)} of peak",
            "shade": round(4 + 40 * min(share, 1)),
            "tip": f"{shape(cell)}: {numbers.scaled(rate, 'FLOP/s')}, {tokens} tokens/s; "
            f"median of {measured.passes} passes, {between}",
        }
    return charts.heat(cells, found.skipped)


def memory(found: XRay) -> list[dict[str, Any]]:
    """What training holds, by length and by optimizer, and what serving a decoder holds."""
    (batch, length), architecture = main_cell(found), found.architecture

    def panel(title: str, note: str, rows: Iterable[tuple[str, dict[str, float]]]) -> dict[str, Any]:
        bars = [xray_charts.Bar(name, parts, "B") for name, parts in rows]
        chart = xray_charts.stacked(bars, MEMORY, label=f"Memory: {title}", shares=False)
        return {"title": title, "note": note, "chart": chart}

    choices: list[tuple[str, dict[str, Any]]] = [
        ("AdamW", {}),
        ("AdamW, 8-bit states", {"optimizer": "adamw-8bit"}),
        ("SGD with momentum", {"optimizer": "sgd"}),
        ("AdamW, checkpointing", {"checkpointing": True}),
        ("AdamW 8-bit, checkpointing", {"optimizer": "adamw-8bit", "checkpointing": True}),
    ]
    shown = sorted({cell_length for _, cell_length in (*found.measured, *found.skipped)} | {length})
    panels = [
        panel("Training by length", f"AdamW, {batch} sequences",
              [(f"{one:,} tokens", found.memory(batch, one)) for one in shown]),
        panel("Training by method", f"at {shape((batch, length))}",
              [(name, found.memory(batch, length, **options)) for name, options in choices]),
    ]  # fmt: skip
    if architecture.causal:
        per_token = cost_model.kv_cache_bytes_per_token(architecture, bytes_per_element=found.element)
        weights = cost_model.num_parameters(architecture) * found.element
        rows = [(f"{one:,} tokens", {"weights": weights, "cache": per_token * batch * one}) for one in _lengths(found)]
        panels.append(panel("Generation by length", f"{batch} sequences in the cache", rows))
    return panels


def writing(found: XRay) -> list[dict[str, str]]:
    """What a token of a decoder reads in each format, and how many a second that allows."""
    return [
        {
            "title": row["format"],
            "past": f"{row['past']:,}",
            "bytes": numbers.scaled(row["bytes"], "B"),
            "most": numbers.number(row["most_tokens_per_s"]),
            "rate": numbers.known(row["tokens_per_s"], numbers.number),
            "share": numbers.known(row["share_of_roofline"], lambda value: numbers.percent(value, 0)),
        }
        for row in found.writing()
    ]


def activations(found: XRay) -> list[dict[str, str]]:
    """What autograd kept beside what theory says; in training only."""
    return [
        {
            "title": shape(cell),
            "theory": numbers.scaled(found.memory(*cell)["activations"], "B"),
            "kept": numbers.scaled(measured.saved_bytes, "B"),
        }
        for cell, measured in found.measured.items()
        if measured.saved_bytes is not None
    ]


def render(found: XRay, surroundings: page.Surroundings) -> str:
    """Returns the page as HTML that needs nothing else."""
    cell = main_cell(found)
    return page.fill(
        "xray",
        surroundings,
        found=found,
        architecture=found.architecture,
        headline=headline(found),
        disturbed=disturbed(found),
        shares=shares(found),
        main_shape=shape(cell),
        tiles=tiles(found),
        times=TIMES,
        memory_names={k: v for k, v in MEMORY.items() if k != "cache" or found.architecture.causal},
        growth=growth(found),
        rooflines=rooflines(found),
        table=table(found, cell),
        tables=[table(found, other) for other in found.measured if other != cell],
        grid=grid(found),
        memory=memory(found),
        activations=activations(found),
        writing=writing(found),
        peaks={name: numbers.scaled(peak, "FLOP/s") for name, peak in found.machine.peak_flops_per_s.items()},
        bandwidth=numbers.scaled(found.machine.bytes_per_s, "B/s"),
        cache_bandwidth=numbers.scaled(found.machine.cache_bytes_per_s, "B/s"),
        ridge=numbers.number(found.roof.ridge),
    )
