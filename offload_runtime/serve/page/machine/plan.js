// The plan: what lies where, as a table, and what that means, in sentences.

import { element } from "../dom.js";
import { visible } from "../text/visible.js";
import { formatSize } from "./sizes.js";

const NUMBERS = ["weight_bytes", "context_length", "device_bytes", "host_bytes", "disk_bytes", "streamed_bytes"];

/** Whether a server's answer is a plan as this page knows it. */
export function isPlan(plan) {
  const areItems = Array.isArray(plan?.items) && plan.items.every((item) => typeof item?.name === "string");
  return areItems && Array.isArray(plan.summary) && NUMBERS.every((name) => Number.isFinite(plan[name]));
}

/** The plan that `GET /v1/sequoia/plan` answers, as elements. */
export function planNodes(plan) {
  const facts = [
    ["Target", plan.model],
    ["Draft", plan.draft ?? "none"],
    ["Weights", `${plan.weight_form}, ${formatSize(plan.weight_bytes)}`],
    ["On", plan.device_name],
    ["Context", `${plan.context_length} tokens`],
  ];
  const list = element("dl", { class: "facts" }, ...facts.flatMap(fact));
  return [list, tableOf(plan), ...plan.summary.map(sentence)];
}

function fact([name, value]) {
  return [element("dt", {}, name), element("dd", {}, ...visible(String(value)))];
}

function sentence(text) {
  return element("p", {}, ...visible(text));
}

function tableOf(plan) {
  const onGpu = plan.device === "cuda";
  const columns = [
    [onGpu ? "GPU" : "RAM", "device_bytes", plan.device_budget],
    ...(onGpu ? [["RAM", "host_bytes", plan.host_budget]] : []),
    ["Disk", "disk_bytes", null],
  ];
  const head = element("tr", {}, header("What", "col"), ...columns.map(([name]) => header(name, "col")));
  const rows = plan.items.map((item) =>
    element("tr", {}, header(item.name, "row"), ...columns.map(([, field]) => size(item[field]))),
  );
  const totals = columns.map(([, field]) => size(plan[field]));
  const budgets = columns.map(([, , budget]) => size(budget));
  return element(
    "table",
    { class: "plan" },
    element("caption", {}, "Bytes by memory; under disk, those that every pass reads"),
    element("thead", {}, head),
    element("tbody", {}, ...rows),
    element(
      "tfoot",
      {},
      element("tr", {}, header("Total", "row"), ...totals),
      element("tr", {}, header("Budget", "row"), ...budgets),
    ),
  );
}

function header(text, scope) {
  return element("th", { scope }, ...visible(text));
}

function size(nbytes) {
  return element("td", {}, nbytes ? formatSize(nbytes) : "–");
}
