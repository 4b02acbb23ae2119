// A reply's Markdown as elements. Everything that a model wrote becomes text nodes; the only attribute that holds some
// of it is the address of a link, which is http or https.

import { element } from "../dom.js";
import { copyButton } from "../view/copying.js";
import { parseBlocks } from "./blocks.js";
import { parseInline } from "./inline.js";
import { visible } from "./visible.js";

const drawn = new WeakMap(); // container → [{raw, node}]
const codes = new WeakMap(); // element → the code in it, as it was written

/** Show `source` in `container`; what has not changed since the last call stays as it is, with its selection. */
export function renderInto(container, source) {
  const before = drawn.get(container) ?? [];
  const blocks = parseBlocks(source);
  let same = 0;
  while (same < before.length && same < blocks.length && before[same].raw === blocks[same].raw) same += 1;
  const after = before.slice(0, same);
  for (let index = same; index < blocks.length; index += 1) {
    const { raw } = blocks[index];
    const old = before[index]?.node;
    const node = (old && grown(old, blocks[index])) || blockNode(blocks[index]);
    if (!old) container.append(node);
    else if (node !== old) old.replaceWith(node);
    after.push({ raw, node });
  }
  for (const { node } of before.slice(blocks.length)) node.remove();
  drawn.set(container, after);
}

/** Code that only got longer keeps its element, and with it where it was scrolled to. */
function grown(old, block) {
  if (block.type !== "code" || !old.matches("figure.code") || old.dataset.language !== block.language) return null;
  old.querySelector("code").replaceChildren(...visible(block.text));
  codes.set(old, block.text);
  return old;
}

const NODES = {
  paragraph: ({ text }) => element("p", { dir: "auto" }, ...inlineNodes(text)),
  heading: ({ level, text }) => element(`h${Math.min(6, level + 2)}`, { dir: "auto" }, ...inlineNodes(text)),
  rule: () => element("hr"),
  quote: ({ blocks }) => element("blockquote", { dir: "auto" }, ...blocks.map(blockNode)),
  code: codeNode,
  list: listNode,
  table: tableNode,
};

function blockNode(block) {
  return NODES[block.type](block);
}

function codeNode({ language, text }) {
  const label = language ? `Code, ${language}` : "Code";
  const figure = element(
    "figure",
    { class: "code", dir: "ltr", "data-language": language },
    element("figcaption", {}, element("span", {}, ...visible(language || "text")), copyButton(() => codes.get(figure))),
    element("pre", { tabindex: "0", role: "region", "aria-label": label }, element("code", {}, ...visible(text))),
  );
  codes.set(figure, text);
  return figure;
}

function listNode({ isOrdered, start, items }) {
  const attributes = isOrdered && start !== 1 ? { start } : {};
  return element(isOrdered ? "ol" : "ul", { dir: "auto", ...attributes }, ...items.map(itemNode));
}

function itemNode({ isDone, blocks }) {
  const box = isDone === null ? [] : [element("span", { class: "task" }, isDone ? "☑ " : "☐ ")];
  return element("li", { class: isDone === null ? null : "has-task" }, ...box, ...blocks.map(blockNode));
}

function tableNode({ align, head, rows }) {
  const cell = (name) => (text, column) =>
    element(name, { dir: "auto", class: align[column] && `align-${align[column]}` }, ...inlineNodes(text));
  const row = (name) => (texts) => element("tr", {}, ...Array.from(texts, (text) => text ?? "").map(cell(name)));
  const body = element("tbody", {}, ...rows.map(row("td")));
  const table = element("table", {}, element("thead", {}, row("th")(head)), body);
  return element("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, table);
}

function inlineNodes(text) {
  return parseInline(text).flatMap(inlineNode);
}

function inlineNode({ type, text, children, url }) {
  if (type === "text") return visible(text);
  if (type === "code") return [element("code", { dir: "ltr" }, ...visible(text))];
  if (type === "formula") return [element("span", { class: "formula", dir: "ltr" }, ...visible(text))];
  const inside = children.flatMap(inlineNode);
  if (type === "link") return linkNodes(url, inside);
  if (type === "image") return [element("span", { class: "image" }, "Image: "), ...linkNodes(url, inside)];
  return [element({ strong: "strong", emphasis: "em", strike: "s" }[type], {}, ...inside)];
}

/** A link, and after it the host where the text does not say it. */
function linkNodes(url, inside) {
  const attributes = { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow", title: url.href };
  const link = element("a", attributes, ...inside);
  if (link.textContent.includes(url.host)) return [link];
  return [link, element("span", { class: "host" }, ` (${url.host})`)];
}
