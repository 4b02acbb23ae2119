// The dialog that lists all kept conversations.

import { button, byId, element } from "../dom.js";
import { chats, remove } from "../store/chats.js";
import { visible } from "../text/visible.js";
import { opens } from "./settings_dialog.js";

/** Make the dialog work. onOpen(conversation) and onDelete(conversation) are told what was chosen. */
export function chatsDialog({ current, onOpen, onDelete }) {
  const dialog = byId("chats");
  const list = byId("chat-list");
  const fill = () => {
    const all = chats();
    list.replaceChildren(...all.map(row));
    byId("no-chats").hidden = all.length > 0;
  };
  const row = (conversation) => {
    const isCurrent = conversation.id === current().id;
    const choose = () => {
      dialog.close();
      onOpen(conversation);
    };
    const when = new Date(conversation.at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const name = element("span", { class: "title", dir: "auto" }, ...visible(conversation.title));
    const chosen = button("", choose, { class: "chat", "aria-current": isCurrent && "true" });
    chosen.append(name, element("span", { class: "when" }, when));
    return element("li", {}, chosen, deleting(conversation));
  };
  const deleting = (conversation) => {
    const asked = button("Delete", () => {
      if (asked.textContent === "Delete") {
        asked.textContent = "Delete for good?";
        return;
      }
      remove(conversation);
      onDelete(conversation);
      fill();
      dialog.querySelector("button").focus();
    }, { class: "quiet danger", "aria-description": conversation.title });
    asked.addEventListener("blur", () => (asked.textContent = "Delete"));
    return asked;
  };
  opens(byId("open-chats"), dialog, fill);
}
