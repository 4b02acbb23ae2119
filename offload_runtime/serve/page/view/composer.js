// The box in which one writes. What is in it survives a reload.

import { byId } from "../dom.js";
import { read, write } from "../store/stored.js";
import { growing, onSubmit } from "./editor.js";

const DRAFT = "sequoia.draft"; // of this tab

export class Composer {
  /** onSend(text) and onStop(). */
  constructor({ onSend, onStop }) {
    this.area = byId("message");
    this.isWriting = false;
    this.area.value = read(DRAFT, sessionStorage) ?? "";
    this.grow = growing(this.area);
    this.area.addEventListener("input", () => write(DRAFT, this.area.value, sessionStorage));
    onSubmit(byId("composer"), this.area, () => {
      const text = this.area.value;
      if (this.isWriting || !text.trim()) return;
      this.set("");
      onSend(text);
    });
    byId("stop").addEventListener("click", onStop);
  }

  set(text) {
    this.area.value = text;
    write(DRAFT, text, sessionStorage);
    this.grow();
  }

  /** Stop is there while a reply is written, Send otherwise; the keyboard stays where it was. */
  show(isWriting) {
    if (isWriting === this.isWriting) return;
    this.isWriting = isWriting;
    const [send, stop] = [byId("send"), byId("stop")];
    const isFocused = [send, stop].includes(document.activeElement);
    send.hidden = isWriting;
    stop.hidden = !isWriting;
    if (isFocused) (isWriting ? stop : this.area).focus();
  }

  focus() {
    this.area.focus();
  }
}
