// Markdown's blocks, as plain objects. Those of the outermost level keep their source in `raw`: while a reply grows,
// blocks whose source is the same need not be drawn again.

const DEEPEST = 8; // levels of lists and quotes
const MOST_COLUMNS = 32;
const FENCE = /^ {0,3}(`{3,}|~{3,}) *([^`]{0,200})$/;
const ITEM = /^( {0,400})([-*+]|\d{1,9}[.)])(?: ( *)|$)/;
const TASK = /^\[([ xX])\] /;
const QUOTE = /^ {0,3}> ?/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const HEADING = /^ {0,3}(#{1,6})(?: +|$)/;
const DELIMITER = /^:?-+:?$/;

/** The blocks of a text: code, heading, rule, quote, list, table, paragraph. */
export function parseBlocks(source) {
  const lines = source.replace(/\r\n?/g, "\n").split("\n");
  return parse(lines, 0);
}

function parse(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const { block, end } = read(lines, at, depth);
    blocks.push(depth ? block : { ...block, raw: lines.slice(at, end).join("\n") });
    at = end;
  }
  return blocks;
}

function read(lines, at, depth) {
  const nested = depth < DEEPEST;
  return (
    readCode(lines, at) ??
    readHeading(lines, at) ??
    (RULE.test(lines[at]) ? { block: { type: "rule" }, end: at + 1 } : null) ??
    (nested ? readQuote(lines, at, depth) : null) ??
    (nested ? readList(lines, at, depth) : null) ??
    readTable(lines, at) ??
    readParagraph(lines, at, nested)
  );
}

function readCode(lines, at) {
  const [, fence, info] = FENCE.exec(lines[at]) ?? [];
  if (!fence) return null;
  const margin = indent(lines[at]);
  let end = at + 1;
  while (end < lines.length && !closes(lines[end], fence)) end += 1;
  const text = lines.slice(at + 1, end).map((line) => line.slice(Math.min(margin, indent(line))));
  const block = { type: "code", language: info.trim().split(/\s/)[0], text: text.join("\n") };
  return { block, end: Math.min(end + 1, lines.length) };
}

function closes(line, fence) {
  const text = line.trim();
  return indent(line) < 4 && text.length >= fence.length && text === fence[0].repeat(text.length);
}

function readHeading(lines, at) {
  const found = HEADING.exec(lines[at]);
  if (!found) return null;
  let text = lines[at].slice(found[0].length).trim();
  let end = text.length;
  while (end && text[end - 1] === "#") end -= 1;
  if (!end || text[end - 1] === " ") text = text.slice(0, end).trim();
  return { block: { type: "heading", level: found[1].length, text }, end: at + 1 };
}

function readQuote(lines, at, depth) {
  if (!QUOTE.test(lines[at])) return null;
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inside = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return { block: { type: "quote", blocks: parse(inside, depth + 1) }, end };
}

function readList(lines, at, depth) {
  const first = marker(lines[at]);
  if (!first) return null;
  const items = [];
  let end = at;
  let next = first;
  while (next) {
    const item = readItem(lines, end, next);
    const { lines: inside, isDone } = task(item.lines);
    items.push({ isDone, blocks: parse(inside, depth + 1) });
    end = item.end;
    const following = afterBlank(lines, end);
    next = following < lines.length && !RULE.test(lines[following]) ? marker(lines[following]) : null;
    if (next && (next.kind !== first.kind || next.margin >= first.margin + 2)) next = null;
    if (next) end = following;
  }
  const block = { type: "list", isOrdered: first.number !== null, start: first.number ?? 1, items };
  return { block, end };
}

/** The lines of one item, without its marker and indentation. */
function readItem(lines, at, { margin, content }) {
  const inside = [lines[at].slice(content)];
  let end = at + 1;
  while (end < lines.length) {
    const next = afterBlank(lines, end);
    if (next === lines.length) break;
    const line = lines[next].replace(/^\t/, "    ");
    const isInside = indent(line) >= Math.min(content, margin + 2);
    if (!isInside && (next > end || marker(line) || startsBlock(line))) break;
    for (; end < next; end += 1) inside.push("");
    inside.push(line.slice(Math.min(content, indent(line))));
    end += 1;
  }
  return { lines: inside, end };
}

function task(lines) {
  const found = TASK.exec(lines[0]);
  if (!found) return { lines, isDone: null };
  return { lines: [lines[0].slice(found[0].length), ...lines.slice(1)], isDone: found[1] !== " " };
}

/** Where a list's item begins: {kind, number, margin, content}; margin and content are columns. */
function marker(line) {
  const found = ITEM.exec(line);
  if (!found) return null;
  const [, margin, mark, spaces] = found;
  const number = /\d/.test(mark) ? Number.parseInt(mark, 10) : null;
  const gap = spaces === undefined ? 0 : spaces.length > 3 ? 1 : 1 + spaces.length;
  return { kind: mark.at(-1), number, margin: margin.length, content: margin.length + mark.length + gap };
}

function readTable(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || !lines[at + 1].includes("-")) return null;
  const head = cells(lines[at]);
  const delimiters = cells(lines[at + 1]);
  const fits = head.length === delimiters.length && head.length <= MOST_COLUMNS;
  if (!fits || !delimiters.every((cell) => DELIMITER.test(cell))) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const rows = lines.slice(at + 2, end).map(cells);
  for (const row of rows) row.length = head.length; // a cell too few is empty, one too many is dropped, as on GitHub
  return { block: { type: "table", align: delimiters.map(alignment), head, rows }, end };
}

function cells(line) {
  const inside = line.trim().replace(/^\|/, "");
  const parts = inside.split(/(?<!\\)\|/);
  if (parts.length > 1 && !parts.at(-1).trim()) parts.pop();
  return parts.map((part) => part.trim().replaceAll("\\|", "|"));
}

function alignment(delimiter) {
  const right = delimiter.endsWith(":");
  if (delimiter.startsWith(":")) return right ? "center" : "start";
  return right ? "end" : null;
}

/** Lines as they are, indentation too: what a model writes without Markdown stays readable. */
function readParagraph(lines, at, nested) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end, nested)) end += 1;
  const text = lines.slice(at, end).map((line) => line.trimEnd());
  return { block: { type: "paragraph", text: text.join("\n") }, end };
}

function interrupts(lines, at, nested) {
  return startsBlock(lines[at], nested) || readTable(lines, at) !== null;
}

function startsBlock(line, nested = true) {
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (!nested) return false;
  const item = marker(line);
  const isItem = item && line.length > item.content && (item.number === null || item.number === 1);
  return QUOTE.test(line) || Boolean(isItem);
}

function indent(line) {
  let end = 0;
  while (line[end] === " ") end += 1;
  return end;
}

function afterBlank(lines, at) {
  let next = at;
  while (next < lines.length && !lines[next].trim()) next += 1;
  return next;
}
