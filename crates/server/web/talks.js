// Conversations: kept in this browser alone, each under a key of its own, so that two tabs do not
// overwrite each other's.

const PREFIX = "tangor.talk.";

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
    const talk = JSON.parse(localStorage.getItem(name));
    return Array.isArray(talk?.messages) ? talk : null;
  } catch {
    return null;
  }
}

/** All of them, the one that changed last first. */
export function all() {
  const names = Object.keys(localStorage).filter((name) => name.startsWith(PREFIX));
  return names
    .map(read)
    .filter(Boolean)
    .sort((a, b) => b.changed - a.changed);
}

/** One of them, or null. */
export const load = (id) => read(PREFIX + id);

/** Keeps one; false if the browser has no room for it. */
export function keep(talk) {
  talk.changed = Date.now();
  try {
    localStorage.setItem(PREFIX + talk.id, JSON.stringify(talk));
    return true;
  } catch {
    return false;
  }
}

/** Forgets one. */
export const forget = (id) => localStorage.removeItem(PREFIX + id);

/** Forgets all. */
export const clear = () => all().forEach((talk) => forget(talk.id));

/** Calls back when another tab changes one. */
export function onChange(changed) {
  window.addEventListener("storage", ({ key }) => {
    if (key === null || key.startsWith(PREFIX)) changed(key?.slice(PREFIX.length) ?? null);
  });
}
