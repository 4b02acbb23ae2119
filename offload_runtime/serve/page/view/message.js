// One message on the page.

import { button, element } from "../dom.js";
import { TintedText } from "../machine/tint.js";
import { statsLine } from "../machine/stats.js";
import { renderInto } from "../text/render.js";
import { visible } from "../text/visible.js";
import { copyButton } from "./copying.js";
import { editor } from "./editor.js";

const ENDS = {
  length: "Cut off at the most tokens allowed (see Settings) or at the end of the context.",
  stopped: "Stopped.",
  interrupted: "Interrupted by the server.",
  content_filter: "Cut off by the server.",
};

const UNFINISHED = "Not complete: the page was closed while this was written, or another tab is writing it.";

export class MessageView {
  /** handlers: edit(message, text), again(message), version(message) and signIn(). */
  constructor(message, handlers) {
    Object.assign(this, { message, handlers, shown: null });
    const isUser = message.role === "user";
    this.text = element("div", { class: "text" });
    this.thoughts = element("div", { class: "text thoughts-text" });
    this.summary = element("summary");
    this.thinking = element("details", { class: "thoughts", hidden: true }, this.summary, this.thoughts);
    this.thinking.addEventListener("toggle", () => this.drawThoughts());
    this.error = element("p", { class: "error", role: "alert", hidden: true });
    this.note = element("p", { class: "note" });
    this.versions = element("span", { class: "versions" });
    this.copy = copyButton(() => this.message.text);
    this.edit = isUser ? button("Edit", () => this.startEditing(), { class: "quiet" }) : null;
    this.again = isUser ? null : button("Write again", () => handlers.again(this.message), { class: "quiet" });
    this.actions = element("div", { class: "actions" }, this.versions, this.copy, this.edit, this.again);
    this.node = element(
      "li",
      { class: `message ${message.role}` },
      element("h2", { class: "visually-hidden" }, isUser ? "You" : "Reply"),
      this.thinking,
      this.text,
      this.error,
      this.note,
      this.actions,
    );
  }

  /** Draw what has changed. versions: all in this one's place. status: of one that is being written, null of others. */
  draw({ versions, status, isTinted }) {
    const { message } = this;
    const isWriting = status !== null;
    this.node.classList.toggle("writing", isWriting);
    this.drawText(isTinted);
    this.drawThoughts();
    this.drawError(message.error);
    const isSilent = !message.text && !message.reasoning;
    this.note.textContent = !isWriting ? notes(message).join(" ") : isSilent ? status : "";
    this.actions.hidden = isWriting;
    this.copy.hidden = !message.text;
    this.drawVersions(versions);
  }

  drawError(error) {
    if (this.told === error) return;
    this.told = error;
    this.error.hidden = !error;
    this.error.replaceChildren(...visible(error ?? ""));
  }

  drawText(isTinted) {
    const { message } = this;
    const wanted = message.role === "user" ? "plain" : isTinted && message.marks?.length ? "tokens" : "markdown";
    if (this.shown === wanted && this.drawn === message.text) return;
    if (this.shown !== wanted) this.begin(wanted);
    if (wanted === "tokens") this.tinted.draw(message.text, message.marks);
    else if (wanted === "plain") this.text.replaceChildren(element("p", { dir: "auto" }, ...visible(message.text)));
    else renderInto(this.text, message.text);
    [this.shown, this.drawn] = [wanted, message.text];
  }

  /** An empty element, for text that is shown another way from here on. */
  begin(wanted) {
    const fresh = element("div", { class: `text ${wanted}` });
    this.text.replaceWith(fresh);
    this.text = fresh;
    this.tinted = wanted === "tokens" ? new TintedText(fresh) : null;
  }

  drawThoughts() {
    const { reasoning, text, finish } = this.message;
    this.thinking.hidden = !reasoning;
    if (!reasoning) return;
    const label = text || finish ? "Reasoning" : "Reasoning…";
    if (this.summary.textContent !== label) this.summary.textContent = label;
    if (this.thinking.open) renderInto(this.thoughts, reasoning);
  }

  drawVersions(versions) {
    const place = versions.indexOf(this.message);
    const state = `${place}/${versions.length}`;
    if (this.state === state) return;
    this.state = state;
    const step = (label, name, by) =>
      button(label, () => this.handlers.version(versions[place + by]), {
        class: "quiet", "aria-label": name, disabled: !versions[place + by],
      });
    const count = element("span", {}, `${place + 1}/${versions.length}`);
    const nodes = [step("‹", "Earlier version", -1), count, step("›", "Later version", 1)];
    this.versions.replaceChildren(...(versions.length > 1 ? nodes : []));
  }

  startEditing() {
    const form = editor(this.message.text, {
      send: (text) => this.handlers.edit(this.message, text),
      close: () => {
        form.replaceWith(this.text);
        this.actions.hidden = false;
        this.edit.focus();
      },
    });
    this.text.replaceWith(form);
    this.actions.hidden = true;
    form.querySelector("textarea").focus();
  }
}

/** What is said below a message that is not being written. */
function notes({ role, finish, stats, usage }) {
  const end = role === "assistant" && !finish ? UNFINISHED : ENDS[finish];
  const figures = stats?.tokens ? statsLine(stats) : null;
  const cached = usage?.cached ? `, ${usage.cached} of them cached` : "";
  const prompt = usage?.prompt ? `prompt ${usage.prompt} tokens${cached}` : null;
  return [end, [figures, prompt].filter(Boolean).join(" · ")].filter(Boolean);
}
