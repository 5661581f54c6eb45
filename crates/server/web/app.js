// The page: its views, its panels, its list of conversations, and the key.

import * as api from "/page/api.js";
import * as chat from "/page/chat.js";
import { ask, byId, forgetful, h, put, refill, session } from "/page/dom.js";
import * as metrics from "/page/metrics.js";
import * as models from "/page/models.js";
import * as plan from "/page/plan.js";
import * as settings from "/page/settings.js";
import * as talks from "/page/talks.js";

/**
 * Views by their names in the address. What is shown again while it is looked at has a pace; where
 * only a part of a view is shown anew, that part is named.
 */
const VIEWS = {
  chat: { title: "Chat", show: async () => {} },
  models: { title: "Models", show: models.show, part: "model-list" },
  plan: { title: "Plan", show: plan.show },
  metrics: { title: "Metrics", show: metrics.show, every: 3000 },
};

const OPEN = "tangor.open";

/** Where the menu covers the page; the style knows it, too. */
const NARROW = "(max-width: 60rem)";

let timer = null;

function viewName() {
  const name = location.hash.slice(1);
  return Object.hasOwn(VIEWS, name) ? name : "chat";
}

/** Shows the view that the address names. */
async function route() {
  clearInterval(timer);
  menu(false);
  const name = viewName();
  for (const other of Object.keys(VIEWS)) byId(`view-${other}`).hidden = other !== name;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === `#${name}`;
    here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  document.title = name === "chat" ? "Tangor" : `${VIEWS[name].title} · Tangor`;
  await fill(name);
  const { every } = VIEWS[name];
  if (!every || viewName() !== name) return;
  clearInterval(timer);
  timer = setInterval(() => pause(name) || fill(name, true), every);
}

/** Nothing is replaced that nobody sees, or under the reader's hands. */
function pause(name) {
  const used = byId(`view-${name}`).contains(document.activeElement);
  return document.hidden || used || !document.getSelection().isCollapsed;
}

async function fill(name, again = false) {
  try {
    await VIEWS[name].show();
  } catch (error) {
    clearInterval(timer);
    const { title, part } = VIEWS[name];
    const retry = h("button", { type: "button", class: "small", click: route }, "Try again");
    refill(
      byId(part ?? `view-${name}`),
      part ? "" : h("h2", {}, title),
      h(
        "div",
        {
          class: "trouble",
          role: again ? "status" : "alert",
        },
        h("p", {}, h("strong", {}, error.message)),
        h("p", {}, error.advice ?? ""),
        retry,
      ),
    );
  }
}

/** The menu covers the page where that is narrow: nothing else is to be had until it is closed. */
function menu(open) {
  const { classList } = document.body;
  if (classList.contains("menu-open") === open) return;
  classList.toggle("menu-open", open);
  byId("menu").setAttribute("aria-expanded", open);
  byId("scrim").hidden = !open;
  for (const part of document.querySelectorAll("header, main, #settings")) part.inert = open;
  byId(open ? "new-talk" : "menu").focus();
}

function tune(open) {
  byId("settings").hidden = !open;
  byId("tune").setAttribute("aria-expanded", open);
  document.body.classList.toggle("tuning", open);
  if (open) byId("settings").querySelector("textarea").focus();
}

function list() {
  const all = talks.all();
  const item = (talk) => {
    const title = talks.titleOf(talk);
    const here = talk.id === chat.current();
    const remove = async () => {
      const sure = [h("p", {}, `“${title}” is removed from this browser.`)];
      if (!(await ask("Remove this conversation?", sure, [["Remove", () => true]]))) return;
      talks.forget(talk.id);
      if (talk.id === chat.current()) show(null);
      list();
    };
    return h(
      "li",
      {},
      h(
        "button",
        {
          type: "button",
          class: "talk",
          dir: "auto",
          title,
          "aria-current": here ? "true" : undefined,
          click: () => show(talk.id),
        },
        title,
      ),
      h(
        "button",
        {
          type: "button",
          class: "icon",
          "aria-label": `Remove ${title}`,
          click: remove,
        },
        "×",
      ),
    );
  };
  refill(byId("talks"), ...all.map(item));
  byId("talks-none").hidden = all.length > 0 && !forgetful;
  byId("export").disabled = all.length === 0;
  byId("clear").disabled = all.length === 0;
}

