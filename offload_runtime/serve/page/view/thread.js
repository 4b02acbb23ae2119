// The messages of the shown conversation, in one list that stays at its end while it grows, unless one has scrolled up.

import { byId } from "../dom.js";
import { MessageView } from "./message.js";

const NEAR_END = 48; // pixels

export class Thread {
  constructor(handlers) {
    Object.assign(this, { handlers, views: new Map(), isTinted: false });
    this.list = byId("thread");
    this.scroller = byId("scroller");
    this.toEnd = byId("to-end");
    this.follows = true;
    this.scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.toEnd.addEventListener("click", () => this.scrollToEnd());
    new ResizeObserver(() => this.stay()).observe(this.list);
  }

  /** Show a conversation; writing: what is being written in it (../talk/writing.js), or null. */
  draw(conversation, writing) {
    const path = conversation.path();
    const shown = new Set(path.map(({ id }) => id));
    for (const [id, view] of this.views) if (!shown.has(id)) this.drop(id, view);
    const children = conversation.children();
    for (const [index, message] of path.entries()) {
      const view = this.place(message, index);
      const versions = children.get(message.parent).filter(({ role }) => role === message.role);
      const status = message.id === writing?.message.id ? writing.status : null;
      view.draw({ versions, status, isTinted: this.isTinted });
    }
    byId("welcome").hidden = path.length > 0;
    this.stay();
  }

  drop(id, view) {
    view.node.remove();
    this.views.delete(id);
  }

  /** The view of a message, at its place in the list. */
  place(message, index) {
    let view = this.views.get(message.id);
    if (!view) {
      view = new MessageView(message, this.handlers);
      this.views.set(message.id, view);
    }
    view.message = message; // another object where another tab has kept it
    if (this.list.children[index] !== view.node) this.list.insertBefore(view.node, this.list.children[index] ?? null);
    return view;
  }

  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.follows = scrollHeight - scrollTop - clientHeight < NEAR_END;
    this.toEnd.hidden = this.follows;
  }

  stay() {
    if (this.follows) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.scrolled();
  }

  scrollToEnd() {
    this.follows = true;
    this.stay();
    this.scrolled();
  }
}
