// The page in a browser: `node page.test.mjs BASE KEYED_BASE`. At BASE a server with the models
// `tiny` and `other`, of which one fits into memory; it is ended by the last test. At KEYED_BASE one
// that wants the key `secret`. Packages are those of the folder that TANGOR_TEST_PAGE names, and
// pictures of the page are left there, in `shots`.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, before, beforeEach, test } from "node:test";

const packages = process.env.TANGOR_TEST_PAGE;
const require = createRequire(join(packages, "package.json"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [base, keyed] = process.argv.slice(2);

let browser;
let context;
let page;
/** What a page must not do, of the page that is tested. */
let wrong = [];
/** The bodies of requests for answers. */
let asked = [];

before(async () => {
  const args = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ];
  browser = await chromium.launch({
    executablePath: "/usr/bin/chromium",
    args,
    timeout: 180_000,
  });
});

after(() => browser?.close());

beforeEach(async () => {
  await context?.close();
  context = await browser.newContext({
    viewport: { width: 1200, height: 800 },
  });
  page = await fresh(base);
  // Whoever asks before the models are known leaves the choice to the server.
  await page.locator("#model option").first().waitFor({ state: "attached" });
});

/** A new page, watched. */
async function fresh(at) {
  const made = await context.newPage();
  // What ends well ends early, however slow the machine.
  made.setDefaultTimeout(120_000);
  wrong = [];
  asked = [];
  made.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(`${at}/`) && !url.startsWith("data:") && !url.startsWith("blob:"))
      wrong.push(url);
    if (url.endsWith("/v1/chat/completions")) asked.push(request.postDataJSON());
  });
  made.on("pageerror", (error) => wrong.push(`${error}`));
  made.on("dialog", (dialog) => {
    wrong.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  made.on("console", (message) => {
    // A status that is an error is what some tests are about.
    const status = message.text().startsWith("Failed to load resource");
    if (message.type() === "error" && !status) wrong.push(message.text());
  });
  await made.goto(at);
  return made;
}

const fine = () => assert.deepEqual(wrong, []);
const prompt = () => page.getByLabel("Your message", { exact: true });
const answers = () => page.locator(".answer");
const facts = (index) => answers().nth(index).locator(".facts");

/** Sets a setting. */
async function set(label, value) {
  if (!(await page.locator("#settings").isVisible()))
    await page.getByRole("button", { name: "Settings" }).click();
  await page.getByLabel(label).fill(value);
}

/** Asks, and waits for the end of the answer. */
async function ask(text) {
  await prompt().fill(text);
  await prompt().press("Enter");
  await page.locator(".question").last().waitFor();
  await page.locator("#send", { hasText: "Send" }).waitFor();
}

/** The answer to whatever is asked next: these pieces. */
async function scripted(deltas, end = {}) {
  const chunk = (fields) => `data: ${JSON.stringify(fields)}\n\n`;
  const timings = {
    prompt_n: 26,
    predicted_n: 181,
    predicted_per_second: 42.7,
    ttft_ms: 212,
    ...end.timings,
  };
  const body =
    deltas.map((delta) => chunk({ choices: [{ index: 0, delta }] })).join("") +
    chunk({
      choices: [{ index: 0, delta: {}, finish_reason: "stop" }],
      timings,
    }) +
    chunk({
      choices: [],
      usage: {
        prompt_tokens: 90,
        prompt_tokens_details: { cached_tokens: 64 },
      },
    }) +
    "data: [DONE]\n\n";
  await page.route(
    "**/v1/chat/completions",
    (route) => route.fulfill({ contentType: "text/event-stream", body }),
    { times: 1 },
  );
}

/** Waits for all that moves to stand still: axe reads a link on its way in as one that skips. */
const still = () =>
  page.evaluate(() =>
    Promise.all(
      document
        .getAnimations()
        .filter((moving) => moving.effect.getComputedTiming().endTime !== Infinity)
        .map((moving) => moving.finished.catch(() => {})),
    ),
  );

/** What axe finds wrong with the page as it is. */
async function accessible(what) {
  await still();
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() =>
    globalThis.axe.run(document, {
      runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    }),
  );
  const told = violations.map(
    ({ id, nodes }) => `${what}: ${id}: ${nodes.map((node) => node.html).join(" ")}`,
  );
  assert.deepEqual(told, []);
}

const shot = (name) => page.screenshot({ path: join(packages, "shots", `${name}.png`) });

