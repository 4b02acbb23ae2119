// The dialog for the sampling settings. Values are kept as they are typed; one that makes no sense is not.

import { byId } from "../dom.js";
import { complaint, keepSettings, NUMBERS, settings } from "../store/settings.js";

/** Make the dialog work; its button opens it. */
export function settingsDialog() {
  const dialog = byId("settings");
  const system = byId("set-system");
  const fields = Object.keys(NUMBERS).map((name) => [name, byId(`set-${name}`)]);
  const fill = () => {
    const now = settings();
    system.value = now.system;
    for (const [name, field] of fields) field.value = now[name] ?? "";
    keep();
  };
  const keep = () => {
    const values = { system: system.value };
    for (const [name, field] of fields) {
      const value = field.validity.badInput ? Number.NaN : Number(field.value);
      const isEmpty = !field.value && !field.validity.badInput;
      const wrong = isEmpty ? null : complaint(name, value);
      field.setAttribute("aria-invalid", Boolean(wrong));
      byId(`wrong-${name}`).textContent = wrong ?? "";
      if (!isEmpty && !wrong) values[name] = value;
    }
    keepSettings(values);
  };
  dialog.addEventListener("input", keep);
  byId("reset-settings").addEventListener("click", () => {
    keepSettings({ system: system.value });
    fill();
  });
  opens(byId("open-settings"), dialog, fill);
}

/** Show the values that the model has for what is left empty. */
export function showDefaults(values) {
  for (const name of Object.keys(NUMBERS)) {
    byId(`set-${name}`).placeholder = Number.isFinite(values[name]) ? String(Number(values[name].toFixed(4))) : "";
  }
}

/** Let a button open a dialog, after `prepare`, and what is marked with data-close close it. */
export function opens(opener, dialog, prepare) {
  opener.addEventListener("click", () => {
    prepare();
    dialog.showModal();
  });
  for (const closer of dialog.querySelectorAll("[data-close]")) closer.addEventListener("click", () => dialog.close());
}
