// The dialog that asks for the API key, where the server wants one.

import { byId } from "../dom.js";
import { useKey } from "../talk/api.js";
import { opens } from "./settings_dialog.js";

/** Make the dialog work: returns what shows it, with the server's words; onKey() is called once a key was given. */
export function keyDialog(onKey) {
  const dialog = byId("key");
  const field = byId("key-field");
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!field.value.trim()) return;
    useKey(field.value.trim());
    field.value = "";
    dialog.close();
    onKey();
  });
  const show = (words) => {
    byId("key-words").textContent = words;
    if (!dialog.open) dialog.showModal();
  };
  opens(byId("open-key"), dialog, () => {});
  return show;
}
