// The tree of a pass, the accepted path lit. All edges are one path of the SVG and all nodes another, so that thousands
// cost as little as a few.

import { svg } from "../dom.js";
import { isTree, layOut } from "./layout.js";
import { depthClass } from "./tint.js";

const WIDTH = 320;
const HEIGHT = 190;
const MARGIN = 9;
const LARGEST = 8; // diameter of a node
const SMALLEST = 2.2;

/** A drawing of {parents, accepted}; null where there is no tree to draw. */
export function drawTree(tree) {
  if (!isTree(tree?.parents)) return null;
  const { parents } = tree;
  const path = acceptedPath(tree);
  const layout = layOut(parents);
  const point = (node) => [
    round(MARGIN + ((WIDTH - 2 * MARGIN) * layout.x[node]) / layout.leaves),
    round(MARGIN + ((HEIGHT - 2 * MARGIN) * layout.depth[node]) / Math.max(1, layout.levels)),
  ];
  const room = Math.min((WIDTH - 2 * MARGIN) / layout.leaves, (HEIGHT - 2 * MARGIN) / Math.max(1, layout.levels));
  const size = Math.min(LARGEST, Math.max(SMALLEST, room * 0.6));
  const nodes = parents.map((_, node) => node);
  const edges = nodes.slice(1).map((node) => edge(point(parents[node]), point(node)));
  const lit = path.map((node, index) => ({ node, from: path[index - 1] ?? 0, name: depthClass(index + 1) }));
  const drawing = [
    svg("path", { class: "edges", d: edges.join(""), "stroke-width": Math.min(1, Math.max(0.4, room / 8)) }),
    svg("path", { class: "nodes", d: nodes.map((node) => dot(point(node))).join(""), "stroke-width": size }),
    ...lit.map(({ node, from, name }) => svg("path", { class: `lit ${name}`, d: edge(point(from), point(node)) })),
    dotOf(point(0), "root", size),
    ...lit.map(({ node, name }) => dotOf(point(node), name, size)),
  ];
  const label = describe(parents.length, layout.levels, path.length);
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, ...drawing);
}

/** A tree in words. */
function describe(nodes, levels, accepted) {
  if (nodes === 1) return "No tree: the pass yielded the target's own token.";
  const drafted = `${nodes - 1} drafted token${nodes === 2 ? "" : "s"} on ${levels} level${levels === 1 ? "" : "s"}`;
  return `${drafted}, ${accepted || "none"} accepted.`;
}

/** The accepted nodes, as far as each is a child of the one before it. */
function acceptedPath({ parents, accepted }) {
  const path = [];
  for (const node of Array.isArray(accepted) ? accepted : []) {
    if (parents[node] !== (path.at(-1) ?? 0) || node === 0) break;
    path.push(node);
  }
  return path;
}

function edge([x0, y0], [x1, y1]) {
  const middle = round((y0 + y1) / 2);
  return `M${x0} ${y0}C${x0} ${middle} ${x1} ${middle} ${x1} ${y1}`;
}

/** A line of no length with round ends. */
function dot([x, y]) {
  return `M${x} ${y}h0`;
}

function dotOf(point, name, size) {
  return svg("path", { class: `lit-node ${name}`, d: dot(point), "stroke-width": Math.max(size + 1, 5) });
}

function round(value) {
  return Math.round(value * 10) / 10;
}
