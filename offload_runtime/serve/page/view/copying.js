// Copying, also where the browser has no clipboard for pages: it has one only over https and on this machine.

import { button, element } from "../dom.js";
import { announce } from "./announcer.js";

const SHOWN_MS = 2000;

/** A button that copies what `text` returns, and says so for a while. */
export function copyButton(text, attributes = {}) {
  const made = button("Copy", async () => {
    const isCopied = await copy(text());
    made.textContent = isCopied ? "Copied" : "Not copied";
    announce(isCopied ? "Copied" : "The browser did not let the page copy");
    setTimeout(() => (made.textContent = "Copy"), SHOWN_MS);
  }, { class: "quiet", ...attributes });
  return made;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copySelected(text);
  }
}

function copySelected(text) {
  const area = element("textarea", { class: "visually-hidden", "aria-hidden": "true" });
  const focused = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return isCopied;
}
