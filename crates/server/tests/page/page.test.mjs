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

/**
 * The answer to whatever is asked next begins with a text, and stays like that until `more` or
 * `end` is called in the page.
 */
const held = (begin) =>
  page.evaluate((begin) => {
    const real = globalThis.fetch;
    globalThis.fetch = (path, options) => {
      if (path !== "/v1/chat/completions") return real(path, options);
      globalThis.fetch = real;
      const bytes = (data) => new TextEncoder().encode(`data: ${data}\n\n`);
      const start = (stream) => {
        const { signal } = options;
        signal.addEventListener("abort", () => stream.error(signal.reason));
        const chunk = (content) => JSON.stringify({ choices: [{ index: 0, delta: { content } }] });
        globalThis.more = (content) => stream.enqueue(bytes(chunk(content)));
        globalThis.end = () => {
          stream.enqueue(bytes("[DONE]"));
          stream.close();
        };
        if (begin) globalThis.more(begin);
      };
      return Promise.resolve(new Response(new ReadableStream({ start })));
    };
  }, begin);

/** Asks for an answer that is held, and waits for its beginning. */
async function askHeld(text, begin) {
  await held(begin);
  await prompt().fill(text);
  await prompt().press("Enter");
  await answers().last().locator(".body", { hasText: begin }).waitFor();
}

/** Keeps a conversation in the browser, and shows it. */
async function kept(messages, talk = {}) {
  await page.evaluate(
    ([messages, talk]) => {
      const made = { id: "1-1", changed: 1, messages, ...talk };
      localStorage.setItem(`tangor.talk.${made.id}`, JSON.stringify(made));
      sessionStorage.setItem("tangor.open", made.id);
    },
    [messages, talk],
  );
  await page.reload();
  await ready();
}

const ready = (of = page) =>
  of.locator("#model option:not([value=''])").first().waitFor({ state: "attached" });
