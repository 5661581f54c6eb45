// How answers are to be: the system prompt, and how tokens are chosen. What is left empty is not
// sent, and is then as the model's publisher recommends.

import { ask, byId, h, local, put } from "/page/dom.js";

const KEPT = "tangor.settings";

/** Name of the request's field, words, hint, and what it may be. */
const NUMBERS = [
  ["temperature", "Temperature", "0 takes the likeliest token, higher is more varied", 0, 5, "any"],
  ["top_p", "Top p", "of the likeliest tokens that together have this probability", 0, 1, "any"],
  ["top_k", "Top k", "of so many likeliest tokens; 0: of all", 0, 1000000, 1],
  ["min_p", "Min p", "of tokens this likely, compared with the likeliest", 0, 1, "any"],
  ["repetition_penalty", "Repetition penalty", "more than 1 avoids what was said", 0.01, 10, "any"],
  ["seed", "Seed", "the same seed has the same answer", 0, Number.MAX_SAFE_INTEGER, 1],
  ["max_tokens", "Longest answer, in tokens", "", 1, 1000000, 1],
];

let kept = read();

/** What is kept; what cannot be read counts as not set. */
function read() {
  try {
    const { system = "", ...knobs } = JSON.parse(local.getItem(KEPT)) ?? {};
    return { ...knobs, system: `${system}` };
  } catch {
    return { system: "" };
  }
}

/** Where there is no room they hold for this visit. */
const save = () => put(local, KEPT, JSON.stringify(kept));

/** The system prompt, or nothing. */
export const system = () => kept.system.trim();

/** The fields of a request that are set. */
export function knobs() {
  const set = NUMBERS.map(([name]) => [name, kept[name]]).filter(([, value]) =>
    Number.isFinite(value),
  );
  return Object.fromEntries(set);
}

function field([name, words, hint, min, max, step]) {
  const why = h("span", { class: "quiet", id: `${name}-hint` }, hint);
  const input = h("input", {
    type: "number",
    id: `set-${name}`,
    min,
    max,
    step,
    placeholder: "model's own",
    inputmode: "decimal",
    "aria-describedby": `${name}-hint`,
  });
  if (Number.isFinite(kept[name])) input.value = kept[name];
  input.addEventListener("input", () => {
    const fits = input.value !== "" && input.checkValidity();
    kept[name] = fits ? input.valueAsNumber : undefined;
    const allowed = `this must be ${min} to ${max}${step === 1 ? ", a whole number" : ""}`;
    const wrong = !input.checkValidity();
    why.textContent = wrong ? allowed : hint;
    why.classList.toggle("wrong", wrong);
    input.setAttribute("aria-invalid", wrong);
    save();
  });
  return h("div", { class: "field" }, h("label", { for: `set-${name}` }, words), input, why);
}

/** Begins: what another tab sets holds here, too, or the next change here would undo it. */
export function start() {
  window.addEventListener("storage", ({ key }) => {
    if (key !== KEPT) return;
    kept = read();
    show();
  });
  show();
}

/** Fills the panel. */
function show() {
  const area = h("textarea", {
    id: "set-system",
    rows: "5",
    dir: "auto",
    placeholder: "Who the model is to be",
  });
  area.value = kept.system;
  area.addEventListener("input", () => {
    kept.system = area.value;
    save();
  });
  const reset = async () => {
    const sure = [h("p", {}, "The system prompt is lost with them.")];
    if (system() && !(await ask("Reset all settings?", sure, [["Reset", () => true]]))) return;
    kept = { system: "" };
    save();
    show();
    byId("settings").querySelector("textarea").focus();
  };
  byId("settings").replaceChildren(
    h("h2", {}, "Settings"),
    h("div", { class: "field" }, h("label", { for: "set-system" }, "System prompt"), area),
    ...NUMBERS.map(field),
    h("button", { type: "button", class: "plain", click: reset }, "Reset all"),
  );
}
