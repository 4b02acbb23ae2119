// Tokens of each of the last passes, as bars: accepted ones, and the token that every pass yields above them.

import { svg } from "../dom.js";

const WIDTH = 320;
const HEIGHT = 56;
const MOST = 64; // bars
const GAP = 1;

/** Bars for passes [{accepted, tokens}], `chosen` (an index) marked; null without any. */
export function drawPasses(passes, chosen) {
  if (!passes.length) return null;
  const first = Math.max(0, Math.min(chosen - MOST / 2, passes.length - MOST));
  const shown = passes.slice(first, first + MOST);
  const width = WIDTH / Math.max(shown.length, 16);
  const most = shown.reduce((largest, { tokens }) => Math.max(largest, tokens), 2);
  const unit = (HEIGHT - 6) / most;
  const bars = (name, from, to) =>
    svg("path", {
      class: name,
      d: shown.map((pass, index) => bar(index * width, width - GAP, from(pass) * unit, to(pass) * unit)).join(""),
    });
  const mark = (chosen - first) * width;
  const label = `Tokens of the last ${shown.length} passes, at most ${most} in one`;
  return svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
    svg("rect", { class: "chosen", x: mark - GAP / 2, y: 0, width, height: HEIGHT }),
    bars("bar accepted", () => 0, ({ accepted, tokens }) => Math.min(accepted, tokens)),
    bars("bar bonus", ({ accepted, tokens }) => Math.min(accepted, tokens), ({ tokens }) => tokens),
  );
}

function bar(x, width, from, to) {
  const [left, across, bottom, top] = [x, width, HEIGHT - from, HEIGHT - to].map((value) => value.toFixed(1));
  return to > from ? `M${left} ${bottom}V${top}h${across}V${bottom}z` : "";
}
