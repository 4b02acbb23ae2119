// What the browser keeps. A browser may refuse (private windows, a full store): the page then goes on without.

/** The JSON value under `key`, or null where there is none that can be read. */
export function read(key, store = localStorage) {
  try {
    return JSON.parse(store.getItem(key));
  } catch {
    return null;
  }
}

/** Keep a JSON value; whether the browser did. */
export function write(key, value, store = localStorage) {
  try {
    store.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Keep nothing under `key` any more. */
export function forget(key, store = localStorage) {
  try {
    store.removeItem(key);
  } catch {
    // Nothing was kept where nothing may be.
  }
}

/** All keys that begin with `prefix`. */
export function keys(prefix) {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(prefix));
  } catch {
    return [];
  }
}
