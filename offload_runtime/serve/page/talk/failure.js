// What went wrong, in words.

const LONGEST = 4000;
const WORDS = {
  401: "The server wants an API key.",
  403: "The server does not allow this.",
  404: "The server does not know this address: is it the server of this page?",
  413: "The conversation is longer than the server accepts.",
  429: "The server has too many requests. Try again in a while.",
  500: "The server failed.",
  503: "The server is busy with as many texts as it can take.",
};

export class Failure extends Error {
  /** status: of the response, 0 without one. */
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The failure that a response tells. */
export async function failure(response) {
  const text = await response.text().catch(() => "");
  const message = told(text) ?? WORDS[response.status] ?? `The server answered ${response.status}.`;
  return new Failure(message, response.status);
}

/** The message of an error in the API's form, or null. */
export function told(text) {
  try {
    const { error } = JSON.parse(text);
    const message = typeof error === "string" ? error : error?.message;
    return typeof message === "string" && message.trim() ? message.slice(0, LONGEST) : null;
  } catch {
    return null;
  }
}

/** Any error as a Failure. */
export function asFailure(error) {
  if (error instanceof Failure) return error;
  if (error instanceof TypeError) return new Failure("The server does not answer. Is it still running?");
  return new Failure(String(error?.message ?? error));
}
