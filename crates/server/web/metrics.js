// What the server counts: the last answer, models, routes.

import * as api from "/page/api.js";
import { byId, bytes, h, number, seconds, table } from "/page/dom.js";

const view = byId("view-metrics");

/** Lines of Prometheus' text, as name, labels and value. */
export function parse(text) {
  const line = /^([a-z_0-9]+)(?:\{(.*)\})? (\S+)/i;
  const samples = text
    .split("\n")
    .filter((one) => one && !one.startsWith("#"))
    .map((one) => {
      const [, name, labels = "", value] = one.match(line) ?? [];
      const pairs = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)];
      const plain = (worded) => worded.replace(/\\(.)/g, (_, sign) => (sign === "n" ? "\n" : sign));
      return {
        name,
        labels: Object.fromEntries(pairs.map(([, key, own]) => [key, plain(own)])),
        value: +value,
      };
    });
  return samples.filter(({ name }) => name);
}

/** Shows them as they are now. */
export async function show() {
  const [stats, health, response] = await Promise.all([
    api.json("/v1/stats"),
    api.json("/v1/health"),
    api.request("/metrics"),
  ]);
  const text = await response.text();
  const samples = parse(text);
  const open = view.querySelector("details")?.open ?? false;
  view.replaceChildren(
    h("h2", {}, "Metrics"),
    last(stats, health),
    models(samples),
    routes(samples),
    h(
      "details",
      { open },
      h("summary", {}, "As Prometheus reads it"),
      h("pre", { tabindex: "0", role: "region", "aria-label": "Metrics as text" }, text),
    ),
  );
}

function last(stats, health) {
  const fact = (word, value) => h("div", {}, h("dt", {}, word), h("dd", {}, value));
  const answered = stats.request_count_total > 0;
  const memory = health.all_models_loaded.reduce((sum, one) => sum + one.memory_bytes, 0);
  return h(
    "dl",
    { class: "tiles" },
    fact("last first token", answered ? seconds(stats.time_to_first_token) : "none yet"),
    fact(
      "last speed",
      stats.tokens_per_second > 0 ? `${rate(stats.tokens_per_second)} tokens/s` : "none yet",
    ),
    fact("answers", number(stats.request_count_total)),
    fact("tokens read", number(stats.input_tokens_total)),
    fact("from the cache", number(stats.cache_tokens_total)),
    fact("tokens written", number(stats.output_tokens_total)),
    fact("models in memory", `${health.all_models_loaded.length} of ${health.max_models.llm}`),
    fact("their memory", bytes(memory)),
    fact("running for", uptime(health.uptime_s)),
    fact("version", health.version),
  );
}

const rate = (tps) => (tps >= 100 ? number(Math.round(tps)) : tps.toFixed(1));

function uptime(count) {
  const [hours, minutes] = [Math.floor(count / 3600), Math.floor((count % 3600) / 60)];
  return hours > 0 ? `${hours} h ${minutes} min` : minutes > 0 ? `${minutes} min` : `${count} s`;
}

function models(samples) {
  const of = (name, model) =>
    samples.find((one) => one.name === name && one.labels.gen_ai_request_model === model)?.value ??
    0;
  const mean = (name, model) => of(`${name}_sum`, model) / of(`${name}_count`, model);
  const names = samples
    .filter(({ name }) => name === "tangor_answers_total")
    .map(({ labels }) => labels.gen_ai_request_model);
  const perToken = (name) => 1 / mean("gen_ai_server_time_per_output_token_seconds", name);
  const rows = names
    .sort()
    .map((name) => [
      name,
      number(of("tangor_answers_total", name)),
      number(of("tangor_input_tokens_total", name)),
      number(of("tangor_cached_tokens_total", name)),
      number(of("tangor_output_tokens_total", name)),
      seconds(mean("gen_ai_server_time_to_first_token_seconds", name)),
      Number.isFinite(perToken(name)) ? rate(perToken(name)) : "",
    ]);
  return rows.length === 0
    ? h("p", {}, "No answer was completed yet.")
    : table(
        "By model",
        ["Model", "Answers", "Read", "Of these cached", "Written", "Mean first token", "Tokens/s"],
        rows,
        [1, 2, 3, 4, 5, 6],
      );
}

function routes(samples) {
  const rows = samples
    .filter(({ name }) => name === "tangor_requests_total")
    .sort((a, b) => b.value - a.value)
    .map(({ labels, value }) => [labels.route, labels.status, number(value)]);
  return table("Requests", ["Route", "Status", "Requests"], rows, [1, 2]);
}