/** Shows a conversation, or a new one. */
function show(id) {
  location.hash = "#chat";
  menu(false);
  chat.open(id);
  put(session, OPEN, chat.current());
  list();
}

function exportAll() {
  const text = JSON.stringify({ tangor: 1, conversations: talks.all() }, null, 2);
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: url, download: "tangor-conversations.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

async function clearAll() {
  const sure = [
    h("p", {}, "Every conversation is removed from this browser. Export them first to keep them."),
  ];
  if (!(await ask("Clear all conversations?", sure, [["Clear all", () => true]]))) return;
  talks.clear();
  show(null);
}

/** Asks for the key; whether there is a new one. Asked once, whoever else wants it meanwhile. */
let asking = null;
function wantKey(why) {
  asking ??= (async () => {
    const input = h("input", {
      id: "key-input",
      type: "password",
      autocomplete: "off",
      spellcheck: "false",
      "aria-describedby": "key-why",
    });
    const body = [
      h("p", { id: "key-why" }, `${why} It is kept until this tab is closed.`),
      h("label", { for: "key-input" }, "API key"),
      input,
    ];
    const given = await ask("API key", body, [["Use it", () => input.value.trim()]]);
    asking = null;
    if (given === null || given === api.key.get()) return false;
    api.key.set(given);
    return true;
  })();
  return asking;
}

function listen() {
  const click = (id, action) => byId(id).addEventListener("click", action);
  window.addEventListener("hashchange", route);
  click("menu", () => menu(!document.body.classList.contains("menu-open")));
  click("scrim", () => menu(false));
  click("tune", () => tune(byId("settings").hidden));
  click("skip", () => (viewName() === "chat" ? byId("prompt") : byId("main")).focus());
  click("new-talk", () => show(null));
  click("export", exportAll);
  click("clear", clearAll);
  click("key", async () => {
    if (await wantKey("The server tells who may use it by a key.")) start();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || byId("dialog").open || chat.busy()) return;
    if (document.body.classList.contains("menu-open")) {
      menu(false);
    } else if (!byId("settings").hidden) {
      tune(false);
      byId("tune").focus();
    }
  });
  talks.onChange((id) => {
    list();
    if (id === chat.current()) chat.renew();
  });
  matchMedia(NARROW).addEventListener("change", () => menu(false));
  // Other programs fetch models and let them go.
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) models.refresh({ quiet: true }).catch(() => {});
  });
}

/** What the server has to say at the beginning. */
async function start() {
  try {
    await models.refresh();
    await route();
  } catch (error) {
    byId("trouble").replaceChildren(
      h(
        "div",
        { class: "trouble" },
        h("p", {}, h("strong", {}, error.message)),
        h("p", {}, error.advice ?? ""),
        h("button", { type: "button", class: "small", click: start }, "Try again"),
      ),
    );
    return;
  }
  byId("trouble").replaceChildren();
}

api.onKeyWanted(wantKey);
settings.start();
models.start();
chat.start({
  model: models.chosen,
  loaded: models.inMemory,
  onChange: () => {
    put(session, OPEN, chat.current());
    list();
    // Which models are in memory may have changed; that this fails is said where it matters.
    models.refresh({ quiet: true }).catch(() => {});
  },
});
listen();
if (forgetful) byId("talks-none").textContent = "This browser keeps nothing over a visit.";
const open = session.getItem(OPEN);
if (open && talks.load(open)) chat.open(open);
list();
start();