test("an answer streams, and says how fast it came", async () => {
  await set("Longest answer", "1500");
  await page.evaluate(() => {
    globalThis.lengths = new Set();
    const look = () => {
      const body = document.querySelector(".answer.growing > .body");
      if (body) globalThis.lengths.add(body.textContent.length);
    };
    new MutationObserver(look).observe(document.getElementById("messages"), {
      childList: true,
      subtree: true,
    });
  });
  await ask("Hello");
  const lengths = await page.evaluate(() => [...globalThis.lengths]);
  assert.ok(lengths.length > 3, `the answer came at once: ${lengths}`);
  assert.match(
    await facts(0).textContent(),
    /^tiny · [\d.]+ tokens\/s · first token after [\d.]+ [mµ]?s · 1,500 tokens/,
  );
  assert.equal(asked[0].stream, true);
  assert.deepEqual(asked[0].stream_options, { include_usage: true });
  assert.equal(asked[0].max_tokens, 1500);
  assert.match(await page.locator("#said").textContent(), /The answer is complete\.$/);
  fine();
});

test("Escape stops an answer, what is there of it stays, and the conversation goes on", async () => {
  await set("Longest answer", "1900");
  await prompt().fill("Hello");
  await prompt().press("Enter");
  await page.waitForFunction(
    () => document.querySelector(".answer > .body")?.textContent.length > 5,
  );
  await page.keyboard.press("Escape");
  await page.locator("#send", { hasText: "Send" }).waitFor();
  assert.match(await facts(0).textContent(), /stopped/);
  const kept = await answers().first().locator(".body").last().textContent();
  assert.ok(kept.length > 5);
  await page.waitForFunction(async () => {
    const { all_models_loaded: all } = await (await fetch("/v1/health")).json();
    return all.every((one) => !one.is_busy);
  });
  await set("Longest answer", "5");
  await ask("And now?");
  assert.equal(asked[1].messages.length, 3);
  fine();
});

test("the button stops as well", async () => {
  await set("Longest answer", "1900");
  await prompt().fill("Hello");
  await page.getByRole("button", { name: "Send" }).click();
  await page.getByRole("button", { name: "Stop" }).click();
  await page.locator("#send", { hasText: "Send" }).waitFor();
  fine();
});

test("an answer is made again with the next seed, and says when it is the same", async () => {
  await set("Longest answer", "60");
  await set("Temperature", "5");
  await ask("Hello");
  const first = await answers().first().locator(".body").last().textContent();
  await page.getByRole("button", { name: "Regenerate the answer" }).click();
  await page.locator("#send", { hasText: "Send" }).waitFor();
  assert.deepEqual(
    asked.map(({ seed }) => seed),
    [undefined, 1],
  );
  assert.deepEqual(asked[1].messages, asked[0].messages);
  assert.equal(await answers().count(), 1);
  assert.notEqual(await answers().first().locator(".body").last().textContent(), first);
  await set("Temperature", "0");
  for (const _ of [1, 2]) {
    await page.getByRole("button", { name: "Regenerate the answer" }).click();
    await page.locator("#send", { hasText: "Send" }).waitFor();
  }
  assert.match(await facts(0).textContent(), /the same again: .*temperature/);
  fine();
});

test("a message is edited, and the conversation goes on from there", async () => {
  await set("Longest answer", "5");
  await set("System prompt", "You are brief.");
  await ask("One");
  await ask("Two");
  await page.getByRole("button", { name: "Edit your message" }).first().click();
  const area = page.getByRole("textbox", { name: "Edit your message" });
  assert.equal(await area.inputValue(), "One");
  await area.press("Escape");
  assert.equal(await answers().count(), 2);
  await page.getByRole("button", { name: "Edit your message" }).first().click();
  await area.fill("Three");
  await area.press("Enter");
  await page.locator("#send", { hasText: "Send" }).waitFor();
  assert.deepEqual(asked[2].messages, [
    { role: "system", content: "You are brief." },
    { role: "user", content: "Three" },
  ]);
  assert.equal(await answers().count(), 1);
  assert.equal(await page.locator(".question").count(), 1);
  fine();
});

