// Conversations: kept in this browser alone, each under a key of its own, so that two tabs do not
// overwrite each other's.

import { local, put } from "/page/dom.js";

const PREFIX = "tangor.talk.";

/** Ids of those that were removed: an answer that ends later does not bring them back. */
const gone = new Set();

/** A conversation without messages. */
export const fresh = () => ({
  id: crypto.getRandomValues(new Uint32Array(2)).join("-"),
  messages: [],
  changed: 0,
});

/** What a conversation is called. */
export function titleOf(talk) {
  const first = talk.messages.find((message) => message.role === "user")?.content ?? "";
  const line = first.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line || "New conversation";
}

function read(name) {
  try {
    const talk = JSON.parse(local.getItem(name));
    const fits = ({ role, content }) =>
      ["user", "assistant"].includes(role) && typeof content === "string";
    return talk?.messages.every(fits) ? talk : null;
  } catch {
    return null;
  }
}

const names = () => Object.keys(local).filter((name) => name.startsWith(PREFIX));

/** All of them, the one that changed last first. */
export function all() {
  return names()
    .map(read)
    .filter(Boolean)
    .sort((a, b) => b.changed - a.changed);
}

/** One of them, or null. */
export const load = (id) => read(PREFIX + id);

/** Keeps one; false if the browser has no room for it. */
export function keep(talk) {
  if (gone.has(talk.id)) return true;
  // What another tab made of it meanwhile stays: this one goes on under an id of its own.
  const there = load(talk.id);
  if (there && there.changed !== talk.changed) talk.id = fresh().id;
  const kept = { ...talk, changed: Date.now() };
  if (!put(local, PREFIX + talk.id, JSON.stringify(kept))) return false;
  talk.changed = kept.changed;
  return true;
}

/** Forgets one. */
export function forget(id) {
  gone.add(id);
  local.removeItem(PREFIX + id);
}

/** Forgets all, those that cannot be read among them. */
export const clear = () => names().forEach((name) => forget(name.slice(PREFIX.length)));

/** Calls back when another tab changes one. */
export function onChange(changed) {
  window.addEventListener("storage", ({ key, newValue }) => {
    if (!key?.startsWith(PREFIX)) return;
    const id = key.slice(PREFIX.length);
    if (newValue === null) gone.add(id);
    changed(id);
  });
}
