// How replies are sampled. What is left empty is up to the model.

import { read, write } from "./stored.js";

const KEY = "sequoia.settings";
export const NUMBERS = {
  temperature: { least: 0, most: 5 },
  top_p: { least: 0, most: 1, isPositive: true },
  top_k: { least: 0, most: 1_000_000, whole: true },
  min_p: { least: 0, most: 1 },
  max_tokens: { least: 1, most: 10_000_000, whole: true },
  seed: { least: 0, most: Number.MAX_SAFE_INTEGER, whole: true },
};

/** The settings: {system, temperature, …}; values that were kept but make no sense are left out. */
export function settings() {
  const kept = read(KEY) ?? {};
  const found = { system: typeof kept.system === "string" ? kept.system : "" };
  for (const name of Object.keys(NUMBERS)) if (complaint(name, kept[name]) === null) found[name] = kept[name];
  return found;
}

/** Keep settings. */
export function keepSettings(values) {
  return write(KEY, values);
}

/** What is wrong with a value, in words; null if nothing is. */
export function complaint(name, value) {
  const { least, most, whole, isPositive } = NUMBERS[name];
  if (typeof value !== "number" || !Number.isFinite(value)) return "a number is needed";
  if (whole && !Number.isInteger(value)) return "a whole number is needed";
  if (isPositive && value <= 0) return "more than 0";
  if (value < least) return `at least ${least}`;
  return value > most ? `at most ${most}` : null;
}
