// Characters that would hide, reorder or command text are shown by name: controls (ANSI's escape is one), overrides of
// the writing direction, invisible tags. Marks that scripts and emoji need (joiners, U+200E, U+200F) stay.

import { element } from "../dom.js";

const HIDDEN = /[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\u{e0000}-\u{e007f}]+/gu;
const MOST_NAMED = 32; // of one run

/** `text` as text nodes and named characters. */
export function visible(text) {
  const whole = text.toWellFormed ? text.toWellFormed() : text;
  const nodes = [];
  let end = 0;
  for (const found of whole.matchAll(HIDDEN)) {
    if (found.index > end) nodes.push(whole.slice(end, found.index));
    nodes.push(named([...found[0]]));
    end = found.index + found[0].length;
  }
  if (end < whole.length) nodes.push(whole.slice(end));
  return nodes;
}

function named(characters) {
  const names = characters.slice(0, MOST_NAMED).map(symbol);
  if (characters.length > MOST_NAMED) names.push(`… ${characters.length} characters`);
  return element("span", { class: "hidden-character", title: "characters that cannot be seen" }, names.join(""));
}

function symbol(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return `[U+${code.toString(16).toUpperCase().padStart(4, "0")}]`;
}
