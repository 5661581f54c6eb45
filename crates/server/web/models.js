// The models on this machine: choosing, loading, letting go, fetching.

import * as api from "/page/api.js";
import { byId, bytes, h, local, number, put, refill, table, tell } from "/page/dom.js";

const CHOSEN = "tangor.model";

let models = [];
let loaded = new Map();
let pulling = null;

const picker = byId("model");
const view = byId("view-models");

/** The model that is chosen, or null. */
export const chosen = () => picker.value || null;

/** Whether a model was in memory when that was looked at last. */
export const inMemory = (id) => loaded.has(id);

/** Looks again which models there are, and which are in memory. */
export async function refresh(options) {
  const [list, health] = await Promise.all([
    api.json("/v1/models", options),
    api.json("/v1/health", options),
  ]);
  models = list.data;
  loaded = new Map(health.all_models_loaded.map((one) => [one.model_name, one]));
  pick();
  return { models, loaded };
}

function pick() {
  const wanted = picker.value || local.getItem(CHOSEN);
  const group = (label, some) =>
    some.length === 0
      ? null
      : h("optgroup", { label }, ...some.map(({ id }) => h("option", { value: id }, id)));
  const ready = models.filter(({ id }) => loaded.has(id));
  const rest = models.filter(({ id }) => !loaded.has(id));
  const groups = [group("In memory", ready), group("On this machine", rest)].filter(Boolean);
  const none = h("option", { value: "" }, "No model yet");
  // A list that is open is left alone unless it changed.
  const key = JSON.stringify([ready, rest].map((some) => some.map(({ id }) => id)));
  if (picker.dataset.key !== key) {
    picker.dataset.key = key;
    picker.replaceChildren(...(groups.length > 0 ? groups : [none]));
  }
  const found = models.find(({ id }) => id === wanted) ?? ready[0] ?? models[0];
  picker.value = found?.id ?? "";
}

/** Chooses a model that is there. */
function choose(id) {
  if (!models.some((model) => model.id === id)) return;
  picker.value = id;
  put(local, CHOSEN, id);
}

/** Begins. */
export function start() {
  picker.addEventListener("change", () => choose(picker.value));
  view.replaceChildren(h("h2", {}, "Models"), h("div", { id: "model-list" }), puller());
}

/** Shows the view. */
export async function show() {
  await refresh();
  const rows = models.map((model) => {
    const one = loaded.get(model.id);
    const act = (word, path) =>
      h(
        "button",
        {
          type: "button",
          class: "small",
          "aria-label": `${word} ${model.id}`,
          click: (event) => change(event.target, path, model.id),
        },
        word,
      );
    const use = () => {
      choose(model.id);
      location.hash = "#chat";
    };
    const chat = h(
      "button",
      {
        type: "button",
        class: "small",
        "aria-label": `Chat with ${model.id}`,
        click: use,
      },
      "Chat",
    );
    const load = one ? act("Let go", "/v1/unload") : act("Load", "/v1/load");
    return [
      model.id,
      one ? `in memory, ${bytes(one.memory_bytes)}` : "on disk",
      h("span", { class: "actions" }, chat, load),
      bytes(model.size * 1e9),
      one ? `${number(one.recipe_options.ctx_size)} tokens` : "",
      one?.device ?? "",
    ];
  });
  const headings = ["Model", "Where", "Actions", "Size", "Context", "Devices"];
  refill(
    byId("model-list"),
    rows.length > 0
      ? table("Models on this machine", headings, rows, [3])
      : h("p", {}, "There is no model on this machine yet. Fetch one below."),
  );
}

async function change(button, path, id) {
  const leaves = path.endsWith("unload");
  // One that is disabled would lose the focus.
  if (button.ariaDisabled) return;
  button.ariaDisabled = "true";
  button.textContent = leaves ? "Letting go …" : "Loading …";
  say("");
  try {
    await api.request(path, { body: { model_name: id } });
    tell(leaves ? `${id} was let go.` : `${id} is in memory.`);
  } catch (error) {
    say(error.message, error.advice);
  }
  await show().catch((error) => say(error.message, error.advice));
}

function say(message, advice = "") {
  byId("pull-said").replaceChildren(
    ...(message
      ? [h("div", { class: "trouble" }, h("p", {}, h("strong", {}, message)), h("p", {}, advice))]
      : []),
  );
}

function puller() {
  const name = h("input", {
    id: "pull-name",
    type: "text",
    required: true,
    placeholder: "smollm2 or org/repo",
    autocomplete: "off",
    spellcheck: "false",
  });
  const go = h("button", { type: "submit", id: "pull-go", class: "main" }, "Fetch");
  const bar = h("progress", { id: "pull-bar", max: "100", value: "0", "aria-label": "Progress" });
  const how = h(
    "div",
    { id: "pull-how", class: "progress", hidden: true },
    bar,
    h("span", { id: "pull-words", class: "quiet" }),
  );
  const form = h(
    "form",
    { class: "panel" },
    h("h3", {}, "Fetch a model"),
    h(
      "div",
      { class: "row" },
      h("label", { for: "pull-name", class: "unseen" }, "Name of the model"),
      name,
      go,
    ),
    how,
    h("div", { id: "pull-said", role: "alert" }),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    pulling ? pulling.abort() : pull(name.value.trim());
  });
  return form;
}

async function pull(name) {
  const [how, bar, words, go] = ["pull-how", "pull-bar", "pull-words", "pull-go"].map(byId);
  pulling = new AbortController();
  how.hidden = false;
  bar.removeAttribute("value");
  words.textContent = "Looking for it …";
  go.textContent = "Stop";
  say("");
  try {
    const body = { model_name: name, stream: true };
    const response = await api.request("/api/v1/pull", { body, signal: pulling.signal });
    await progress(response, bar, words);
    words.textContent = `${name} is on this machine.`;
    tell(words.textContent);
    await show();
    choose(name);
  } catch (error) {
    const stopped = error.name === "AbortError";
    words.textContent = stopped ? "Stopped. What has arrived is kept for the next time." : "";
    how.hidden = !stopped;
    if (!stopped) say(error.message, error.advice);
  } finally {
    pulling = null;
    go.textContent = "Fetch";
  }
}

async function progress(response, bar, words) {
  for await (const { event, data } of api.events(response)) {
    const trouble = api.troubleOf({ event, data });
    if (trouble) throw trouble;
    if (event === "complete") {
      bar.value = 100;
      return;
    }
    if (data.bytes_total) {
      bar.value = data.percent;
      words.textContent = `${data.file}: ${bytes(data.bytes_downloaded)} of ${bytes(data.bytes_total)}`;
    } else if (data.file) {
      words.textContent = `${data.file}: ${bytes(data.bytes_downloaded)}`;
    }
  }
  throw new api.Trouble("The connection ended before the model was here.");
}