test("another model answers when it is chosen, and is listed as in memory", async () => {
  await set("Longest answer", "5");
  await ask("Hello");
  await page.getByLabel("Model", { exact: true }).selectOption("other");
  await ask("And you?");
  assert.deepEqual(
    asked.map(({ model }) => model),
    ["tiny", "other"],
  );
  assert.match(await facts(1).textContent(), /^other/);
  const group = page.locator("#model optgroup[label='In memory'] option");
  await page.waitForFunction(
    () => document.querySelector("#model optgroup option")?.value === "other",
  );
  assert.deepEqual(await group.allTextContents(), ["other"]);
  await page.getByRole("link", { name: "Models" }).click();
  await page.getByRole("button", { name: "Let go other" }).click();
  await page.getByRole("button", { name: "Load tiny" }).click();
  await page.getByRole("button", { name: "Let go tiny" }).waitFor();
  fine();
});

test("what is sent is what is set, and what cannot be is refused with its reason", async () => {
  const values = {
    Temperature: "0.5",
    "Top p": "0.9",
    "Top k": "40",
    "Min p": "0.05",
    "Repetition penalty": "1.1",
    Seed: "7",
    "Longest answer": "3",
  };
  for (const [label, value] of Object.entries(values)) await set(label, value);
  await ask("Hello");
  const { temperature, top_p, top_k, min_p, repetition_penalty, seed, max_tokens } = asked[0];
  assert.deepEqual(
    { temperature, top_p, top_k, min_p, repetition_penalty, seed, max_tokens },
    {
      temperature: 0.5,
      top_p: 0.9,
      top_k: 40,
      min_p: 0.05,
      repetition_penalty: 1.1,
      seed: 7,
      max_tokens: 3,
    },
  );
  await set("Top p", "2");
  assert.equal(await page.locator("#top_p-hint").textContent(), "this must be 0 to 1");
  await ask("Again");
  assert.equal(asked[1].top_p, undefined);
  fine();
});

test("a model that is gone is said, with what to do, and trying again works", async () => {
  await set("Longest answer", "5");
  await page.evaluate(() => {
    const gone = document.createElement("option");
    gone.value = gone.textContent = "gone";
    document.getElementById("model").append(gone);
  });
  await page.getByLabel("Model", { exact: true }).selectOption("gone");
  await ask("Hello");
  const alert = page.locator("#trouble");
  assert.match(
    await alert.textContent(),
    /"gone" is not on this machine.*Choose another model above/,
  );
  assert.equal(await answers().count(), 0);
  await page.getByLabel("Model", { exact: true }).selectOption("tiny");
  await page.getByRole("button", { name: "Try again" }).click();
  await answers().first().waitFor();
  await page.locator("#send", { hasText: "Send" }).waitFor();
  assert.equal(await alert.textContent(), "");
  fine();
});

test("a connection that breaks leaves what arrived, and says so", async () => {
  const body = `data: ${JSON.stringify({ choices: [{ delta: { content: "Half an" } }] })}\n\n`;
  await page.route(
    "**/v1/chat/completions",
    (route) => route.fulfill({ contentType: "text/event-stream", body }),
    { times: 1 },
  );
  await ask("Hello");
  assert.match(await page.locator("#trouble").textContent(), /ended before the answer did/);
  assert.match(await answers().first().textContent(), /Half an/);
  assert.match(await facts(0).textContent(), /ended early/);
  fine();
});

test("what a model writes runs nothing, fetches nothing and leads nowhere unseen", async () => {
  const content = [
    '<img src=x onerror="alert(1)"><script>alert(2)</script>',
    "![picture](http://192.0.2.1/a.png) ![own](/v1/halt) [own](/v1/halt) [bad](javascript:alert(3))",
    '[good](https://example.org/a) <a href="javascript:alert(4)">raw</a>',
    '<form action="/v1/halt"><button>raw</button></form><style>body{display:none}</style>',
    "| a | b |\n|---|---|\n| 1 | <b onclick=alert(5)>2</b> |",
    "```html\n<script>alert(6)</script>\n```",
  ].join("\n\n");
  await scripted([{ content }]);
  await ask("Be bad");
  const body = answers().first().locator(".body").last();
  assert.equal(
    await body.locator("img, script, form, style, iframe, [onclick], [onerror]").count(),
    0,
  );
  const links = await body
    .locator("a[href]")
    .evaluateAll((all) => all.map((link) => [link.textContent, link.href, link.rel]));
  assert.deepEqual(links, [
    ["picture", "http://192.0.2.1/a.png", "noopener noreferrer"],
    ["good", "https://example.org/a", "noopener noreferrer"],
  ]);
  assert.match(await body.textContent(), /<script>alert\(2\)<\/script>/);
  assert.equal(await body.locator("table").count(), 1);
  for (const link of await body.locator("a:not([href])").all()) await link.click();
  // The browser keeps what slips through from running and from being fetched.
  const ran = await page.evaluate(
    () =>
      new Promise((resolve) => {
        const picture = new Image();
        picture.onload = picture.onerror = (event) => resolve(event.type);
        picture.src = "/v1/halt";
      }),
  );
  assert.equal(ran, "error");
  assert.equal((await fetch(`${base}/live`)).status, 200);
  const blocked = wrong.filter((one) => one.includes("Content Security Policy"));
  assert.deepEqual(wrong, blocked);
  assert.equal(blocked.length, 1);
});

