// The conversation that is shown: asking, stopping, asking again, editing.

import * as api from "/page/api.js";
import { byId, h } from "/page/dom.js";
import { Answer, question } from "/page/message.js";
import * as settings from "/page/settings.js";
import * as talks from "/page/talks.js";

let talk = talks.fresh();
let shown = [];
/** What ends the answer that is being written, or null. */
let running = null;
let changed = () => {};
let modelOf = () => null;

const log = byId("log");
const prompt = byId("prompt");

/** Whether an answer is being written. */
export const busy = () => running !== null;

/** The id of the conversation that is shown. */
export const current = () => talk.id;

/** Begins: `model` names the chosen model, `onChange` hears of every change to keep. */
export function start({ model, onChange }) {
  modelOf = model;
  changed = onChange;
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    busy() ? stop() : send();
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!busy()) send();
  });
  prompt.addEventListener("input", fit);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && busy() && !byId("dialog").open) stop();
  });
  follow();
  draw();
}

/** Shows a conversation; without one, a new one. */
export function open(id) {
  stop();
  talk = (id && talks.load(id)) || talks.fresh();
  trouble(null);
  draw();
  prompt.focus();
}

/** Ends the answer that is being written; what is there of it stays. */
export function stop() {
  running?.abort();
}

function send() {
  const content = prompt.value.trim();
  if (!content) return;
  prompt.value = "";
  fit();
  talk.messages.push({ role: "user", content });
  draw();
  answer();
}

function edit(index, content) {
  stop();
  talk.messages.splice(index, Infinity, { role: "user", content });
  draw();
  prompt.focus();
  answer();
}

/** The last question is answered once more, with the next seed unless the user set one. */
function regenerate() {
  if (busy()) return;
  const last = talk.messages.at(-1);
  if (last?.role === "assistant") talk.messages.pop();
  draw();
  prompt.focus();
  answer(last?.role === "assistant" && !last.broken ? last : null);
}

/** Makes the list anew. */
function draw() {
  shown = talk.messages.map((message, index) => {
    if (message.role === "user") return { node: question(message, (text) => edit(index, text)) };
    const made = new Answer(message, regenerate);
    made.show();
    return made;
  });
  byId("messages").replaceChildren(...shown.map(({ node }) => node));
  byId("empty").hidden = talk.messages.length > 0;
  last();
  toEnd();
}

/** Only the last answer can be asked for again. */
function last() {
  shown.forEach((one, index) => {
    if (one.again) one.again.hidden = index !== shown.length - 1;
  });
}

