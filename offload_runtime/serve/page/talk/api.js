// The server's API.

import { read, write } from "../store/stored.js";
import { events } from "./events.js";
import { Failure, failure, told } from "./failure.js";

const KEY = "sequoia.key"; // of this tab only

/** Use this API key until the tab is closed. */
export function useKey(key) {
  write(KEY, key, sessionStorage);
}

/** A JSON answer. */
export async function get(path) {
  return (await request(path, {})).json();
}

/** Yield the chunks of a reply. Throws a Failure, also where the stream ends before the reply does. */
export async function* chunks(body, signal) {
  const headers = { "Content-Type": "application/json" };
  const options = { method: "POST", headers, body: JSON.stringify(body), signal };
  const response = await request("/v1/chat/completions", options);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const message = told(data);
    if (message) throw new Failure(message);
    yield parsed(data);
  }
  throw new Failure("The connection ended before the reply was complete.");
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new Failure("The server sent something that is not JSON.");
  }
}

async function request(path, options) {
  const key = read(KEY, sessionStorage);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (!response.ok) throw await failure(response);
  return response;
}