test("code can be copied, and thoughts are folded", async () => {
  await context.grantPermissions(["clipboard-read", "clipboard-write"]);
  await scripted([
    { reasoning_content: "They want " },
    { reasoning_content: "a loop." },
    { content: "Here:\n\n```rust\nfor i in 0..3 {}" },
    { content: "\n```\n\nDone." },
  ]);
  await ask("A loop");
  const details = page.locator(".reasoning");
  assert.equal(await details.evaluate((node) => node.open), false);
  assert.match(await details.locator("summary").textContent(), /^Thought for /);
  await details.locator("summary").click();
  assert.match(await details.textContent(), /They want a loop\./);
  await page.getByRole("button", { name: "Copy the code" }).click();
  await page.getByText("Copied").waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "for i in 0..3 {}");
  assert.match(
    await facts(0).textContent(),
    /42\.7 tokens\/s · first token after 212 ms · 181 tokens · 64 of 90/,
  );
  fine();
});

test("conversations stay over a visit, can be exported, and cleared", async () => {
  await set("Longest answer", "5");
  await ask("The first one");
  await page.getByRole("button", { name: "New conversation" }).click();
  await ask("The second one");
  await page.reload();
  await page.locator(".question", { hasText: "The second one" }).waitFor();
  await page.getByRole("button", { name: "The first one", exact: true }).click();
  assert.equal(await page.locator(".question .said").textContent(), "The first one");
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    page.getByRole("button", { name: "Export all" }).click(),
  ]);
  const exported = JSON.parse(readFileSync(await download.path(), "utf8"));
  const firsts = exported.conversations.map(({ messages }) => messages[0].content);
  assert.deepEqual(firsts.sort(), ["The first one", "The second one"]);
  await page.getByRole("button", { name: "Remove The first one" }).click();
  await page.getByRole("button", { name: "Remove", exact: true }).click();
  await page.getByRole("button", { name: "Clear all" }).click();
  await page.getByRole("button", { name: "Cancel" }).click();
  assert.equal(await page.locator("#talks li").count(), 1);
  await page.getByRole("button", { name: "Clear all" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Clear all" }).click();
  await page.waitForFunction(() => document.querySelectorAll("#talks li").length === 0);
  assert.deepEqual(
    await page.evaluate(() => Object.keys(localStorage).filter((key) => key.includes("talk"))),
    [],
  );
  fine();
});

test("a model is fetched with its progress, and a server that is offline says so", async () => {
  await page.getByRole("link", { name: "Models" }).click();
  await page.getByLabel("Name of the model").fill("smollm2");
  await page.getByRole("button", { name: "Fetch" }).click();
  const alert = page.locator("#pull-said");
  await alert.locator(".trouble").waitFor();
  assert.match(await alert.textContent(), /offline/);
  const event = (name, data) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;
  const body =
    event("progress", { percent: 0 }) +
    event("progress", {
      file: "model.gguf",
      bytes_downloaded: 49e6,
      bytes_total: 98e6,
      percent: 50,
    });
  await page.route(
    "**/api/v1/pull",
    (route) => route.fulfill({ contentType: "text/event-stream", body }),
    { times: 1 },
  );
  await page.evaluate(() => {
    globalThis.words = [];
    const place = document.getElementById("pull-words");
    new MutationObserver(() => globalThis.words.push(place.textContent)).observe(place, {
      childList: true,
      characterData: true,
      subtree: true,
    });
  });
  await page.getByRole("button", { name: "Fetch" }).click();
  await alert.locator(".trouble").waitFor();
  const words = await page.evaluate(() => globalThis.words);
  assert.ok(words.includes("model.gguf: 49.0 MB of 98.0 MB"), words.join("; "));
  assert.match(await alert.textContent(), /ended before the model was here/);
  fine();
});

