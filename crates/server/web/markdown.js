// What models write, as elements. It is foreign text: HTML in it is shown as it is written, links
// lead to other places alone, and pictures are not fetched.

import { DOMPurify, Marked } from "/page/vendor.js";
import { copyButton, h } from "/page/dom.js";

const escape = (text) => text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

const marked = new Marked({ gfm: true, breaks: true }).use({
  renderer: {
    // Headings of an answer stand below the page's own.
    heading({ tokens, depth }) {
      const tag = `h${Math.min(depth + 2, 6)}`;
      return `<${tag}>${this.parser.parseInline(tokens)}</${tag}>`;
    },
    html: ({ text }) => escape(text),
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || "picture")}</a>`,
  },
});

const ALLOWED = {
  ALLOWED_TAGS: [
    "a",
    "b",
    "blockquote",
    "br",
    "code",
    "del",
    "em",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "i",
    "input",
    "li",
    "ol",
    "p",
    "pre",
    "s",
    "strong",
    "sub",
    "sup",
    "table",
    "tbody",
    "td",
    "th",
    "thead",
    "tr",
    "ul",
  ],
  ALLOWED_ATTR: ["align", "checked", "class", "disabled", "href", "start", "title", "type"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") tame(node);
  // The one kind of input that markdown has is a box that is ticked or not.
  if (node.tagName === "INPUT") {
    node.setAttribute("type", "checkbox");
    node.setAttribute("disabled", "");
    node.setAttribute("aria-label", node.hasAttribute("checked") ? "done" : "to do");
  }
});

/** Links open elsewhere and tell nothing; those to this very server would do something here. */
function tame(link) {
  let url = null;
  try {
    url = new URL(link.getAttribute("href") ?? "", location.href);
  } catch {
    // What is no address leads nowhere.
  }
  const outside =
    url && ["http:", "https:", "mailto:"].includes(url.protocol) && url.host !== location.host;
  if (!outside) return link.removeAttribute("href");
  link.setAttribute("target", "_blank");
  link.setAttribute("rel", "noopener noreferrer");
}

/** Text that grows, shown as markdown: only the blocks that changed are made anew. */
export class Markdown {
  #node;
  #blocks = [];

  constructor(node) {
    this.#node = node;
  }

  /** Shows a text; as it is written where it is nested deeper than its reader can follow. */
  set(text) {
    try {
      this.#make(marked.lexer(text));
    } catch {
      this.#blocks = [];
      this.#node.replaceChildren(code({ text }));
    }
  }

  #make(tokens) {
    const same = this.#blocks.findIndex((raw, index) => tokens[index]?.raw !== raw);
    const kept = same < 0 ? this.#blocks.length : same;
    while (this.#node.childNodes.length > kept) this.#node.lastChild.remove();
    for (const token of tokens.slice(kept)) this.#node.append(block(token));
    this.#blocks = tokens.map((token) => token.raw);
  }
}

function block(token) {
  if (token.type === "code") return code(token);
  const made = DOMPurify.sanitize(marked.parser([token]), ALLOWED);
  for (const pre of made.querySelectorAll("pre")) {
    const lang = pre.firstChild?.className?.replace("language-", "");
    pre.replaceWith(code({ text: pre.textContent.replace(/\n$/, ""), lang }));
  }
  for (const table of made.querySelectorAll("table")) {
    const scrolls = h("div", {
      class: "scrolls",
      tabindex: "0",
      role: "region",
      "aria-label": "Table",
    });
    table.replaceWith(scrolls);
    scrolls.append(table);
  }
  return h("div", { class: "block", dir: "auto" }, made);
}

function code({ text, lang }) {
  const name = (lang ?? "").match(/^\S*/)[0].slice(0, 24);
  const label = name ? `Code, ${name}` : "Code";
  return h(
    "figure",
    { class: "code", dir: "ltr", "aria-label": label },
    h(
      "figcaption",
      {},
      h("span", {}, name || "code"),
      copyButton("the code", () => text),
    ),
    h("pre", { tabindex: "0", role: "region", "aria-label": label }, h("code", {}, text)),
  );
}
