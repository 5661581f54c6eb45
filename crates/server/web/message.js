// One message as it is shown.

import { copyButton, h, number, seconds, sends } from "/page/dom.js";
import { Markdown } from "/page/markdown.js";

/** Speed and first token, from what the server measured. */
export function measured({ timings, usage, stopped, finish, seed, model }) {
  const parts = [];
  if (timings) {
    const speed = timings.predicted_per_second;
    if (speed) parts.push(`${speed >= 100 ? Math.round(speed) : speed.toFixed(1)} tokens/s`);
    parts.push(`first token after ${seconds(timings.ttft_ms / 1e3)}`);
    parts.push(`${number(timings.predicted_n)} tokens`);
  }
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  if (cached)
    parts.push(`${number(cached)} of ${number(usage.prompt_tokens)} prompt tokens from the cache`);
  if (seed) parts.push(`seed ${seed}`);
  if (finish === "length") parts.push("cut at its longest: raise it in Settings, or say “go on”");
  if (stopped) parts.push("stopped");
  if (model && parts.length > 0) parts.unshift(model);
  return parts.join(" · ");
}

/** A message of the user's: as it was written. */
export function question(message, edit, ask) {
  const body = h("div", { class: "body said", dir: "auto" }, message.content);
  const node = h("li", { class: "message question" }, h("h2", { class: "unseen" }, "You"), body);
  const begin = () => {
    const area = h("textarea", { rows: "3", dir: "auto", "aria-label": "Edit your message" });
    area.value = message.content;
    const end = () => {
      form.replaceWith(body, actions);
      actions.querySelector("button").focus();
    };
    const form = h(
      "form",
      { class: "edit" },
      area,
      h(
        "div",
        { class: "actions" },
        h("button", { type: "submit", class: "main" }, "Send again"),
        h("button", { type: "button", class: "plain", click: end }, "Cancel"),
        h("span", { class: "quiet" }, "What follows is answered anew."),
      ),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (area.value.trim()) edit(area.value);
    });
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        end();
      } else if (sends(event)) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    body.replaceWith(form);
    actions.remove();
    area.focus();
  };
  const again = h(
    "button",
    { type: "button", class: "small", hidden: true, click: ask },
    "Ask again",
  );
  const actions = h(
    "div",
    { class: "actions" },
    again,
    h(
      "button",
      { type: "button", class: "small", "aria-label": "Edit your message", click: begin },
      "Edit",
    ),
    copyButton("your message", () => message.content),
  );
  node.append(actions);
  return { message, node, again };
}

/** An answer, which may still grow. */
export class Answer {
  #body = h("div", { class: "body" });
  #thought = h("div", { class: "body" });
  #title = h("summary", {}, "Thinking …");
  #reasoning;
  #facts = h("p", { class: "facts" });
  #shown;
  #thoughtShown;
  #due = false;
  #growing = false;
  /** Milliseconds that it took to show this. */
  #took = 0;

  constructor(message, regenerate) {
    this.message = message;
    this.#shown = new Markdown(this.#body);
    this.#thoughtShown = new Markdown(this.#thought);
    this.#reasoning = h(
      "details",
      { class: "reasoning", hidden: true },
      this.#title,
      this.#thought,
    );
    this.again = h(
      "button",
      {
        type: "button",
        class: "small",
        hidden: true,
        "aria-label": "Regenerate the answer",
        click: regenerate,
      },
      "Regenerate",
    );
    this.node = h(
      "li",
      { class: "message answer" },
      h("h2", { class: "unseen" }, "Answer"),
      this.#reasoning,
      this.#body,
      this.#facts,
      h(
        "div",
        { class: "actions" },
        this.again,
        copyButton("the answer", () => message.content),
      ),
    );
  }

  /** Something was added: shown soon, and the later the longer that takes, so that there is time
   * for the rest of the page. */
  grow() {
    if (this.#due) return;
    this.#due = true;
    const show = () => {
      this.#due = false;
      // It may have ended meanwhile.
      if (this.#growing) this.show("Answering …");
    };
    setTimeout(() => requestAnimationFrame(show), 4 * this.#took);
  }

  /** Shows the message as it is; `state` says what is done while it grows. */
  show(state = "") {
    const began = performance.now();
    const { content, reasoning, thoughtFor, note } = this.message;
    const growing = state !== "";
    this.#growing = growing;
    this.node.classList.toggle("growing", growing);
    this.node.setAttribute("aria-busy", growing);
    this.#shown.set(content);
    this.#reasoning.hidden = !reasoning;
    if (reasoning) {
      this.#thoughtShown.set(reasoning);
      const done = thoughtFor !== undefined;
      this.#title.textContent = done ? `Thought for ${seconds(thoughtFor)}` : "Thinking …";
    }
    const empty = !growing && content === "" ? "The answer is empty." : "";
    const facts = [measured(this.message), note, empty].filter(Boolean);
    this.#facts.textContent = state || facts.join(" · ");
    this.#took = performance.now() - began;
  }
}
