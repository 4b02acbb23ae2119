// The page as a whole: which conversation is shown, and which replies are being written.

import { byId, oncePerFrame } from "./dom.js";
import { MachinePanel } from "./machine/panel.js";
import { chats, keep, lastOpen, onOtherTabs, open, remember } from "./store/chats.js";
import { apiMessages, Conversation } from "./store/conversation.js";
import { settings } from "./store/settings.js";
import { get } from "./talk/api.js";
import { BeforeWords } from "./talk/before_words.js";
import { asFailure } from "./talk/failure.js";
import { Writing } from "./talk/writing.js";
import { announce, Speaker } from "./view/announcer.js";
import { chatsDialog } from "./view/chats_dialog.js";
import { Composer } from "./view/composer.js";
import { keyDialog } from "./view/key_dialog.js";
import { settingsDialog, showDefaults } from "./view/settings_dialog.js";
import { panelSwitch, tintSwitch } from "./view/switches.js";
import { Thread } from "./view/thread.js";

const KEPT_EVERY_MS = 1000;
const ENDED = { length: "The reply was cut off.", stopped: "Stopped.", error: "The reply failed." };

export class Page {
  constructor() {
    this.conversation = lastOpen();
    this.running = new Map(); // conversation id → {conversation, writing}: a reply goes on while another chat is shown
    this.model = null;
    this.panel = new MachinePanel();
    this.draw = oncePerFrame(() => this.drawNow());
    this.thread = new Thread({
      again: (message) => this.writeAgain(message),
      edit: (message, text) => this.send(text, message.parent),
      version: (message) => this.showVersion(message),
    });
    this.composer = new Composer({
      onSend: (text) => this.send(text, this.conversation.leaf),
      onStop: () => this.stop(),
    });
    this.askForKey = keyDialog(() => this.onKey());
  }

