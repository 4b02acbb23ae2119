"""The plan as a table: one row per item, one column per memory, then what a pass streams and costs."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from loaders.sizes import format_size
from scheduler.plan.placement import Tier
from scheduler.plan.plan import Plan

NAME_WIDTH = 46
CELL_WIDTH = 18
LINE_WIDTH = 100


def format_plan(plan: Plan, width: int = LINE_WIDTH) -> str:
    """The plan as plain text, lines of at most `width` or 100 characters, no line break at the end."""
    if width >= LINE_WIDTH:
        lines = [*_heading(plan), "", *_table(plan), "", *summary(plan)]
        return "\n".join(_clip(line, LINE_WIDTH) for line in lines)
    return "\n".join(
        [*wrapped(_heading(plan), width), "", *_narrow_table(plan, width), "", *wrapped(summary(plan), width)]
    )


def wrapped(lines: Iterable[str], width: int) -> Iterator[str]:
    """Lines of at most `width` characters, broken between words; continuation lines are indented by two more."""
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        yield from textwrap.wrap(line, max(width, 20), subsequent_indent=indent, break_on_hyphens=False) or [""]


def _heading(plan: Plan) -> Iterator[str]:
    machine = plan.machine
    yield f"Plan for {plan.model} ({plan.weight_form}, {format_size(plan.weight_bytes)} of weights)"
    if plan.device == "cuda":
        memory = f"{format_size(machine.device_total)}, {format_size(machine.host_total)} of RAM beside it"
    else:
        memory = f"{machine.cores} cores, {format_size(machine.host_total)} of RAM"
    yield f"on {plan.device_name}: {memory}{_bandwidths(plan)}"


def _bandwidths(plan: Plan) -> str:
    """The known bandwidths; one that was not measured names the slot it is estimated from."""
    machine, link = plan.machine, "link"
    if machine.pcie and "link_bandwidth" in machine.estimated:
        link = f"{machine.pcie} about"
    rates = {link: machine.link_bandwidth if plan.device == "cuda" else None, "disk": machine.disk_bandwidth}
    return "".join(f", {name} {format_size(int(rate))}/s" for name, rate in rates.items() if rate)


def _table(plan: Plan) -> Iterator[str]:
    return (_row(name, cells, NAME_WIDTH, [CELL_WIDTH] * len(cells)) for name, cells in _rows(plan))


def _rows(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    """A header, one row per item and the totals; no GPU column on a machine without a GPU."""
    on_gpu = plan.device == "cuda"
    yield "", ["GPU", "RAM", "disk"] if on_gpu else ["RAM", "disk"]
    for item in plan.items:
        cells = [item.device_bytes, item.host_bytes, item.disk_bytes]
        yield item.name, [format_size(cell) if cell else "-" for cell in (cells if on_gpu else cells[::2])]
    used = [_used(plan.device_bytes, plan.device_budget), _used(plan.host_bytes, plan.host_budget)]
    disk = format_size(plan.disk_bytes) if plan.disk_bytes else "-"
    yield "total", [*(used if on_gpu else used[:1]), disk]


def _narrow_table(plan: Plan, width: int) -> Iterator[str]:
    """The table with minimal columns; if even that is too wide, each item's bytes go on a line below its name."""
    rows = [(name, [_short_used(cell) for cell in cells]) for name, cells in _rows(plan)]
    widths = [max(len(cells[column]) for _, cells in rows) + 2 for column in range(len(rows[0][1]))]
    if width - sum(widths) >= max(len(name) for name, _ in rows) + 2:
        yield from (_row(name, cells, width - sum(widths), widths) for name, cells in rows)
        return
    heads = rows[0][1]
    for name, cells in rows[1:]:
        taken = [f"{cell} {head}" for cell, head in zip(cells, heads) if cell != "-"]
        yield from wrapped([name, f"  {', '.join(taken) or '-'}"], width)


def _short_used(cell: str) -> str:
    """The cell with the unit written once if both sides of "used / budget" have the same: "1.0 / 2.0 GiB"."""
    used, slash, budget = cell.partition(" / ")
    unit = used.rpartition(" ")[2]
    return cell.replace(f" {unit} /", " /") if slash and budget.endswith(f" {unit}") else cell


def summary(plan: Plan) -> Iterator[str]:
    """What a plan means, in sentences."""
    place = "on the GPU" if plan.device == "cuda" else "in memory"
    if plan.not_read:
        yield f"Only the text part of the model is run: {plan.not_read}."
    if not plan.slots:
        yield f"The model fits {place} whole: nothing is streamed."
        if plan.decoded.target or plan.decoded.draft:
            yield "Packed layers are decoded at loading, as far as memory goes; --device-memory SIZE keeps more packed."
    else:
        yield _streaming(plan)
        if plan.code_bytes:
            yield f"Codes of {format_size(plan.code_bytes)} stay, draft, and restore the weights from what streams."
        if plan.token_bytes < plan.streamed_bytes:
            yield _single_token(plan)
        if plan.pageable_bytes:
            yield _pageable(plan)
        yield _prediction(plan)
        yield _prompts(plan)
    if plan.slow_dequantizing:
        yield "Quantized weights are dequantized by plain torch, which is slower:"
        yield f"  {plan.machine.no_kernels}."
    elif plan.dequantized_by:
        yield f"Quantized weights are dequantized by {plan.dequantized_by}."
    if plan.context_length < plan.context_wanted:
        yield f"Context: {plan.context_length} tokens, for want of memory; with more it would be {plan.context_wanted}."
    if plan.draft is None and plan.tree_size == 1:
        yield "No draft: each pass yields one token."
    elif plan.draft is None:
        tokens = plan.tree_size - 1
        yield f"No draft: where the text repeats itself, a pass checks up to {tokens} tokens of what followed before."
    else:
        shared = f"s: up to {plan.nodes} nodes in all; each" if plan.texts > 1 else ""
        yield f"Tree{shared}: up to {plan.tree_size} nodes and {plan.tree_depth} levels, checked in one pass."
    yield from _texts(plan)
    yield from _kv_rows(plan)
    yield _margins(plan)


