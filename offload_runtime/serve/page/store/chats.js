// All conversations, each under its own key, so that tabs with different ones do not disturb each other.

import { Conversation } from "./conversation.js";
import { forget, keys, read, write } from "./stored.js";

const PREFIX = "sequoia.chat.";
const OPEN = "sequoia.open"; // of this tab

/** The conversation that this tab showed last, else the newest, else a new one. */
export function lastOpen() {
  return open(read(OPEN, sessionStorage)) ?? chats()[0] ?? new Conversation();
}

/** Note that this tab shows a conversation. */
export function remember(conversation) {
  write(OPEN, conversation.id, sessionStorage);
}

/** A kept conversation by its id; null if there is none. */
export function open(id) {
  return typeof id === "string" ? Conversation.from(read(PREFIX + id)) : null;
}

/** All kept conversations, newest first. */
export function chats() {
  const found = keys(PREFIX).map((key) => Conversation.from(read(key)));
  return found.filter((conversation) => conversation !== null).sort((a, b) => b.at - a.at);
}

/** Keep a conversation, with what another tab added to it; whether the browser did. */
export function keep(conversation) {
  if (!Object.keys(conversation.messages).length) return true;
  const kept = open(conversation.id);
  if (kept) conversation.merge(kept);
  const { id, messages, leaf, at } = conversation;
  return write(PREFIX + id, { id, messages, leaf, at });
}

/** Delete a conversation. */
export function remove(conversation) {
  forget(PREFIX + conversation.id);
}

/** Call `changed` with the id of each conversation that another tab keeps or deletes. */
export function onOtherTabs(changed) {
  addEventListener("storage", ({ key }) => {
    if (key?.startsWith(PREFIX)) changed(key.slice(PREFIX.length));
  });
}
