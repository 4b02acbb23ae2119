"""One-line summaries: of a plan before it runs, of a reply while it is generated and afterwards."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from loaders.sizes import format_size
from scheduler.plan.plan import Plan, Tier

if TYPE_CHECKING:
    from offload_runtime.generation.reply import ReplyStats
    from offload_runtime.planning.planning import Preparation
    from offload_runtime.speculation.target import PassProgress


READ_WITHOUT_SAYING = 8  # tokens: a decoding step reads the few that the last one accepted
LEFT_AFTER = 2.0  # seconds: any earlier the time left is a guess


def start_notes(preparation: "Preparation") -> Iterator[str]:
    """What a command says before it loads."""
    plan, packing = preparation.plan, preparation.packing
    packed = str(packing) if packing else None
    chosen = packed, preparation.link_note, preparation.draft_note
    yield from filter(None, (plan_line(plan), plan.machine.note, *chosen, plan.slow_dequantizing))


def plan_line(plan: Plan) -> str:
    """What runs where, and how long a pass is predicted to take."""
    names = plan.model if plan.draft is None else f"{plan.model}, drafted by {plan.draft}"
    parts = [names, f"{plan.weight_form} on {plan.device_name}", _streaming(plan)]
    if plan.draft is not None:
        parts.append(f"trees of up to {plan.tree_size} token{'' if plan.tree_size == 1 else 's'}")
    parts.append(f"context {plan.context_length}")
    if plan.kv_bits:
        parts.append(f"KV rows in {plan.kv_bits} bits")
    return " · ".join([*parts, *([plan.not_read] if plan.not_read else [])])


def _streaming(plan: Plan) -> str:
    streamed = len(plan.tiers) - plan.tiers.count(Tier.DEVICE)
    if not streamed:
        return "all layers fit, nothing is streamed"
    least = f"{format_size(plan.token_bytes)} to " if plan.token_bytes < plan.streamed_bytes else ""
    what = f"{streamed} of {len(plan.tiers)} layers streamed ({least}{format_size(plan.streamed_bytes)} a pass)"
    return what if plan.seconds_per_pass is None else f"{what}, about {plan.seconds_per_pass:.2g} s a pass"


def activity_texts(progress: "PassProgress | None", stopping: bool = False) -> list[str]:
    """What the machine is doing, long form first, then shorter ones."""
    if progress is None:
        return ["drafting"] if not stopping else ["stopping"]
    layer = f"layer {max(1, progress.layers_begun)}/{progress.layers}"
    words = [layer]
    if progress.passes > 1:
        words = [f"{progress.share:.0%} of {progress.passes} passes"]
    left = [f"{duration(progress.seconds_left)} left"] if progress.seconds_left else []
    reading = [f"reading {progress.tokens:,} tokens"] if progress.tokens > READ_WITHOUT_SAYING else []
    what = ["stopping"] if stopping else reading
    lines = ([*what, *words, *left], [*words, *left], what and [*what, *left], left, words)
    return [" · ".join(line) for line in lines if line]


def loading_texts(stage: str, done_bytes: int, total_bytes: int, seconds: float) -> list[str]:
    """Progress of a stage after so many seconds, long form first, then shorter ones."""
    if not total_bytes:
        return [stage]
    share = f"{done_bytes / total_bytes:.0%}"
    known = done_bytes and seconds >= LEFT_AFTER
    left = [f"{duration(seconds * (total_bytes - done_bytes) / done_bytes)} left"] if known else []
    return [" · ".join([f"{stage} {share}", *left]), f"{stage} {share}", share]


def duration(seconds: float) -> str:
    """Seconds as people say them: "8 s", "12 min", "1 h 05 min"."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def reply_line(stats: "ReplyStats", plan: Plan, tokens_in_context: int) -> str:
    """Counts and speeds of one reply."""
    parts = []
    if stats.prompt_tokens_per_second:
        known = stats.prompt_tokens - stats.prompt_tokens_read
        read = f"{stats.prompt_tokens_read}{f' of {stats.prompt_tokens}' if known > 0 else ''}"
        parts.append(f"prompt {read} tokens, {_short(stats.prompt_tokens_per_second)} tok/s")
    speed = stats.reply_tokens_per_second or stats.tokens_per_second
    parts += [f"{stats.tokens} token{'' if stats.tokens == 1 else 's'}", f"{_short(speed)} tok/s"]
    if stats.seconds_to_first_token is not None:
        parts.append(f"first token {_short(stats.seconds_to_first_token)} s")
    parts.append(f"{stats.tokens_per_pass:.1f} tokens/pass{_predicted(stats)}")
    if stats.streamed_bytes:
        source = "disk" if Tier.DISK in plan.tiers else "link"
        parts.append(f"{source} {format_size(int(stats.link_bytes_per_second))}/s")
    return " · ".join([*parts, f"context {tokens_in_context}/{plan.context_length}"])


def _predicted(stats: "ReplyStats") -> str:
    """What was predicted when the trees were chosen, if that covers at least half of the passes."""
    if not stats.predicted_passes or 2 * stats.predicted_passes < stats.passes:
        return ""
    tokens, seconds = stats.predicted_tokens, stats.predicted_seconds
    return f" (predicted {tokens / stats.predicted_passes:.1f} at {_short(tokens / seconds)} tok/s)"


def _short(value: float) -> str:
    """Two digits for small numbers, whole ones for others: 0.053, 1.3, 27, 142."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"
