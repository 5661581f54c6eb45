// The plan: which device runs what, when, and why; as the server tells it, with nothing added.

import * as api from "/page/api.js";
import { byId, bytes, h, number, seconds, table } from "/page/dom.js";

const view = byId("view-plan");

/** Shows the plans of the models in memory. */
export async function show() {
  const { data } = await api.json("/v1/plan");
  view.replaceChildren(
    h("h2", {}, "Plan"),
    ...(data.length > 0
      ? data.map(plan)
      : [h("p", {}, "No model is in memory: load one under Models, or begin to chat.")]),
  );
}

function plan(one) {
  const { predicted, timeline, devices } = one;
  const rated = devices.every(({ rates }) => rates.measured);
  return h(
    "article",
    { class: "panel" },
    h("h3", {}, one.model),
    h(
      "p",
      { class: "quiet" },
      "The pictures show what the cost model expects of each device, from rates that " +
        `${rated ? "were measured on this machine" : "are typical of its kind, not measured"}; ` +
        "under them stands what runs took.",
    ),
    lanes(
      `Reading a prompt: first token expected after ${seconds(predicted.ttft_s)}`,
      timeline.prefill,
      measured(one, "prefill"),
    ),
    lanes(
      `Writing a token: ${speed(predicted.decode_tps)} a second expected`,
      timeline.decode,
      measured(one, "decode"),
    ),
    stages(one),
    together(one),
    memory(one),
    table(
      "Devices",
      ["Device", "Kind", "What it is", "8-bit arithmetic", "Reads weights", "Rates"],
      devices.map((device) => [
        device.name,
        device.kind,
        device.description,
        `${(device.rates.int8_ops_per_s / 1e12).toFixed(2)} TOPS`,
        `${bytes(device.rates.read_bytes_per_s)}/s`,
        device.rates.measured ? "measured" : "typical",
      ]),
      [3, 4],
    ),
    one.reasons.length === 0
      ? null
      : h("ul", { class: "notes" }, ...one.reasons.map((reason) => h("li", {}, reason))),
  );
}

const speed = (tps) => (tps >= 100 ? number(Math.round(tps)) : tps.toPrecision(3));

/** What runs of a stage took so far, of the most rows that ran. */
function measured({ stages }, name) {
  const ran = ({ stage, segments }) =>
    stage === name && segments.every((segment) => segment.measured_s !== null);
  const last = stages.filter(ran).at(-1);
  if (!last) return "Nothing was measured yet.";
  const took = last.segments.reduce((sum, segment) => sum + segment.measured_s, 0);
  return `Measured: ${number(last.m)} ${last.m === 1 ? "row" : "rows"} took ${seconds(took)}.`;
}

/** A lane per device that takes part, and a bar for each time it works. */
function lanes(title, slots, note) {
  const end = Math.max(...slots.map((slot) => slot.end_s), Number.MIN_VALUE);
  const names = [...new Set(slots.map((slot) => slot.device))];
  const kinds = new Map(names.map((name, index) => [name, index % 4]));
  const lane = (name) =>
    h(
      "div",
      { class: "lane" },
      h("span", { class: "name" }, name),
      h(
        "div",
        { class: "track" },
        ...slots
          .filter((slot) => slot.device === name)
          .map((slot) => bar(slot, end, kinds.get(name))),
      ),
    );
  const words = slots.map((slot) => `${slot.device}: ${told(slot)}`).join("; ");
  return h(
    "div",
    { class: "lanes" },
    h("p", { class: "title" }, title),
    h(
      "div",
      { class: "picture", role: "img", "aria-label": `${title}. ${words}` },
      ...names.map(lane),
      h("div", { class: "axis" }, h("span", {}, "0"), h("span", {}, seconds(end))),
    ),
    h("p", { class: "quiet" }, note),
  );
}

function told({ label, start_s: start, end_s: end, measured_s: measured }) {
  const took = `${label}, ${seconds(end - start)} expected`;
  return measured === null ? took : `${took}, ${seconds(measured)} measured`;
}

function bar(slot, end, kind) {
  const made = h("span", { class: `bar kind-${kind}`, title: told(slot) }, slot.label);
  made.style.left = `${(slot.start_s / end) * 100}%`;
  made.style.width = `${((slot.end_s - slot.start_s) / end) * 100}%`;
  return made;
}

function stages(one) {
  const rows = one.stages.flatMap(({ stage, m, segments }) =>
    segments.map((segment) => {
      const { nodes } = segment;
      const which =
        nodes.length > 1 ? `${nodes[0]} … ${nodes.at(-1)} (${nodes.length})` : nodes.join();
      const took = segment.measured_s === null ? "not yet" : seconds(segment.measured_s);
      return [
        stage,
        number(m),
        segment.device,
        which,
        seconds(segment.predicted_s),
        took,
        segment.why,
      ];
    }),
  );
  return table(
    "Which device runs which part",
    ["Stage", "Rows", "Device", "Nodes", "Expected", "Measured", "Why"],
    rows,
    [1, 4, 5],
  );
}

function together({ cooperative: both }) {
  return (
    both &&
    h(
      "p",
      {},
      `${both.devices.join(" and ")} read a prompt together, ` +
        `${both.rows.join(" and ")} rows in turns: ${both.why}`,
    )
  );
}

function memory({ memory, kv }) {
  const rows = memory.map((one) => [
    one.memory,
    one.weights.map(({ layout, bytes: size }) => `${layout}: ${bytes(size)}`).join(", "),
    bytes(one.limit_bytes),
  ]);
  rows.push([
    "keys and values",
    `${number(kv.context)} tokens in ${kv.dtype}: ${bytes(kv.bytes)} at most`,
    "",
  ]);
  return table("Memory", ["Memory", "What lies there", "Limit"], rows, [2]);
}
