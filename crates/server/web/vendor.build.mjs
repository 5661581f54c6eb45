// Makes vendor.js: the two libraries that the page shows markdown with, in one file, and
// vendor.licences.txt. After `npm ci --ignore-scripts`, `npm run vendor` here. With --check
// nothing is written, and whatever differs from what stands here is an error. Packages are those
// beside this file, or those of the folder that TANGOR_TEST_PAGE names.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const packages = process.env.TANGOR_TEST_PAGE ?? here;
const { build } = createRequire(join(packages, "package.json"))("esbuild");

const bundled = await build({
  stdin: {
    contents: `export { Marked } from "marked"; export { default as DOMPurify } from "dompurify";`,
    resolveDir: packages,
  },
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "eof",
  write: false,
});

const licence = (name) => {
  const folder = join(packages, "node_modules", name);
  const { version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const text = readFileSync(join(folder, "LICENSE"), "utf8").trim();
  return `${name} ${version}\n\n${text}\n`;
};
const line = `\n${"-".repeat(78)}\n\n`;
const licences =
  `vendor.js holds these libraries, unchanged but for being made shorter.\n` +
  line +
  ["marked", "dompurify"].map(licence).join(line);

const made = { "vendor.js": bundled.outputFiles[0].text, "vendor.licences.txt": licences };
for (const [name, text] of Object.entries(made)) {
  const file = join(here, name);
  if (!process.argv.includes("--check")) {
    writeFileSync(file, text);
  } else if (readFileSync(file, "utf8") !== text) {
    console.error(`${name} is not what its packages make: npm run vendor`);
    process.exitCode = 1;
  }
}
