// What a screen reader says: whole sentences of a reply as they come, not every few letters; and short notices.

import { byId, element } from "../dom.js";

const SENTENCES = /^[\s\S]*[.!?:;。！？\n](?=\s|$)/;
const FAR = 400; // letters without the end of a sentence
const MOST = 40; // sentences kept

/** Say a notice. */
export function announce(text) {
  const region = byId("announcements");
  region.append(element("p", {}, text));
  while (region.children.length > MOST) region.firstChild.remove();
}

/** Says a growing text, a sentence or more at a time. */
export class Speaker {
  constructor() {
    this.said = 0;
  }

  /** text: everything so far. isWhole: nothing more comes. */
  hear(text, isWhole = false) {
    const fresh = text.slice(this.said);
    const ready = isWhole || fresh.length > FAR ? fresh : (SENTENCES.exec(fresh)?.[0] ?? "");
    this.said += ready.length;
    if (ready.trim()) announce(ready.trim());
  }
}
