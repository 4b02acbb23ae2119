// Elements are made here and nowhere else: text goes in as text nodes, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children (nodes or strings). A function as an attribute listens: {onclick: f}. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

/** Children go in first: under dir="auto", the browser would look at all of them again for every one that is added. */
function filled(node, attributes, children) {
  node.append(...children.filter((child) => child !== null && child !== undefined));
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  return node;
}

/** A button that submits nothing. */
export function button(label, onclick, attributes = {}) {
  return element("button", { type: "button", onclick, ...attributes }, label);
}

/** The element of the page with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Calls `draw` at most once a frame, however often it is asked to. */
export function oncePerFrame(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
}
