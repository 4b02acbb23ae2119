// Which token of a reply came from which depth of a tree. A mark is one pass, [accepted, letters of token 1, of token
// 2, …], so that it takes little room where conversations are kept. Token i lies at depth i; the one after the accepted
// ones is the bonus token, the target's own.

import { element } from "../dom.js";
import { visible } from "../text/visible.js";

const DEPTHS = 8; // colours; deeper tokens have the last

/** The marks with those of one more pass. */
export function addMark(marks, { accepted, pieces }) {
  if (!Array.isArray(pieces) || !pieces.every((piece) => typeof piece === "string")) return marks ?? [];
  return [...(marks ?? []), [Math.max(0, Number(accepted) || 0), ...pieces.map((piece) => piece.length)]];
}

/** Shows texts by tokens; only what was added since the last call is drawn. */
export class TintedText {
  constructor(container) {
    this.container = container;
    this.rest = element("span");
    this.passes = 0;
    this.letters = 0;
    container.replaceChildren(this.rest);
  }

  draw(text, marks) {
    const fresh = marks.slice(this.passes);
    for (const [accepted, ...lengths] of fresh) {
      lengths.forEach((length, index) => {
        const piece = text.slice(this.letters, this.letters + length);
        this.letters += length;
        if (piece) this.rest.before(token(piece, index, accepted, this.passes + 1));
      });
      this.passes += 1;
    }
    this.rest.replaceChildren(...visible(text.slice(this.letters)));
  }
}

function token(piece, index, accepted, pass) {
  const isBonus = index >= accepted;
  const title = `pass ${pass}, ${isBonus ? "the target's own token" : `depth ${index + 1}`}`;
  const name = isBonus ? "bonus" : depthClass(index + 1);
  return element("span", { class: `token ${name}`, title }, ...visible(piece));
}

/** The class that has the colour of a depth, from 1 on. */
export function depthClass(depth) {
  return `depth-${Math.min(depth, DEPTHS)}`;
}
