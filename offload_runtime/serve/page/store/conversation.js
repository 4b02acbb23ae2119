// A conversation is a tree of messages: editing one, or writing a reply again, adds a sibling. Nothing is ever lost.
//
// A message: {id, parent, role: "user" | "assistant", text, at, changed}, times in ms since 1970; of a reply also
// reasoning, finish ("stop", "length", "stopped", "error"; null while it is written), error, usage, marks
// (../machine/tint.js) and stats (../machine/stats.js).

const TITLE_LETTERS = 60;

export class Conversation {
  constructor({ id = newId(), messages = {}, leaf = null, at = Date.now() } = {}) {
    Object.assign(this, { id, messages, leaf, at });
  }

  /** The conversation that was kept as `value`, without what does not fit together; null if it is none. */
  static from(value) {
    if (typeof value?.id !== "string" || typeof value.messages !== "object" || value.messages === null) return null;
    const whole = Object.entries(value.messages).filter(([id, message]) => fits(id, message));
    const messages = Object.fromEntries(whole.map(([id, message]) => [id, cleaned(message)]));
    const { leaf } = value;
    const conversation = new Conversation({ id: value.id, messages, at: Number(value.at) || 0 });
    conversation.leaf = leaf in messages ? leaf : (conversation.newestLeaf(null)?.id ?? null);
    return conversation;
  }

  /** The messages on the way to the shown leaf. */
  path() {
    const path = [];
    const seen = new Set();
    for (let at = this.messages[this.leaf]; at && !seen.has(at.id); at = this.messages[at.parent]) {
      seen.add(at.id);
      path.push(at);
    }
    return path.reverse();
  }

  /** Append a message after `parent` (an id, or null) and show it. */
  add(parent, role, text, more = {}) {
    const now = Date.now();
    const message = { id: newId(), parent, role, text, at: now, changed: now, ...more };
    this.messages[message.id] = message;
    this.leaf = message.id;
    this.at = message.at;
    return message;
  }

  /** The messages after each one, by its id, oldest first; those that begin the conversation are under null. */
  children() {
    const found = new Map();
    for (const message of Object.values(this.messages)) {
      const siblings = found.get(message.parent);
      if (siblings) siblings.push(message);
      else found.set(message.parent, [message]);
    }
    for (const siblings of found.values()) siblings.sort((a, b) => a.at - b.at || (a.id < b.id ? -1 : 1));
    return found;
  }

  /** Show a message, with the newest of what follows it. */
  show(message) {
    this.leaf = this.newestLeaf(message.id)?.id ?? message.id;
  }

  newestLeaf(from) {
    const children = this.children();
    const seen = new Set([from]);
    let newest = this.messages[from] ?? null;
    for (let next = children.get(from)?.at(-1); next && !seen.has(next.id); next = children.get(next.id)?.at(-1)) {
      seen.add(next.id);
      newest = next;
    }
    return newest;
  }

  /** Take over messages that only `other` has, such as those of another tab, and its later states of the same. */
  merge(other) {
    for (const [id, message] of Object.entries(other.messages)) {
      if (this.lacks(message)) this.messages[id] = message;
    }
  }

  /** Whether a message of another state of this conversation is not here, or only as it was earlier. */
  lacks({ id, changed }) {
    return !(id in this.messages) || this.messages[id].changed < changed;
  }

  get title() {
    const first = this.path().find((message) => message.role === "user");
    const line = first?.text.trim().split("\n")[0] ?? "";
    return [...line].length > TITLE_LETTERS ? `${[...line].slice(0, TITLE_LETTERS).join("")}…` : line || "New chat";
  }
}

/** What the API is sent: the path up to a reply, without replies that failed before their first word. */
export function apiMessages(path, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const { role, text, reasoning } of path) {
    if (role === "assistant" && !text) continue;
    const last = messages.at(-1);
    if (last?.role === role) last.content += `\n\n${text}`; // templates want roles in turn
    else messages.push({ role, content: text, ...(reasoning && { reasoning_content: reasoning }) });
  }
  return messages;
}

function fits(id, message) {
  const isMessage = typeof message === "object" && message !== null && message.id === id;
  return isMessage && typeof message.text === "string" && ["user", "assistant"].includes(message.role);
}

/** A message without fields that are not what they should be: other programs may write to the store. */
function cleaned(message) {
  const { id, parent = null, role, text, at, changed, reasoning, finish, error, marks, stats, usage } = message;
  const areMarks = Array.isArray(marks) && marks.every((mark) => Array.isArray(mark) && mark.every(Number.isFinite));
  return {
    ...{ id, parent, role, text, at: Number(at) || 0, changed: Number(changed) || 0 },
    finish: typeof finish === "string" ? finish : null,
    ...(typeof reasoning === "string" && { reasoning }),
    ...(typeof error === "string" && { error }),
    ...(areMarks && { marks }),
    ...(areNumbers(stats, ["tokens", "passes", "seconds", "bytes"]) && { stats }),
    ...(areNumbers(usage, ["prompt", "cached"]) && { usage }),
  };
}

function areNumbers(value, names) {
  return typeof value === "object" && value !== null && names.every((name) => Number.isFinite(value[name]));
}

/** Random; crypto.randomUUID is not there over plain http. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
