// Markdown within a paragraph, as a tree of plain objects: {type, text} or {type, children}. The time is linear in the
// text's length, whatever the text; what does not close stays as it was written.

import { webAddress } from "./links.js";

const DEEPEST = 16; // levels of nesting
const SPECIAL = /[\\`*_~[\]!<h&$]/g;
const ESCAPABLE = /[!"#$%&'*+,\-./:;<=>?@^_`{|}~\\\n]/; // not ( ) [ ]: with a backslash they begin and end formulas
const DESTINATION =
  /\(\s{0,9}<?([^\s<>()]{0,2000}(?:\([^\s<>()]{0,2000}\)[^\s<>()]{0,2000}){0,9})>?(?:\s{1,9}"[^"]{0,2000}")?\s{0,9}\)/y;
const ADDRESS = /https?:\/\/[^\s<>"`\\|]{1,2000}/y;
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": "\u00a0" };
const ENTITY = /&(?:amp|lt|gt|quot|#39|nbsp);/y;
const BREAK = /<br ?\/?>/iy;
const FORMULAS = { "\\(": "\\)", "\\[": "\\]", $$: "$$" };
const WORD = /[\p{L}\p{N}]/u;
const ASCII_WORD = /[A-Za-z0-9]/;

/** The tree of a paragraph's text. */
export function parseInline(text) {
  return new Scanner(text).run();
}

class Scanner {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.out = []; // nodes so far; an opener is of type "opener" until it is closed, and text in the end if it is not
    this.openers = []; // places in `out` of what may open emphasis
    this.open = { "*": 0, _: 0, "~": 0 }; // how many of each are in `openers`
    this.brackets = []; // places in `out` of what may open a link
    this.codeEnds = matchingRuns(text);
    this.missing = new Set(); // ends of formulas that do not come any more
  }

  run() {
    while (this.at < this.text.length) {
      SPECIAL.lastIndex = this.at;
      const next = SPECIAL.exec(this.text)?.index ?? this.text.length;
      this.take(next - this.at);
      if (this.at < this.text.length && !this.special(this.text[this.at])) this.take(1);
    }
    return settled(this.out);
  }

  /** Whether something begins or ends here, which is then in `out`. */
  special(character) {
    switch (character) {
      case "`":
        return this.code();
      case "\\":
        return this.formula() || this.escape();
      case "$":
        return this.formula();
      case "[":
        return this.bracket("[");
      case "!":
        return this.text[this.at + 1] === "[" && this.bracket("![");
      case "]":
        return this.link();
      case "&":
        return this.replaced(ENTITY, (found) => ENTITIES[found]);
      case "<":
        return this.replaced(BREAK, () => "\n") || this.address();
      case "h":
        return this.address();
      default:
        return this.emphasis(character);
    }
  }

  /** The next characters as they are. */
  take(count) {
    this.push(this.text.slice(this.at, this.at + count));
    this.at += count;
    return true;
  }

  push(text) {
    const last = this.out.at(-1);
    if (last?.type === "text") last.text += text;
    else if (text) this.out.push({ type: "text", text });
  }

  replaced(pattern, replacement) {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text)?.[0];
    if (!found) return false;
    this.push(replacement(found));
    this.at += found.length;
    return true;
  }

  code() {
    const length = runLength(this.text, this.at);
    const end = this.codeEnds.get(this.at);
    if (end === undefined) return this.take(length);
    const inside = this.text.slice(this.at + length, end).replaceAll("\n", " ");
    const padded = inside.startsWith(" ") && inside.endsWith(" ") && inside.trim();
    this.out.push({ type: "code", text: padded ? inside.slice(1, -1) : inside });
    this.at = end + length;
    return true;
  }

  formula() {
    const close = FORMULAS[this.text.slice(this.at, this.at + 2)];
    if (!close || this.missing.has(close)) return false;
    const end = this.text.indexOf(close, this.at + 2);
    if (end < 0) {
      this.missing.add(close);
      return false;
    }
    this.out.push({ type: "formula", text: this.text.slice(this.at, end + 2) });
    this.at = end + 2;
    return true;
  }

  escape() {
    const next = this.text[this.at + 1];
    if (!next || !ESCAPABLE.test(next)) return false;
    this.push(next);
    this.at += 2;
    return true;
  }

  address() {
    const pointed = this.text[this.at] === "<" ? 1 : 0;
    if (!pointed && WORD.test(this.text[this.at - 1] ?? "")) return false;
    ADDRESS.lastIndex = this.at + pointed;
    const found = ADDRESS.exec(this.text)?.[0];
    if (!found || (pointed && this.text[this.at + 1 + found.length] !== ">")) return false;
    const text = pointed ? found : withoutEnd(found);
    const url = webAddress(text);
    if (!url) return false;
    this.out.push({ type: "link", url, children: [{ type: "text", text }], depth: 1 });
    this.at += text.length + 2 * pointed;
    return true;
  }

  bracket(text) {
    this.brackets.push(this.out.length);
    this.out.push({ type: "opener", text, length: 0 });
    this.at += text.length;
    return true;
  }

  link() {
    const start = this.brackets.pop();
    if (start === undefined) return false;
    DESTINATION.lastIndex = this.at + 1;
    const found = DESTINATION.exec(this.text);
    const url = found && webAddress(found[1]);
    if (!url) return false;
    const type = this.out[start].text === "[" ? "link" : "image";
    const children = this.since(start);
    this.out.pop();
    this.out.push({ type, url, children, depth: 1 + deepest(children) });
    if (type === "link") this.brackets = []; // no link lies within another
    this.at += 1 + found[0].length;
    return true;
  }

  /** Take what follows an opener out of `out`; nothing in it opens anything any more. */
  since(start) {
    while (this.openers.at(-1) > start) this.open[this.out[this.openers.pop()].mark] -= 1;
    while (this.brackets.at(-1) > start) this.brackets.pop();
    return settled(this.out.splice(start + 1));
  }

  emphasis(mark) {
    let length = runLength(this.text, this.at);
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[this.at + length] ?? " ";
    const { opens, closes } = flanks(mark, length, before, after);
    this.at += length;
    while (closes && length && this.open[mark]) length -= this.close(mark, length);
    if (!length) return true;
    if (opens) {
      this.openers.push(this.out.length);
      this.open[mark] += 1;
      this.out.push({ type: "opener", mark, length, text: mark.repeat(length) });
    } else this.push(mark.repeat(length));
    return true;
  }

  /** Close the last opener of this kind; the number of marks used: 0 where nesting is too deep for any more. */
  close(mark, length) {
    while (this.out[this.openers.at(-1)].mark !== mark) this.open[this.out[this.openers.pop()].mark] -= 1;
    const start = this.openers.at(-1);
    const opener = this.out[start];
    const children = this.since(start);
    const depth = 1 + deepest(children);
    if (depth > DEEPEST) {
      for (const child of children) this.out.push(child);
      this.openers = [];
      this.open = { "*": 0, _: 0, "~": 0 };
      return 0;
    }
    const used = Math.min(2, length, opener.length);
    opener.length -= used;
    opener.text = mark.repeat(opener.length);
    if (!opener.length) {
      this.openers.pop();
      this.open[mark] -= 1;
      this.out.pop();
    }
    this.out.push({ type: mark === "~" ? "strike" : used === 2 ? "strong" : "emphasis", children, depth });
    return used;
  }
}

/** Whether a run of marks may open or close: not beside a space; "_" and a lone "*" not within a word, "~" in pairs. */
function flanks(mark, length, before, after) {
  const inWord = length === 1 && ASCII_WORD.test(before) && ASCII_WORD.test(after);
  const fits = mark === "~" ? length === 2 : !(mark === "*" && inWord);
  const apart = mark === "_";
  return {
    opens: fits && !/\s/.test(after) && !(apart && WORD.test(before)),
    closes: fits && !/\s/.test(before) && !(apart && WORD.test(after)),
  };
}

/** Where each run of backticks that opens code is closed: at the next run of the same length. */
function matchingRuns(text) {
  const ends = new Map();
  const next = new Map();
  for (const run of [...text.matchAll(/`+/g)].reverse()) {
    if (next.has(run[0].length)) ends.set(run.index, next.get(run[0].length));
    next.set(run[0].length, run.index);
  }
  return ends;
}

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

/** An address without the punctuation of the sentence that it stands in. */
function withoutEnd(address) {
  let end = address.length;
  while (end && ".,;:!?'*_~".includes(address[end - 1])) end -= 1;
  const kept = address.slice(0, end);
  return kept.endsWith(")") && kept.split("(").length < kept.split(")").length ? kept.slice(0, -1) : kept;
}

function deepest(nodes) {
  return nodes.reduce((most, node) => Math.max(most, node.depth ?? 0), 0);
}

/** Nodes with what stayed open as text, and neighbouring texts joined. */
function settled(nodes) {
  const result = [];
  for (const node of nodes) {
    const isText = node.type === "opener" || node.type === "text";
    const last = result.at(-1);
    if (!isText) result.push(node);
    else if (last?.type === "text") last.text += node.text;
    else if (node.text) result.push({ type: "text", text: node.text });
  }
  return result;
}
