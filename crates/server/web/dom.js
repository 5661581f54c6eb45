// Making elements without ever turning text into HTML, a dialog, and what the browser keeps.

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/**
 * An element: properties are attributes, functions are listeners, `class` and `text` are what they
 * say; children are nodes or text.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Fills a place anew; a button that has the focus there has it again, or the one in its stead. */
export function refill(place, ...children) {
  const buttons = () => [...place.querySelectorAll("button")];
  const at = buttons().indexOf(document.activeElement);
  place.replaceChildren(...children);
  if (at >= 0) (buttons()[at] ?? buttons().at(-1))?.focus();
}

/** Tells those who do not see the page. */
export const tell = (text) => byId("said")?.replaceChildren(h("p", {}, text));

/** Whether a key sends what is written. A telephone's keyboard has no other key for a new line. */
export const sends = ({ key, shiftKey, isComposing }) =>
  key === "Enter" && !shiftKey && !isComposing && !touch();

/** Whether fingers are what the page is used with. */
export const touch = () => matchMedia("(pointer: coarse)").matches;

/** In the place of a storage that the browser forbids: it lasts as long as the page. */
class Forgetful {
  getItem(name) {
    return this[name] ?? null;
  }
  setItem(name, value) {
    this[name] = value;
  }
  removeItem(name) {
    delete this[name];
  }
}

function storage(name) {
  try {
    return window[name] ?? new Forgetful();
  } catch {
    return new Forgetful();
  }
}

export const local = storage("localStorage");
export const session = storage("sessionStorage");

/** Whether nothing stays over a visit. */
export const forgetful = local instanceof Forgetful;

/** Keeps a text; false where there is no room. */
export function put(where, name, text) {
  try {
    where.setItem(name, text);
    return true;
  } catch {
    return false;
  }
}

/** A table with a caption; cells are nodes or text, and those of `right` stand to the right. */
export function table(caption, headings, rows, right = []) {
  const side = (index) => (right.includes(index) ? "right" : undefined);
  const head = headings.map((text, index) => h("th", { scope: "col", class: side(index) }, text));
  const row = (cells) =>
    h(
      "tr",
      {},
      ...cells.map((cell, index) =>
        index === 0 ? h("th", { scope: "row" }, cell) : h("td", { class: side(index) }, cell),
      ),
    );
  return h(
    "div",
    { class: "scrolls", tabindex: "0", role: "region", "aria-label": caption },
    h(
      "table",
      {},
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, ...head)),
      h("tbody", {}, ...rows.map(row)),
    ),
  );
}

/**
 * Asks in a dialog: `body` are nodes, `actions` pairs of a word and a value. Resolves to the value,
 * or to null if the dialog is closed otherwise.
 */
export function ask(title, body, actions) {
  const dialog = byId("dialog");
  const before = document.activeElement;
  return new Promise((resolve) => {
    let answer = null;
    const buttons = actions.map(([word, value], index) => {
      // The first one is what Enter does.
      const give = () => {
        answer = value();
      };
      return h(
        "button",
        { type: "submit", class: index === 0 ? "main" : "plain", click: give },
        word,
      );
    });
    const cancel = h(
      "button",
      { type: "button", class: "plain", click: () => dialog.close() },
      "Cancel",
    );
    dialog.replaceChildren(
      h(
        "form",
        { method: "dialog" },
        h("h2", { id: "dialog-title" }, title),
        ...body,
        h("div", { class: "actions" }, ...buttons, cancel),
      ),
    );
    dialog.addEventListener(
      "close",
      () => {
        before?.focus?.();
        resolve(answer);
      },
      { once: true },
    );
    dialog.showModal();
  });
}

/** Puts text into the clipboard, also where the page has no right to the new interface for it. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    return navigator.clipboard.writeText(text);
  }
  const before = document.activeElement;
  const area = h("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  before?.focus();
  if (!copied) throw new Error("The browser does not copy.");
}

/** A button that copies, and says for a moment that it did. */
export function copyButton(what, text) {
  const button = h(
    "button",
    { type: "button", class: "small", "aria-label": `Copy ${what}` },
    "Copy",
  );
  button.addEventListener("click", async () => {
    try {
      await copy(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed";
    }
    tell(button.textContent);
    setTimeout(() => {
      button.textContent = "Copy";
    }, 1500);
  });
  return button;
}

/** Bytes for people. */
export function bytes(count) {
  if (!Number.isFinite(count)) return "";
  const units = ["B", "KB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(count, 1)) / 3), units.length - 1);
  return `${(count / 1000 ** power).toFixed(power < 2 ? 0 : 1)} ${units[power]}`;
}

/** Seconds for people: three digits, in the unit that fits. */
export function seconds(count) {
  if (!Number.isFinite(count)) return "";
  if (count >= 100) return `${Math.round(count)} s`;
  if (count >= 1) return `${count.toPrecision(3)} s`;
  if (count >= 1e-3) return `${(count * 1e3).toPrecision(3)} ms`;
  return `${(count * 1e6).toPrecision(3)} µs`;
}

/** A count, with its thousands apart. */
export const number = (count) => new Intl.NumberFormat("en").format(count);