test("the plan and the metrics say what the server says", async () => {
  await set("Longest answer", "5");
  await ask("Hello");
  const {
    data: [plan],
  } = await (await fetch(`${base}/v1/plan`)).json();
  await page.getByRole("link", { name: "Plan" }).click();
  const view = page.locator("#view-plan");
  await view.locator(".bar").first().waitFor();
  const bars = plan.timeline.prefill.length + plan.timeline.decode.length;
  assert.equal(await view.locator(".bar").count(), bars);
  const text = await view.textContent();
  for (const word of [
    plan.model,
    plan.devices[0].name,
    plan.devices[0].description,
    ...plan.stages.flatMap(({ segments }) => segments.map(({ why }) => why)),
  ]) {
    assert.ok(text.includes(word), word);
  }
  await page.getByRole("link", { name: "Metrics" }).click();
  const metrics = page.locator("#view-metrics");
  await metrics.getByRole("row", { name: /^\/chat\/completions 200/ }).waitFor();
  const stats = await (await fetch(`${base}/v1/stats`)).json();
  const tile = (name) =>
    metrics.locator(".tiles div", { hasText: name }).locator("dd").textContent();
  assert.equal(await tile("answers"), `${stats.request_count_total}`);
  assert.equal(
    await tile("tokens written"),
    new Intl.NumberFormat("en").format(stats.output_tokens_total),
  );
  fine();
});

test("everything can be done with the keyboard, and what has the focus is seen", async () => {
  await page.evaluate(() => localStorage.setItem("tangor.settings", '{"max_tokens": 5}'));
  await page.reload();
  await page.locator("#model option").first().waitFor({ state: "attached" });
  const focus = () =>
    page.evaluate(() => {
      const { activeElement: one } = document;
      const style = getComputedStyle(one.id === "prompt" ? one.closest(".box") : one);
      const seen =
        (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0) ||
        style.boxShadow !== "none";
      return { name: one.id || one.textContent.trim(), seen };
    });
  const order = [];
  for (let presses = 0; presses < 14 && order.at(-1) !== "send"; presses += 1) {
    await page.keyboard.press("Tab");
    const { name, seen } = await focus();
    assert.ok(seen, `the focus on ${name} is not seen`);
    order.push(name);
  }
  assert.deepEqual(order, [
    "skip",
    "new-talk",
    "Chat",
    "Models",
    "Plan",
    "Metrics",
    "Interface",
    "key",
    "model",
    "tune",
    "log",
    "prompt",
    "send",
  ]);
  await page.reload();
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  assert.equal((await focus()).name, "prompt");
  await page.keyboard.type("one");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("two");
  await page.keyboard.press("Enter");
  await answers().first().waitFor();
  await page.locator("#send", { hasText: "Send" }).waitFor();
  assert.equal(asked[0].messages[0].content, "one\ntwo");
  assert.equal((await focus()).name, "prompt");
  await page.getByRole("button", { name: "Settings" }).focus();
  await page.keyboard.press("Enter");
  assert.equal((await focus()).name, "set-system");
  await page.keyboard.press("Escape");
  assert.equal((await focus()).name, "tune");
  fine();
});

test("a server that wants a key gets it, for this tab alone", async () => {
  page = await fresh(keyed);
  const dialog = page.getByRole("dialog");
  await dialog.waitFor();
  await accessible("key");
  await page.getByLabel("API key", { exact: true }).last().fill("wrong");
  await page.keyboard.press("Enter");
  await page.getByText("is not the one that this needs").waitFor();
  await page.getByLabel("API key", { exact: true }).last().fill("secret");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.getElementById("model").value === "tiny");
  await set("Longest answer", "5");
  await ask("Hello");
  assert.equal(await answers().count(), 1);
  const kept = await page.evaluate(() => [
    JSON.stringify({ ...localStorage }).includes("secret"),
    sessionStorage.getItem("tangor.key"),
  ]);
  assert.deepEqual(kept, [false, "secret"]);
  fine();
});

