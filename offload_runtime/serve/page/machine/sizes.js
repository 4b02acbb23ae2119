// Sizes in bytes for people, as the server prints them: "1.71 GB", "22.5 GB", "141 GB".

const UNITS = ["B", "kB", "MB", "GB", "TB"];

/** Bytes with three digits. */
export function formatSize(nbytes) {
  let value = nbytes;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const decimals = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${value.toFixed(decimals)} ${UNITS[unit]}`;
}