def _texts(plan: Plan) -> Iterator[str]:
    """What several texts in one pass take, and why they are one where more were asked for."""
    if plan.texts < plan.texts_wanted:
        yield f"Texts take turns: a recurrent state holds one, so that {plan.texts_wanted} cannot share a pass."
    if plan.texts > 1:
        together, one = format_size(plan.texts * plan.kv_bytes), format_size(plan.kv_bytes)
        yield f"Texts: up to {plan.texts} share a pass; their KV caches take {together}, one text's {one}."


def _kv_rows(plan: Plan) -> Iterator[str]:
    """What KV rows in fewer bits mean, what those in host memory cost, and why they are not there."""
    if plan.kv_bits:
        yield f"KV rows are kept in {plan.kv_bits} bits: the text is that of a slightly different model."
    if plan.kv == "host":
        each, most = format_size(plan.kv_token_bytes), format_size(plan.kv_streamed_bytes)
        yield f"KV rows cross the link with their layers: {each} for each token of a text, up to {most} in a pass."
    if plan.kv_stays:
        yield f"--kv host changes nothing here: {plan.kv_stays}."


def _margins(plan: Plan) -> str:
    """The part of each memory that the plan does not use."""
    machine = plan.machine
    kept = {"RAM": machine.host_total - (plan.host_budget if plan.device == "cuda" else plan.device_budget)}
    if plan.device == "cuda":
        kept = {"the GPU": machine.device_total - plan.device_budget, **kept}
    parts = (f"{format_size(max(0, nbytes))} of {name}" for name, nbytes in kept.items())
    return (
        f"Left to the system, other programs{', CUDA itself' * (plan.device == 'cuda')} or a cap: {', '.join(parts)}."
    )


def _streaming(plan: Plan) -> str:
    total, from_disk = format_size(plan.streamed_bytes), plan.disk_bytes
    if plan.device == "cpu":
        return f"On the CPU, layers stream from disk: {total} in each pass."
    from_host = plan.streamed_bytes - from_disk
    if from_host and from_disk:
        return f"Each pass streams {total}: {format_size(from_host)} from memory, {format_size(from_disk)} from disk."
    return f"Each pass streams {total} from {'disk' if from_disk else 'memory'}."


def _single_token(plan: Plan) -> str:
    return f"Where only the experts that a pass hits are fetched, one token streams {format_size(plan.token_bytes)}."


def _prompts(plan: Plan) -> str:
    with_tree = plan.rows - plan.nodes + 1
    together = plan.tree_size == 1 or with_tree > 1  # else the tree fills its pass, with the last prompt token as root
    read = f"Prompts: up to {with_tree if together else plan.rows} new tokens are read in one pass"
    if plan.tree_size == 1:
        return f"{read}."
    trees = "the first tree" if plan.texts == 1 else "the trees"
    return f"{read}, {'together with' if together else 'before'} {trees}."


def _pageable(plan: Plan) -> str:
    limit, rate = plan.machine.pinned_limit or 0, plan.machine.pageable_bandwidth
    speed = f"the link at {format_size(int(rate))}/s" if rate else "the link more slowly"
    return f"No more than {format_size(limit)} can be pinned here: {format_size(plan.pageable_bytes)} cross {speed}."


def _prediction(plan: Plan) -> str:
    if plan.seconds_per_pass is None:
        unknown = [
            name
            for name, tier, rate in (
                ("link", Tier.HOST, plan.machine.link_bandwidth),
                ("disk", Tier.DISK, plan.machine.disk_bandwidth),
            )
            if tier in plan.tiers and not rate
        ]
        return f"Speed: unknown until the {' and the '.join(unknown)} has been measured."
    seconds = plan.seconds_per_pass
    pace = f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"
    return f"Predicted: {pace} s per pass; without a draft {1 / seconds:.2g} tokens/s."


def _row(name: str, cells: Sequence[str], name_width: int, widths: Sequence[int]) -> str:
    """One line: the name left-aligned, the cells right-aligned in their columns."""
    left = f"  {_clip(name, name_width - 2):<{name_width - 2}}"
    return left + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths))


def _used(used: int, budget: int) -> str:
    return f"{format_size(used) if used else '-'} / {format_size(budget)}"


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