function fit() {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, window.innerHeight * 0.4)}px`;
}

function body(seed) {
  const system = settings.system();
  const said = talk.messages.map(({ role, content }) => ({ role, content }));
  return {
    model: modelOf(),
    messages: system ? [{ role: "system", content: system }, ...said] : said,
    stream: true,
    stream_options: { include_usage: true },
    ...(seed ? { seed } : {}),
    ...settings.knobs(),
  };
}

async function answer(before = null) {
  const seed = before ? (before.seed ?? 0) + 1 : 0;
  const asked = body(seed);
  const owner = talk;
  const message = { role: "assistant", content: "", model: asked.model, seed: asked.seed };
  const one = new Answer(message, regenerate);
  const mine = new AbortController();
  trouble(null);
  begin(mine);
  // The question is kept at once, whatever becomes of the answer.
  keep(owner);
  owner.messages.push(message);
  shown.push(one);
  byId("messages").append(one.node);
  last();
  one.show(true);
  toEnd();
  const voice = new Voice();
  try {
    await receive(asked, message, mine.signal, () => {
      voice.hear(message.content);
      one.grow();
    });
    if (before && before.content === message.content) message.note = same(asked);
  } catch (error) {
    if (error.name === "AbortError") message.stopped = true;
    else failed(owner, message, error);
  }
  voice.end(message.content);
  const empty = !message.content && !message.reasoning && !message.timings;
  if (empty && owner.messages.at(-1) === message) owner.messages.pop();
  finish(owner, one, mine, empty);
}

/** Why an answer that was asked for again says the same. */
const same = (asked) =>
  asked.temperature === undefined || asked.temperature === 0
    ? "the same again: the likeliest tokens were taken; set a temperature in Settings for another"
    : "the same again: leave the seed in Settings empty for another";

async function receive(asked, message, signal, grown) {
  const response = await api.request("/v1/chat/completions", { body: asked, signal });
  const begun = performance.now();
  for await (const event of api.events(response)) {
    const trouble = api.troubleOf(event);
    if (trouble) throw trouble;
    if (event.data === "[DONE]") return;
    take(message, event.data, begun);
    grown();
  }
  throw new api.Trouble("The connection ended before the answer did.");
}

function take(message, { choices, timings, usage }, begun) {
  const choice = choices?.[0];
  const { content, reasoning_content: thought } = choice?.delta ?? {};
  if (thought) message.reasoning = (message.reasoning ?? "") + thought;
  if (content) {
    message.content += content;
    if (message.reasoning) message.thoughtFor ??= (performance.now() - begun) / 1e3;
  }
  if (choice?.finish_reason) message.finish = choice.finish_reason;
  if (timings) message.timings = timings;
  if (usage) message.usage = usage;
}

function begin(mine) {
  running = mine;
  byId("send").textContent = "Stop";
  byId("send").classList.add("stops");
}

function finish(owner, one, mine, empty) {
  if (running === mine) {
    running = null;
    byId("send").textContent = "Send";
    byId("send").classList.remove("stops");
  }
  one.show();
  if (empty) {
    one.node.remove();
    shown = shown.filter((other) => other !== one);
    last();
  }
  keep(owner);
}

function keep(owner) {
  if (!talks.keep(owner)) {
    const full = new Error("The browser has no room for this conversation.");
    full.advice = "Export your conversations, then clear some.";
    trouble(full, false);
  }
  changed();
}

function failed(owner, message, error) {
  message.broken = true;
  if (message.content) message.note = "ended early";
  if (owner === talk) trouble(error);
}

/** Shows what is wrong and what to do about it, with a way to try again where that may help. */
function trouble(error, again = true) {
  const place = byId("trouble");
  if (!error) return place.replaceChildren();
  const press = (word, act) => h("button", { type: "button", class: "small", click: act }, word);
  const actions = h(
    "div",
    { class: "actions" },
    again ? press("Try again", () => regenerate()) : null,
    press("Close", () => trouble(null)),
  );
  const why = [h("p", {}, h("strong", {}, error.message)), h("p", {}, error.advice ?? "")];
  place.replaceChildren(h("div", { class: "trouble" }, ...why, actions));
}

/** Keeps the end of the conversation in sight while it is, whatever grows. */
function follow() {
  let near = true;
  let size = "";
  const sizeNow = () => `${log.scrollHeight} ${log.clientHeight}`;
  log.addEventListener("scroll", () => {
    // What scrolls because sizes changed is not the reader's doing.
    if (sizeNow() === size) near = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  });
  const sizes = new ResizeObserver(() => {
    size = sizeNow();
    if (near) toEnd();
  });
  sizes.observe(log);
  sizes.observe(byId("messages"));
}

function toEnd() {
  log.scrollTop = log.scrollHeight;
}

/** Tells screen readers the answer in whole sentences, politely: token by token nobody can listen. */
class Voice {
  #told = 0;
  #place = byId("said");

  constructor() {
    this.#place.replaceChildren(h("p", {}, "Answering."));
  }

  hear(text) {
    const end = Math.max(
      ...[". ", "! ", "? ", ".\n", "\n\n"].map((sign) => text.lastIndexOf(sign)),
    );
    if (end + 1 > this.#told) this.#tell(text.slice(this.#told, end + 1), end + 1);
  }

  end(text) {
    this.#tell(text.slice(this.#told), text.length);
    this.#tell("The answer is complete.", text.length);
  }

  #tell(text, until) {
    this.#told = until;
    const plain = text.replace(/[*_`#>|]+/g, "").trim();
    if (plain) this.#place.append(h("p", {}, plain));
  }
}