  start() {
    settingsDialog();
    panelSwitch();
    tintSwitch((isTinted) => {
      this.thread.isTinted = isTinted;
      this.draw();
    });
    chatsDialog({
      current: () => this.conversation,
      onOpen: (conversation) => this.show(this.running.get(conversation.id)?.conversation ?? conversation),
      onDelete: ({ id }) => this.deleted(id),
    });
    byId("new-chat").addEventListener("click", () => this.show(new Conversation()));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.stop();
    });
    addEventListener("pagehide", () => this.leave());
    setInterval(() => this.keepRunning(), KEPT_EVERY_MS);
    onOtherTabs((id) => this.changedElsewhere(id));
    this.show(this.conversation);
    this.meetServer();
  }

  /** Learn what the server runs; what it does not tell is left out. */
  async meetServer() {
    const state = byId("server-state");
    try {
      this.model = (await get("/v1/models")).data?.[0]?.id ?? null;
      byId("model").textContent = this.model ?? "";
      state.textContent = "";
    } catch (error) {
      this.failed(asFailure(error));
      state.textContent = asFailure(error).message;
      return;
    }
    const plan = await get("/v1/sequoia/plan").catch(() => null);
    this.panel.showPlan(plan);
    showDefaults(plan?.sampling ?? {});
  }

  failed({ status, message }) {
    byId("open-key").hidden &&= status !== 401;
    if (status === 401) this.askForKey(message);
  }

  onKey() {
    this.meetServer();
    const last = this.conversation.path().at(-1);
    if (last?.finish === "error" && !last.text) this.writeAgain(last);
    else this.composer.focus();
  }

  // Conversations

  show(conversation) {
    this.conversation = conversation;
    remember(conversation);
    this.thread.follows = true;
    this.panel.begin(this.lastStats(), this.running.has(conversation.id));
    this.drawNow();
    this.composer.focus();
  }

  lastStats() {
    return this.conversation.path().findLast((message) => message.stats)?.stats ?? null;
  }

  showVersion(message) {
    this.conversation.show(message);
    this.keep(this.conversation);
    this.drawNow();
  }

  deleted(id) {
    this.running.get(id)?.writing.stop();
    this.running.delete(id);
    if (id === this.conversation.id) this.show(chats()[0] ?? new Conversation());
  }

  /**
   * Another tab has kept or deleted a conversation. Tabs read the store a little late, so that one may write over what
   * another has just kept: whoever misses messages of its own keeps them again.
   */
  changedElsewhere(id) {
    const kept = open(id);
    if (!kept) return; // deleted there: it stays here until this tab leaves it
    this.running.get(id)?.conversation.merge(kept);
    if (id !== this.conversation.id) return;
    if (!this.running.has(id)) this.takeOver(kept);
    this.draw();
  }

  takeOver(kept) {
    const { leaf, messages } = this.conversation;
    const isMissing = Object.values(messages).some((message) => kept.lacks(message));
    const goesOn = kept.path().some((message) => message.id === leaf);
    kept.merge(this.conversation);
    if (!goesOn) kept.leaf = leaf;
    this.conversation = kept;
    if (isMissing) this.keep(kept);
  }

  keep(conversation) {
    const isKept = keep(conversation);
    byId("store-full").hidden = isKept;
  }

  leave() {
    for (const { writing } of this.running.values()) writing.leave();
    this.keepRunning();
  }

  keepRunning() {
    for (const { conversation } of this.running.values()) this.keep(conversation);
  }

  // Replies

  send(text, parent) {
    this.stop();
    const message = this.conversation.add(parent, "user", text);
    this.write(this.conversation.add(message.id, "assistant", "", { finish: null }));
    this.thread.scrollToEnd();
    this.composer.focus();
  }

  /** A reply in the place of another; of one that failed before its first word nothing is kept. */
  writeAgain(message) {
    this.stop();
    if (message.text) this.write(this.conversation.add(message.parent, "assistant", "", { finish: null }));
    else {
      for (const name of ["error", "reasoning", "stats", "marks", "usage"]) delete message[name];
      Object.assign(message, { finish: null, changed: Date.now() });
      this.write(message);
    }
    this.composer.focus();
  }

  stop() {
    this.running.get(this.conversation.id)?.writing.stop();
  }

  async write(message) {
    const { conversation } = this;
    const speaker = new Speaker();
    const isShown = () => this.conversation === conversation && this.running.get(conversation.id)?.writing === writing;
    const before = new BeforeWords((words) => {
      writing.status = words;
      this.draw();
    });
    const writing = new Writing(message, {
      onStep: (step) => {
        if (!step.tokens) before.hasRead(step.read_tokens ?? 0);
        if (isShown()) this.panel.step(step, message.stats);
      },
      onChange: () => {
        if (message.text || message.reasoning || message.finish) before.stop();
        if (!isShown()) return;
        speaker.hear(message.text);
        this.draw();
      },
    });
    this.running.set(conversation.id, { conversation, writing });
    this.keep(conversation);
    this.panel.begin(null, true);
    this.drawNow();
    await writing.run(this.request(conversation.path().slice(0, -1)));
    if (isShown()) {
      speaker.hear(message.text, true);
      announce(ENDED[message.finish] ?? "Reply complete.");
      this.panel.end();
    }
    if (this.running.get(conversation.id)?.writing === writing) this.running.delete(conversation.id);
    this.keep(conversation);
    if (writing.failure) this.failed(writing.failure);
    this.drawNow();
  }

  request(path) {
    const { system, ...sampling } = settings();
    return {
      ...(this.model && { model: this.model }),
      messages: apiMessages(path, system),
      stream: true,
      stream_options: { include_usage: true },
      sequoia: { steps: true },
      ...sampling,
    };
  }

  drawNow() {
    const running = this.running.get(this.conversation.id);
    this.thread.draw(this.conversation, running?.writing ?? null);
    this.composer.show(Boolean(running));
    document.title = `${running ? "… " : ""}${this.conversation.title} · sequoia`;
  }
}
