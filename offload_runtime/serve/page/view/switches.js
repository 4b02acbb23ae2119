// The switches that stay as they were left: the panel beside the chat, and tinted tokens.

import { byId } from "../dom.js";
import { read, write } from "../store/stored.js";

const PANEL = "sequoia.panel";
const TINT = "sequoia.tint";
const WIDE = "(min-width: 60rem)";

/** The button that shows and hides the panel. It is there at first where there is room beside the chat. */
export function panelSwitch() {
  const [toggle, panel] = [byId("toggle-machine"), byId("machine")];
  const isWide = matchMedia(WIDE);
  const set = (isOpen) => {
    panel.hidden = !isOpen;
    toggle.setAttribute("aria-expanded", isOpen);
  };
  set(isWide.matches && read(PANEL) !== false);
  toggle.addEventListener("click", () => {
    set(panel.hidden);
    if (isWide.matches) write(PANEL, !panel.hidden);
  });
  isWide.addEventListener("change", () => set(isWide.matches && read(PANEL) !== false));
  const close = () => {
    set(false);
    toggle.focus();
  };
  byId("close-machine").addEventListener("click", close);
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !isWide.matches) close();
  });
}

/** The box that tints tokens by depth. */
export function tintSwitch(onChange) {
  const box = byId("tint");
  box.checked = read(TINT) === true;
  const changed = () => {
    write(TINT, box.checked);
    byId("legend").hidden = !box.checked;
    onChange(box.checked);
  };
  box.addEventListener("change", changed);
  changed();
}
