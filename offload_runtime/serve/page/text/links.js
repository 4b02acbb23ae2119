// Which links may be followed: http and https alone.

const UNFIT = /[\s\0-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069<>"`\\]/;
const LONGEST = 2000;

/** The address as a URL, or null where it is none that may be followed. */
export function webAddress(text) {
  if (text.length > LONGEST || UNFIT.test(text) || !/^https?:\/\//i.test(text)) return null;
  try {
    const url = new URL(text);
    return url.protocol === "http:" || url.protocol === "https:" ? url : null;
  } catch {
    return null;
  }
}
