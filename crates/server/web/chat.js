// The conversation that is shown: asking, stopping, asking again, editing.

import * as api from "/page/api.js";
import { byId, h, put, sends, session, tell, touch } from "/page/dom.js";
import { Answer, question } from "/page/message.js";
import * as settings from "/page/settings.js";
import * as talks from "/page/talks.js";

const DRAFT = "tangor.draft";

let talk = talks.fresh();
/** What is shown of the messages, in their order. */
let shown = [];
/** Answers that are still to be shown, the last one at the end. */
let waiting = [];
/** What ends the answer that is being written, or null. */
let running = null;
let changed = () => {};
let modelOf = () => null;
let inMemory = () => true;

const log = byId("log");
const prompt = byId("prompt");

/** Whether an answer is being written. */
export const busy = () => running !== null;

/** The id of the conversation that is shown. */
export const current = () => talk.id;

/**
 * Begins: `model` names the chosen model, `loaded` says whether one is in memory, `onChange` hears
 * of every change to keep.
 */
export function start({ model, loaded, onChange }) {
  modelOf = model;
  inMemory = loaded;
  changed = onChange;
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    busy() ? stop() : send();
  });
  prompt.addEventListener("keydown", (event) => {
    if (!sends(event)) return;
    event.preventDefault();
    if (!busy()) send();
  });
  prompt.addEventListener("input", typed);
  prompt.value ||= session.getItem(DRAFT) ?? "";
  fit();
  if (touch()) byId("keys").replaceChildren();
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing && busy() && !byId("dialog").open) stop();
  });
  // Whoever leaves amid an answer finds what came of it.
  window.addEventListener("pagehide", () => {
    const message = talk.messages.at(-1);
    if (!busy() || !message?.content) return;
    message.stopped = true;
    talks.keep(talk);
  });
  follow();
  draw();
}

/** Shows a conversation; without one, a new one. The one that is shown goes on undisturbed. */
export function open(id) {
  if (id !== talk.id) become((id && talks.load(id)) || talks.fresh());
  toPrompt();
}

/** Shows the conversation as another tab left it. */
export function renew() {
  const there = talks.load(talk.id);
  if (there && busy()) return;
  become(there ?? talks.fresh());
}

function become(other) {
  stop();
  talk = other;
  trouble(null);
  draw();
  toEnd();
}

/** To the prompt; on a telephone its keyboard would cover what is to be read. */
function toPrompt() {
  (touch() ? log : prompt).focus();
}

/** Ends the answer that is being written; what is there of it stays. */
export function stop() {
  running?.abort();
}

function send() {
  const content = prompt.value.trim();
  if (!content) return;
  prompt.value = "";
  typed();
  talk.messages.push({ role: "user", content });
  answer();
}

function edit(message, content) {
  stop();
  talk.messages.splice(talk.messages.indexOf(message), Infinity, { role: "user", content });
  toPrompt();
  answer();
}

/** The last question is answered once more, with the next seed unless the user set one. */
function regenerate() {
  if (busy()) return;
  const before = talk.messages.at(-1)?.role === "assistant" ? talk.messages.pop() : null;
  toPrompt();
  answer(before);
}

/** Shows the messages as they are; those that stand there already are left alone. */
function draw() {
  const differs = shown.findIndex(({ message }, index) => message !== talk.messages[index]);
  const kept = differs < 0 ? shown.length : differs;
  for (const { node } of shown.splice(kept)) node.remove();
  const made = talk.messages.slice(kept).map((message) => {
    if (message.role === "assistant") return new Answer(message, regenerate);
    return question(message, (text) => edit(message, text), regenerate);
  });
  shown.at(-1)?.again.toggleAttribute("hidden", true);
  shown.push(...made);
  // Only the last message can be answered again.
  shown.at(-1)?.again.toggleAttribute("hidden", false);
  byId("messages").append(...made.map(({ node }) => node));
  byId("empty").hidden = talk.messages.length > 0;
  if (kept === 0) waiting = [];
  waiting.push(...made.filter(({ show }) => show));
  fill();
}

/** Shows answers from the last to the first, for moments between which the page can be used. */
function fill() {
  const until = performance.now() + 15;
  while (waiting.length > 0 && performance.now() < until) waiting.pop().show();
  if (waiting.length > 0) setTimeout(fill);
}

/** A draft stays until it is sent. */
function typed() {
  put(session, DRAFT, prompt.value);
  fit();
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
  const seed = before && !before.broken ? (before.seed ?? 0) + 1 : 0;
  const asked = body(seed);
  const owner = talk;
  const message = { role: "assistant", content: "", model: asked.model, seed: asked.seed };
  const mine = new AbortController();
  trouble(null);
  begin(mine);
  // The question is kept at once, whatever becomes of the answer; an answer until there is another.
  if (!before) keep(owner);
  owner.messages.push(message);
  draw();
  const one = shown.at(-1);
  one.show(inMemory(asked.model) ? "Answering …" : `Loading ${asked.model} …`);
  toEnd();
  const voice = new Voice();
  try {
    await receive(asked, message, mine.signal, () => {
      voice.hear(message.content);
      one.grow();
    });
    if (seed && before.content === message.content) message.note = same(asked);
  } catch (error) {
    if (error.name === "AbortError") message.stopped = true;
    else failed(owner, message, error);
  }
  voice.end(message);
  one.show();
  const empty = !message.content && !message.reasoning && !message.timings;
  if (empty && owner.messages.at(-1) === message) {
    owner.messages.pop();
    if (before) owner.messages.push(before);
  }
  finish(owner, mine);
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

function finish(owner, mine) {
  if (running === mine) {
    running = null;
    byId("send").textContent = "Send";
    byId("send").classList.remove("stops");
  }
  if (owner === talk) draw();
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

  constructor() {
    tell("Answering.");
  }

  hear(text) {
    const end = Math.max(
      ...[". ", "! ", "? ", ".\n", "\n\n"].map((sign) => text.lastIndexOf(sign)),
    );
    if (end + 1 > this.#told) this.#tell(text.slice(this.#told, end + 1), end + 1);
  }

  end({ content, stopped, broken }) {
    this.#tell(content.slice(this.#told), content.length);
    const how = broken ? "ended early" : stopped ? "was stopped" : "is complete";
    this.#tell(`The answer ${how}.`, content.length);
  }

  #tell(text, until) {
    this.#told = until;
    const plain = text.replace(/[*_`#>|]+/g, "").trim();
    if (plain) byId("said").append(h("p", {}, plain));
  }
}
