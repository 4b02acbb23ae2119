// Sums over the passes of one reply, as the server tells them.

/** The sums with one more pass. `stats` may be undefined before the first. */
export function addStep(stats, step) {
  const before = stats ?? { passes: 0, tokens: 0, seconds: 0, bytes: 0 };
  const seconds = number(step.draft_seconds) + number(step.target_seconds);
  const tokens = number(step.tokens);
  const after = {
    ...before,
    passes: before.passes + (tokens ? 1 : 0),
    tokens: before.tokens + tokens,
    seconds: before.seconds + seconds,
    bytes: before.bytes + number(step.streamed_bytes),
    last: seconds,
  };
  if (tokens && !before.first) after.first = { seconds: after.seconds, tokens };
  return after;
}

/** Tokens per second, after the first pass where there are more: that one reads the prompt, too. */
export function speed({ tokens, seconds, first }) {
  const later = first && tokens > first.tokens && seconds > first.seconds;
  const [count, time] = later ? [tokens - first.tokens, seconds - first.seconds] : [tokens, seconds];
  return time > 0 ? count / time : null;
}

/** Tokens per pass, null before the first. */
export function tokensPerPass({ tokens, passes }) {
  return passes ? tokens / passes : null;
}

/** The part of the link's bandwidth (bytes a second) that was used; null where nothing streams or it is not known. */
export function linkShare({ bytes, seconds }, bandwidth) {
  return bytes && seconds && bandwidth ? Math.min(1, bytes / seconds / bandwidth) : null;
}

/** One line below a reply. */
export function statsLine(stats) {
  const rate = speed(stats);
  const parts = [`${stats.tokens} token${stats.tokens === 1 ? "" : "s"}`];
  if (rate !== null) parts.push(`${short(rate)} tokens/s`);
  if (stats.passes) parts.push(`${tokensPerPass(stats).toFixed(1)} tokens a pass`);
  if (Number.isFinite(stats.first?.seconds)) parts.push(`first after ${short(stats.first.seconds)} s`);
  return parts.join(" · ");
}

/** Two digits for small numbers, whole ones for others: 0.053, 1.3, 27, 142. */
export function short(value) {
  return value >= 10 ? value.toFixed(0) : value >= 0.95 ? value.toFixed(1) : value ? value.toPrecision(2) : "0";
}

function number(value) {
  return Number.isFinite(value) && value > 0 ? value : 0;
}