const idle = () => page.locator("#send", { hasText: "Send" }).waitFor();
const talkCount = () =>
  page.evaluate(() => Object.keys(localStorage).filter((key) => key.includes("talk")).length);

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
  // Pressed in the page: from here it could come when the answer has ended already.
  await page.evaluate(() => {
    const look = new MutationObserver(() => {
      if (!(document.querySelector(".answer > .body")?.textContent.length > 5)) return;
      look.disconnect();
      document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
    });
    look.observe(document.getElementById("messages"), { childList: true, subtree: true });
  });
  await ask("Hello");
  assert.match(await facts(0).textContent(), /stopped/);
  assert.match(await page.locator("#said").textContent(), /The answer was stopped\.$/);
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
  await held("Half an");
  await prompt().fill("Hello");
  await page.getByRole("button", { name: "Send" }).click();
  await page.getByRole("button", { name: "Stop" }).click();
  await idle();
  assert.match(await facts(0).textContent(), /stopped/);
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
  // Another program fetches one, with a name that is foreign text; the page is looked at again.
  const id = '"><img src=x onerror=alert(1)>';
  await page.route(
    "**/v1/models",
    async (route) => {
      const response = await route.fetch();
      const list = await response.json();
      await route.fulfill({ response, json: { ...list, data: [...list.data, { id, size: 1 }] } });
    },
    { times: 2 },
  );
  await page.evaluate(() => document.dispatchEvent(new Event("visibilitychange")));
  await page.locator("#model option", { hasText: id }).waitFor({ state: "attached" });
  await page.getByRole("link", { name: "Models" }).click();
  await page.locator("#view-models tbody th", { hasText: id }).waitFor();
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
  await set("System prompt", "You are brief.");
  await page.getByRole("button", { name: "Reset all" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Cancel" }).click();
  assert.equal(await page.getByLabel("System prompt").inputValue(), "You are brief.");
  await page.getByRole("button", { name: "Reset all" }).click();
  await page.getByRole("button", { name: "Reset", exact: true }).click();
  await page.waitForFunction(() => document.getElementById("set-system").value === "");
  assert.equal(await page.getByLabel("Temperature").inputValue(), "");
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

test("an answer that cannot be made again stays, and a question without one can be asked again", async () => {
  await scripted([{ content: "The good one" }]);
  await ask("Hello");
  const refuse = () => page.route("**/v1/chat/completions", (route) => route.abort(), { times: 1 });
  await refuse();
  await page.getByRole("button", { name: "Regenerate the answer" }).click();
  await page.locator("#trouble .trouble").waitFor();
  await idle();
  assert.match(await answers().first().textContent(), /The good one/);
  await page.reload();
  assert.match(await answers().first().textContent(), /The good one/);
  await refuse();
  await ask("And now?");
  await page.reload();
  await scripted([{ content: "Here it is" }]);
  await page.getByRole("button", { name: "Ask again" }).click();
  await answers().nth(1).locator(".body", { hasText: "Here it is" }).waitFor();
  await idle();
  assert.equal(await page.getByRole("button", { name: "Ask again" }).count(), 0);
  assert.equal(asked.at(-1).messages.length, 3);
  fine();
});

test("a draft stays until it is sent, and what came of an answer when its page is left", async () => {
  await prompt().fill("A long thought");
  await page.reload();
  await ready();
  assert.equal(await prompt().inputValue(), "A long thought");
  await askHeld("Hello", "Half an");
  await page.reload();
  await answers().first().waitFor();
  assert.match(await answers().first().textContent(), /Half an.*stopped/s);
  assert.equal(await prompt().inputValue(), "");
  fine();
});

test("who reads on is not disturbed, and what is removed while it grows stays away", async () => {
  await askHeld("The one", "Half an");
  await page.locator("#talks .talk").click();
  await page.evaluate(() => globalThis.more(" answer"));
  await answers().first().locator(".body", { hasText: "Half an answer" }).waitFor();
  await page.evaluate(() => globalThis.end());
  await idle();
  assert.doesNotMatch(await facts(0).textContent(), /stopped/);
  await askHeld("And now?", "Another");
  await page.getByRole("button", { name: "Remove The one" }).click();
  await page.getByRole("button", { name: "Remove", exact: true }).click();
  await page.locator("#empty").waitFor();
  await idle();
  assert.equal(await talkCount(), 0);
  fine();
});

test("a model that is not in memory is said to be loaded", async () => {
  await page.locator("#model optgroup[label='On this machine'] option").first().waitFor({
    state: "attached",
  });
  const rest = await page
    .locator("#model optgroup[label='On this machine'] option")
    .first()
    .textContent();
  await page.getByLabel("Model", { exact: true }).selectOption(rest);
  await held("");
  await prompt().fill("Hello");
  await prompt().press("Enter");
  await answers().first().waitFor();
  assert.equal(await facts(0).textContent(), `Loading ${rest} …`);
  await page.evaluate(() => globalThis.more("Hi"));
  await facts(0).filter({ hasText: "Answering …" }).waitFor();
  await page.evaluate(() => globalThis.end());
  await idle();
  fine();
});

test("two tabs with one conversation overwrite neither each other's words nor settings", async () => {
  await kept([
    { role: "user", content: "Hello" },
    { role: "assistant", content: "Hi" },
  ]);
  const other = await context.newPage();
  await other.addInitScript(() => sessionStorage.setItem("tangor.open", "1-1"));
  await other.goto(base);
  await other.locator(".answer").first().waitFor();
  await ready(other);
  await askHeld("From here", "Half an");
  await other.route("**/v1/chat/completions", (route) => route.abort());
  await other.locator(".question").nth(1).waitFor();
  await other.locator("#prompt").fill("From there");
  await other.locator("#prompt").press("Enter");
  await other.locator("#trouble .trouble").waitFor();
  await page.evaluate(() => globalThis.end());
  await idle();
  // What one tab keeps is there for the other a moment later.
  await page.waitForFunction(() => {
    const texts = JSON.stringify({ ...localStorage });
    return ["From here", "Half an", "From there"].every((text) => texts.includes(text));
  });
  assert.equal(await talkCount(), 2);
  await set("System prompt", "Be brief.");
  await other.getByRole("button", { name: "Settings" }).click();
  await other.waitForFunction(() => document.getElementById("set-system").value === "Be brief.");
  await other.getByLabel("Seed").fill("3");
  await page.waitForFunction(() => {
    const { system, seed } = JSON.parse(localStorage.getItem("tangor.settings"));
    return system === "Be brief." && seed === 3;
  });
  fine();
});

test("a browser that keeps nothing, has no room or keeps nonsense is no reason to stop", async () => {
  await page.evaluate(() => {
    localStorage.setItem("tangor.talk.1", '{"messages": [null]}');
    localStorage.setItem("tangor.talk.2", "{");
    localStorage.setItem("tangor.settings", '{"system": 7, "temperature": "hot"}');
    sessionStorage.setItem("tangor.open", "1");
  });
  await page.reload();
  await ready();
  await scripted([{ content: "Still here" }]);
  await ask("Hello");
  assert.equal(await answers().count(), 1);
  assert.equal(await talkCount(), 3);
  await page.evaluate(() => {
    Storage.prototype.setItem = () => {
      throw new DOMException("full", "QuotaExceededError");
    };
  });
  await scripted([{ content: "Still here" }]);
  await ask("Again");
  assert.match(await page.locator("#trouble").textContent(), /no room.*Export/);
  await page.getByRole("button", { name: "Clear all" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Clear all" }).click();
  await page.locator("#empty").waitFor();
  assert.equal(await talkCount(), 0);
  fine();
  await page.addInitScript(() => {
    for (const name of ["localStorage", "sessionStorage"])
      Object.defineProperty(globalThis, name, {
        get() {
          throw new DOMException("forbidden", "SecurityError");
        },
      });
  });
  await page.reload();
  await ready();
  await scripted([{ content: "Still here" }]);
  await ask("Hello");
  assert.equal(await answers().count(), 1);
  assert.equal(await page.locator("#talks li").count(), 1);
  assert.match(await page.locator("#talks-none").textContent(), /keeps nothing/);
  assert.ok(await page.locator("#talks-none").isVisible());
  fine();
});

test("a conversation of thousands of messages opens from its end, and grows at its end alone", async () => {
  const pair = (index) => [
    { role: "user", content: `Question ${index}` },
    { role: "assistant", content: `Some **bold** text.\n\n- one\n- two\n\nThe end of ${index}` },
  ];
  await kept(Array.from({ length: 1000 }, (_, index) => pair(index)).flat());
  await answers().last().locator("strong").waitFor();
  await page.waitForFunction(() =>
    [...document.querySelectorAll(".answer > .body")].every((body) => body.textContent),
  );
  const atEnd = () =>
    page.waitForFunction(() => {
      const log = document.getElementById("log");
      return log.scrollHeight - log.scrollTop - log.clientHeight < 2;
    });
  await atEnd();
  const style = await answers()
    .first()
    .evaluate((node) => getComputedStyle(node).contentVisibility);
  assert.equal(style, "auto", "all of it is laid out all the time");
  await page.evaluate(() => {
    globalThis.first = document.querySelector(".answer");
    globalThis.block = globalThis.first.querySelector(".block");
  });
  await scripted([{ content: "The newest" }]);
  await ask("One more");
  await atEnd();
  assert.ok(
    await page.evaluate(
      () => document.querySelector(".answer .block") === globalThis.block,
      "what stood there was made anew",
    ),
  );
  assert.equal(await answers().count(), 1001);
  fine();
});

test("an answer that is long to show leaves time for the rest of the page", async () => {
  await page.evaluate(() => {
    const real = globalThis.requestAnimationFrame;
    globalThis.pictures = [];
    globalThis.requestAnimationFrame = (act) =>
      real((now) => {
        const began = performance.now();
        act(now);
        globalThis.pictures.push({ began, took: performance.now() - began });
      });
  });
  await held("Some **bold** text with `code` and words.\n\n- a\n- b\n\n".repeat(600));
  await prompt().fill("Tell me all");
  await prompt().press("Enter");
  const pictures = await page.evaluate(async () => {
    while (globalThis.pictures.length < 8) {
      globalThis.more?.("x");
      await new Promise((then) => setTimeout(then, 5));
    }
    return globalThis.pictures;
  });
  pictures.slice(1).forEach(({ began }, index) => {
    const last = pictures[index];
    const pause = began - last.began - last.took;
    assert.ok(pause > 3 * last.took, `${last.took} ms of work, and a pause of ${pause} ms`);
  });
  await page.keyboard.press("Escape");
  await idle();
  fine();
});

test("what is nested too deep for its reader is shown as it is, today and at the next visit", async () => {
  const content = "> ".repeat(20_000);
  await scripted([{ content }]);
  await ask("Quote me");
  assert.equal(await answers().first().locator("pre").textContent(), content);
  await page.reload();
  await ready();
  assert.equal(await answers().first().locator("pre").textContent(), content);
  fine();
});

test("what is written from right to left stands to the right, and code does not", async () => {
  await page.setViewportSize({ width: 360, height: 720 });
  await scripted([
    { content: "مرحبا **بالعالم**\n\n- واحد\n\n    ```rust\n    fn main() {}\n    ```\n\nEnglish" },
  ]);
  await ask("اكتب لي");
  const direction = (node) => node.evaluate((one) => getComputedStyle(one).direction);
  assert.equal(await direction(page.locator(".question .said")), "rtl");
  const answer = answers().first();
  assert.equal(await direction(answer.locator("li").first()), "rtl");
  assert.equal(await direction(answer.locator("pre")), "ltr");
  assert.equal(await answer.locator("figcaption span").textContent(), "rust");
  assert.equal(await answer.locator("pre").textContent(), "fn main() {}");
  assert.equal(await direction(answer.locator("p").last()), "ltr");
  await shot("right-to-left");
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
  await page.locator(".code").getByText("Copied").waitFor();
  const copied = () => page.evaluate(() => navigator.clipboard.readText());
  assert.equal(await copied(), "for i in 0..3 {}");
  assert.equal(await page.locator("#said").textContent(), "Copied");
  // Another machine of the network sees the page without the newer way to copy.
  await page.evaluate(() => Object.defineProperty(globalThis, "isSecureContext", { value: false }));
  await page.getByRole("button", { name: "Copy your message" }).focus();
  await page.keyboard.press("Enter");
  await page.locator(".question").getByText("Copied").waitFor();
  assert.equal(await copied(), "A loop");
  const focused = await page.evaluate(() => document.activeElement.ariaLabel);
  assert.equal(focused, "Copy your message");
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

test("a list of models that does not come is said, and what is pressed in it keeps the focus", async () => {
  await page.route("**/v1/models", (route) => route.abort(), { times: 1 });
  await page.getByRole("link", { name: "Models" }).click();
  await page.locator("#model-list .trouble").waitFor();
  assert.ok(await page.getByLabel("Name of the model").isVisible());
  await page.getByRole("button", { name: "Try again" }).click();
  const button = page.getByRole("button", { name: /^(Load|Let go) tiny$/ });
  await button.waitFor();
  const before = await button.textContent();
  await button.focus();
  await page.keyboard.press("Enter");
  await page.waitForFunction(
    (before) =>
      /tiny/.test(document.activeElement.ariaLabel) &&
      !document.activeElement.ariaDisabled &&
      document.activeElement.textContent !== before,
    before,
  );
  assert.match(await page.locator("#said").textContent(), /^tiny (is in memory|was let go)\.$/);
  await page.goto(`${base}/#constructor`);
  await page.locator("#empty").waitFor();
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

test("at twice the size, in colours of one's own and under fingers the page is whole", async () => {
  await page.setViewportSize({ width: 640, height: 400 });
  await page.getByRole("button", { name: "Menu" }).click();
  await still();
  const key = page.getByRole("button", { name: "API key" });
  await key.scrollIntoViewIfNeeded();
  const { y, height } = await key.boundingBox();
  assert.ok(y >= 0 && y + height <= 400, `the last button of the menu is at ${y}`);
  assert.ok(await page.evaluate(() => document.querySelector("main").inert));
  await page.keyboard.press("Escape");
  assert.equal(await page.evaluate(() => document.activeElement.id), "menu");
  await page.setViewportSize({ width: 1200, height: 800 });
  await page.emulateMedia({ forcedColors: "active" });
  await prompt().focus();
  const outline = await page.locator(".box").evaluate((box) => getComputedStyle(box).outlineStyle);
  assert.equal(outline, "solid");
  await scripted([{ content: "Hi" }]);
  await ask("Hello");
  await shot("forced-colours");
  const edges = await page.evaluate(() =>
    [".question .said", ".box"].map(
      (one) => document.querySelector(one).getBoundingClientRect().right,
    ),
  );
  assert.ok(
    Math.abs(edges[0] - edges[1]) < 1,
    `messages end at ${edges[0]}, their box at ${edges[1]}`,
  );
  fine();
  await context.close();
  context = await browser.newContext({
    viewport: { width: 360, height: 720 },
    hasTouch: true,
    isMobile: true,
  });
  page = await fresh(base);
  await ready();
  await prompt().fill("one");
  await prompt().press("Enter");
  assert.equal(await prompt().inputValue(), "one\n");
  assert.equal(await page.locator("#keys").isVisible(), false);
  await scripted([{ content: "Hi" }]);
  await page.getByRole("button", { name: "Send" }).click();
  await answers().first().locator(".body", { hasText: "Hi" }).waitFor();
  await idle();
  await page.getByRole("button", { name: "Menu" }).click();
  await page.locator("#talks .talk").click();
  await page.waitForFunction(() => document.activeElement.id === "log");
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
