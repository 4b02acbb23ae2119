// One reply while it is written.

import { addMark } from "../machine/tint.js";
import { addStep } from "../machine/stats.js";
import { chunks } from "./api.js";
import { asFailure } from "./failure.js";

export class Writing {
  /** message: where the reply goes. onStep(step) is told of every pass, onChange() of every change. */
  constructor(message, { onStep, onChange }) {
    Object.assign(this, { message, onStep, onChange, failure: null, isLeft: false });
    this.status = ""; // said before the first word
    this.aborter = new AbortController();
  }

  /** Stop; what is written stays. */
  stop() {
    this.aborter.abort();
  }

  /** The page is being left: that the connection breaks is no failure, and the reply stays unfinished. */
  leave() {
    this.isLeft = true;
  }

  /** Send the request and take up the reply. Never throws: failures are in the message, and in `failure`. */
  async run(request) {
    const { message } = this;
    try {
      for await (const chunk of chunks(request, this.aborter.signal)) this.take(chunk);
      message.finish ??= "stop";
    } catch (error) {
      if (this.aborter.signal.aborted) message.finish = "stopped";
      else if (!this.isLeft) this.fail(asFailure(error));
    }
    this.changed();
  }

  fail(failure) {
    this.failure = failure;
    this.message.finish = "error";
    this.message.error = failure.message;
  }

  take({ choices, sequoia, usage }) {
    const { message } = this;
    const choice = choices?.[0];
    message.text += choice?.delta?.content ?? "";
    const thought = choice?.delta?.reasoning_content;
    if (thought) message.reasoning = (message.reasoning ?? "") + thought;
    if (sequoia) {
      message.stats = addStep(message.stats, sequoia);
      message.marks = addMark(message.marks, sequoia);
      this.onStep(sequoia);
    }
    if (usage) message.usage = { prompt: usage.prompt_tokens, cached: usage.prompt_tokens_details?.cached_tokens ?? 0 };
    if (choice?.finish_reason) message.finish = choice.finish_reason;
    this.changed();
  }

  changed() {
    this.message.changed = Date.now();
    this.onChange();
  }
}