/** A conversation that looks as conversations do. */
async function lively() {
  await scripted([
    { reasoning_content: "A short history, then code." },
    {
      content:
        "A **tangor** is a hybrid of the mandarin and the sweet orange. The best known one is the *temple orange*:\n\n" +
        "1. It was found in Jamaica around 1900.\n2. It peels as easily as a mandarin.\n3. It tastes of both.\n\n" +
        "| fruit | sugar | acid |\n|---|---:|---:|\n| tangor | 11 % | 1.1 % |\n| orange | 9 % | 0.9 % |\n\n" +
        "In Rust one would write:\n\n```rust\nfn cross(a: &Fruit, b: &Fruit) -> Fruit {\n    Fruit { sugar: (a.sugar + b.sugar) / 2.0, ..*a }\n}\n```\n\n" +
        "> Hybrids take the best of both, as `--device hybrid` does.",
    },
  ]);
  await ask("What is a tangor, and how would you cross two fruits in Rust?");
  await scripted([
    {
      content: "Yes. It is sweet enough to be eaten fresh, and sour enough for juice.",
    },
  ]);
  await ask("Can I eat it?");
}

test("the page is accessible and calm, in light and dark, and as narrow as a telephone", async () => {
  await page.addInitScript(() => {
    globalThis.shifted = 0;
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries())
        if (!entry.hadRecentInput) globalThis.shifted += entry.value;
    }).observe({ type: "layout-shift", buffered: true });
  });
  await page.reload();
  await page.locator("#model option").first().waitFor({ state: "attached" });
  await shot("empty");
  await lively();
  assert.ok((await page.evaluate(() => globalThis.shifted)) < 0.02, "the layout shifts");
  const ground = () =>
    page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number));
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    const light = (await ground()).every((value) => value > 200);
    assert.equal(light, colorScheme === "light");
    await page.setViewportSize({ width: 1200, height: 800 });
    for (const [view, sign] of [
      ["chat", ".answer"],
      ["models", "table"],
      ["plan", ".bar"],
      ["metrics", ".tiles"],
    ]) {
      await page.goto(`${base}/#${view}`);
      await page.locator(`#view-${view} ${sign}`).first().waitFor();
      await accessible(`${view}, ${colorScheme}`);
      await shot(`${view}-${colorScheme}`);
    }
    await page.goto(`${base}/#chat`);
    await page.getByRole("button", { name: "Settings" }).click();
    await accessible(`settings, ${colorScheme}`);
    await shot(`settings-${colorScheme}`);
    await page.getByRole("button", { name: "Settings" }).click();
    await page.setViewportSize({ width: 360, height: 720 });
    for (const view of ["chat", "models", "plan", "metrics"]) {
      await page.goto(`${base}/#${view}`);
      await still();
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(wide <= 360, `${view} is ${wide} wide`);
      await shot(`${view}-narrow-${colorScheme}`);
    }
    await accessible(`narrow, ${colorScheme}`);
    await page.getByRole("button", { name: "Menu" }).click();
    await accessible(`menu, ${colorScheme}`);
    await shot(`menu-narrow-${colorScheme}`);
    await page.keyboard.press("Escape");
    assert.equal(
      await page.getByRole("button", { name: "Menu" }).getAttribute("aria-expanded"),
      "false",
    );
  }
  fine();
});

test("the interface can be read", async () => {
  await page.goto(`${base}/docs`);
  const route = page.locator(".route", { hasText: "/v1/chat/completions" });
  await route.locator("summary").click();
  assert.match(await route.textContent(), /Also \/api\/v1\/chat\/completions.*temperature/s);
  const document = await (await fetch(`${base}/openapi.json`)).json();
  const shown = await page
    .locator(".route")
    .evaluateAll((all) => all.map((one) => one.textContent).join(" "));
  for (const path of Object.keys(document.paths)) assert.ok(shown.includes(path), path);
  await accessible("docs");
  await shot("docs-light");
  await page.emulateMedia({ colorScheme: "dark" });
  await accessible("docs, dark");
  await page.setViewportSize({ width: 360, height: 720 });
  assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= 360);
  await shot("docs-narrow-dark");
  fine();
});

test("a server that has gone is said, with what to do", async () => {
  assert.equal((await fetch(`${base}/v1/halt`)).status, 200);
  await page.waitForFunction(() =>
    fetch("/live").then(
      () => false,
      () => true,
    ),
  );
  await ask("Are you there?");
  assert.match(
    await page.locator("#trouble").textContent(),
    /does not answer.*tangor serve is still running/,
  );
  assert.equal(await page.locator(".question .said").textContent(), "Are you there?");
  await page.getByRole("link", { name: "Plan" }).click();
  await page.locator("#view-plan .trouble").waitFor();
  await shot("gone");
});
