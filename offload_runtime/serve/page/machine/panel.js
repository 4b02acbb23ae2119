// The panel beside the chat: what the machine does while it writes.

import { byId, element, oncePerFrame } from "../dom.js";
import { drawPasses } from "./passes.js";
import { isPlan, planNodes } from "./plan.js";
import { formatSize } from "./sizes.js";
import { linkShare, short, speed, tokensPerPass } from "./stats.js";
import { drawTree } from "./tree.js";

const MOST_KEPT = 2000; // passes whose trees can be looked at again
const TICK_MS = 250;
const WORTH_WATCHING = 0.8; // seconds: shorter passes need no progress bar

export class MachinePanel {
  constructor() {
    this.plan = null;
    this.draw = oncePerFrame(() => this.drawNow());
    this.slider = byId("pass-number");
    this.slider.addEventListener("input", () => {
      this.chosen = Number(this.slider.value);
      this.draw();
    });
    this.begin(null);
  }

  /** Show the server's plan; one that is none, or null, is said to be missing. */
  showPlan(plan) {
    this.plan = isPlan(plan) ? plan : null;
    const nodes = this.plan ? planNodes(plan) : [element("p", {}, "The server tells no plan.")];
    byId("plan").replaceChildren(...nodes);
    this.draw();
  }

  /** A reply begins, or an old one is looked at: its stats, or null. */
  begin(stats, isWriting = false) {
    this.stats = stats;
    this.passes = [];
    this.chosen = null; // the last one
    this.since = isWriting ? performance.now() : null;
    clearInterval(this.timer);
    if (isWriting) this.timer = setInterval(() => this.drawProgress(), TICK_MS);
    this.draw();
  }

  /** A pass is done. */
  step(step, stats) {
    this.stats = stats;
    this.since = performance.now();
    if (step.tokens) this.passes.push(step);
    if (this.passes.length > MOST_KEPT) this.passes.shift();
    this.draw();
  }

  /** The reply is complete. */
  end() {
    clearInterval(this.timer);
    this.since = null;
    this.draw();
  }

  drawNow() {
    this.drawFigures();
    this.drawProgress();
    const last = this.passes.length - 1;
    const chosen = Math.min(this.chosen ?? last, last);
    byId("passes").replaceChildren(...[drawPasses(this.passes, chosen)].filter(Boolean));
    byId("passes-part").hidden = last < 0;
    this.slider.max = Math.max(0, last);
    this.slider.value = Math.max(0, chosen);
    if (chosen === last) this.chosen = null; // follow
    this.drawPass(this.passes[chosen], chosen);
  }

  drawPass(pass, index) {
    const drawing = pass && drawTree(pass.tree);
    byId("tree").replaceChildren(...(drawing ? [drawing] : []));
    const counts = `${pass?.drafted} drafted tokens, ${pass?.accepted} accepted.`;
    byId("tree-words").textContent = pass
      ? `Pass ${index + 1}: ${drawing ? drawing.getAttribute("aria-label") : counts}`
      : "The tree of each pass is drawn here while a reply is written.";
  }

  drawFigures() {
    const { stats, plan } = this;
    const rate = stats && speed(stats);
    const perPass = stats && tokensPerPass(stats);
    byId("speed").textContent = rate ? short(rate) : "–";
    byId("per-pass").textContent = perPass ? perPass.toFixed(1) : "–";
    const share = stats && linkShare(stats, plan?.link_bandwidth);
    byId("link-meter").value = share ?? 0;
    byId("link-meter").hidden = isResident(plan);
    byId("link").textContent = linkWords(stats, plan, share);
  }

  drawProgress() {
    const expected = this.stats?.last ?? this.plan?.seconds_per_pass ?? 0;
    const elapsed = this.since === null ? 0 : (performance.now() - this.since) / 1000;
    const isWorth = this.since !== null && Math.max(expected, elapsed) > WORTH_WATCHING;
    byId("pass-progress").hidden = !isWorth;
    if (!isWorth) return;
    const bar = byId("pass-bar");
    if (expected) bar.value = Math.min(1, elapsed / expected);
    else bar.removeAttribute("value");
    const of = expected ? ` of about ${short(expected)} s` : " s";
    byId("pass-words").textContent = `This pass has run for ${elapsed.toFixed(1)}${of}`;
  }
}

function isResident(plan) {
  return plan !== null && !plan.streamed_bytes;
}

function linkWords(stats, plan, share) {
  if (isResident(plan)) return "not used, all in memory";
  if (!stats?.bytes || !stats.seconds) return "–";
  const rate = `${formatSize(stats.bytes / stats.seconds)}/s`;
  return share === null ? rate : `${(100 * share).toFixed(0)} % · ${rate}`;
}
