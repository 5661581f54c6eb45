// The OpenAPI document, to read.

import * as api from "/page/api.js";
import { byId, copyButton, h, table } from "/page/dom.js";

/** The document's operations: each once, with every path that leads to it, by interface. */
function operations({ paths }) {
  const all = new Map();
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      // The paths of one route differ in what stands before it, and in the number of their ids.
      const name = `${operation.tags[0]} ${operation.operationId.replace(/\d+$/, "")}`;
      const known = all.get(name) ?? { method, operation, paths: [] };
      known.paths.push(path);
      all.set(name, known);
    }
  }
  return Map.groupBy(all.values(), ({ operation }) => operation.tags[0]);
}

/** A schema with its reference followed. */
function follow(document, schema) {
  const name = schema?.$ref?.split("/").at(-1);
  return name ? document.components.schemas[name] : schema;
}

/** What a value may be, in a few words. */
function kind(schema) {
  if (schema === true || !schema) return "anything";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.enum) return schema.enum.join(", ");
  const some = schema.anyOf ?? schema.oneOf;
  if (some)
    return some
      .filter(({ type }) => type !== "null")
      .map(kind)
      .join(" or ");
  const types = [schema.type ?? "anything"].flat().filter((type) => type !== "null");
  return types
    .map((type) => (type === "array" ? `list of ${kind(schema.items)}` : type))
    .join(" or ");
}

function fields(document, operation) {
  const body = operation.requestBody?.content["application/json"].schema;
  const schema = follow(document, body);
  if (!schema?.properties) return null;
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties).map(([name, own]) => [
    h("code", {}, name),
    kind(own),
    required.has(name) ? "yes" : "",
    own.description ?? "",
  ]);
  return table("Fields of its body", ["Field", "Kind", "Required", "What it says"], rows);
}

function curl(method, path, body) {
  const verb = method === "get" || (method === "post" && body) ? "" : `-X ${method.toUpperCase()} `;
  return `curl ${verb}${location.origin}${path}${body ? " -d '{…}'" : ""}`;
}

function operation(document, { method, operation: one, paths }) {
  const command = curl(method, paths[0], one.requestBody);
  return h(
    "details",
    { class: "route" },
    h(
      "summary",
      {},
      h("span", { class: `method ${method}` }, method.toUpperCase()),
      h("code", {}, paths[0]),
      h("span", { class: "about" }, one.summary),
    ),
    paths.length > 1 ? h("p", { class: "quiet" }, "Also ", paths.slice(1).join(", ")) : null,
    one.security ? h("p", { class: "quiet" }, "Needs the API key.") : null,
    h(
      "figure",
      { class: "code" },
      h(
        "figcaption",
        {},
        h("span", {}, "curl"),
        copyButton("the command", () => command),
      ),
      h("pre", { tabindex: "0", role: "region", "aria-label": "Command" }, h("code", {}, command)),
    ),
    fields(document, one),
  );
}

async function show() {
  const place = byId("routes");
  try {
    const document = await api.json("/openapi.json");
    const groups = [...operations(document)].map(([name, some]) =>
      h(
        "section",
        { "aria-label": name },
        h("h2", {}, name),
        ...some.map((one) => operation(document, one)),
      ),
    );
    place.replaceChildren(...groups);
  } catch (error) {
    place.replaceChildren(
      h(
        "div",
        { class: "trouble", role: "alert" },
        h("p", {}, h("strong", {}, error.message)),
        h("p", {}, error.advice ?? ""),
      ),
    );
  }
  place.setAttribute("aria-busy", "false");
}

show();
