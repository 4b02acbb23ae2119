// What happens before the first word of a reply: it waits for a place, then its prompt is read. Both may take minutes.

import { get } from "./api.js";

const FIRST_MS = 800; // most replies begin before anything has to be said
const EVERY_MS = 1000;

export class BeforeWords {
  /** tell(words) is called every second, until `stop`. */
  constructor(tell) {
    Object.assign(this, { tell, read: 0, isOver: false });
    this.timer = setTimeout(() => this.look(), FIRST_MS);
  }

  /** A pass that has only read: so many tokens of the prompt. */
  hasRead(tokens) {
    this.read += tokens;
  }

  stop() {
    this.isOver = true;
    clearTimeout(this.timer);
  }

  async look() {
    const activity = await get("/v1/sequoia/activity").catch(() => null);
    if (this.isOver) return;
    this.tell(words(activity, this.read));
    this.timer = setTimeout(() => this.look(), EVERY_MS);
  }
}

function words(activity, read) {
  const { running, waiting, pass } = activity ?? {};
  if (!read && waiting > 0) return `Waiting for a place: ${texts(running)} being written, ${waiting} waiting`;
  const parts = [read ? `Reading the prompt: ${read} tokens so far` : "Reading the prompt"];
  if (pass?.passes > 1) parts.push(`${Math.floor(100 * pass.share)} % of ${pass.passes} passes`);
  else if (pass) parts.push(`layer ${Math.max(1, pass.layers_begun)} of ${pass.layers}`);
  if (pass?.seconds_left) parts.push(`${duration(pass.seconds_left)} left`);
  return parts.join(" · ");
}

function texts(count) {
  return count === 1 ? "one text is" : `${count} texts are`;
}

function duration(seconds) {
  return seconds < 99.5 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;
}
