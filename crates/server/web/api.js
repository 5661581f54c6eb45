// Asking the server: the key, errors with what to do about them, and streams of events.

import { put, session } from "/page/dom.js";

const KEY = "tangor.key";

/** The API key: kept until the tab is closed, and nowhere else. */
export const key = {
  get: () => session.getItem(KEY) ?? "",
  set: (value) => (value ? put(session, KEY, value) : session.removeItem(KEY)),
};

/** Why the server gave no answer. `advice` says what to do. */
export class Trouble extends Error {
  constructor(message, { status = 0, code = null, wait = null } = {}) {
    super(message);
    Object.assign(this, { status, code, wait, advice: advice(status, code, wait) });
  }
}

function advice(status, code, wait) {
  if (code === "model_not_found")
    return "Choose another model above, or fetch this one under Models.";
  if (code === "context_length_exceeded") {
    return "Begin a new conversation, shorten your message, or load the model with a longer context.";
  }
  if (code === "offline") return "Start the server without --offline to fetch models.";
  switch (status) {
    case 0:
      return "Look whether tangor serve is still running, start it again if not, then try again.";
    case 400:
      return "Look at the settings and at your message, then try again.";
    case 401:
      return "Enter the key that the server was started with (API key, in the menu).";
    case 403:
      return "Open the page under the address that the server printed when it started.";
    case 413:
      return "Shorten the conversation, or begin a new one.";
    case 429:
      return `The server is busy. Try again in ${wait ?? "a few"} seconds.`;
    case 503:
      return "Try again in a moment; if it stays like this, let another model go under Models.";
    case 504:
      return "Ask for fewer tokens (Settings, longest answer), then try again.";
    default:
      return "Try again; the server's own messages say more.";
  }
}

/** What is wrong, from the body of a response that is not well. */
async function refused(response) {
  const text = await response.text().catch(() => "");
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    // Whatever stands between the page and the server has words of its own.
  }
  const message = error.message ?? `The server answered with status ${response.status}.`;
  const wait = response.headers.get("retry-after");
  return new Trouble(message, { status: response.status, code: error.code ?? null, wait });
}

let askForKey = async () => false;

/** Sets who asks the user for the key; it resolves to whether there is a new one. */
export function onKeyWanted(handler) {
  askForKey = handler;
}

/** A response that is well; a key that the server wants is asked for. */
export async function request(path, { body, signal, quiet = false } = {}) {
  for (;;) {
    const headers = {};
    if (key.get()) headers.authorization = `Bearer ${key.get()}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    const method = body === undefined ? "GET" : "POST";
    const sent = {
      method,
      headers,
      signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    };
    let response;
    try {
      response = await fetch(path, sent);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The server does not answer.");
    }
    if (response.ok) return response;
    const trouble = await refused(response);
    if (response.status !== 401 || quiet || !(await askForKey(trouble.message))) throw trouble;
  }
}

/** The JSON of a response that is well. */
export const json = async (path, options) => (await request(path, options)).json();

/** The events of a stream, as `{event, data}`, data parsed unless it is `[DONE]`. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const frames = (rest + value).split("\n\n");
      rest = frames.pop();
      yield* frames.map(parsed).filter(Boolean);
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Trouble) throw error;
    throw new Trouble("The connection ended before the answer did.");
  } finally {
    // Whoever stops listening lets the connection go.
    reader.cancel().catch(() => {});
  }
}

/** An event, or null if it only says that the connection lives. */
function parsed(frame) {
  const lines = frame.split("\n");
  const line = (start) => lines.find((one) => one.startsWith(start))?.slice(start.length);
  const data = line("data: ");
  if (data === undefined) return null;
  return { event: line("event: "), data: data === "[DONE]" ? data : JSON.parse(data) };
}

/** The trouble that an event tells of, if it does. */
export function troubleOf({ event, data }) {
  if (event !== "error" && !data?.error) return null;
  const error = data.error ?? {};
  return new Trouble(error.message ?? "The answer ended early.", { status: 500, code: error.code });
}
