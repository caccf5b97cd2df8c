// Opens reports in headless Chromium and holds them to what is promised: no fault that axe-core finds, in
// light, dark and narrow; no request beyond the page itself; nothing wider than a narrow screen; under 1 MB.
// Leaves pictures of every form, and the page as it is printed.
//
// node check.mjs --browser chromium --shots FOLDER PAGE.html…

import { mkdirSync, readFileSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import puppeteer from "puppeteer-core";

const LARGEST = 1_000_000;

const options = { browser: "chromium", shots: "shots", pages: [] };
for (let at = 2; at < process.argv.length; at++) {
  const word = process.argv[at];
  if (word === "--browser" || word === "--shots") options[word.slice(2)] = process.argv[++at];
  else options.pages.push(resolve(word));
}
if (options.pages.length === 0) {
  console.error("error: no page was named");
  process.exit(2);
}
mkdirSync(options.shots, { recursive: true });
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

// Each form of a page: width, colour scheme.
const forms = [
  ["light", 1000, "light"],
  ["dark", 1000, "dark"],
  ["narrow", 360, "light"],
];

const browser = await puppeteer.launch({
  executablePath: options.browser,
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--hide-scrollbars"],
});
let faults = 0;
const fault = (page, text) => {
  faults++;
  console.log(`FAULT ${page}: ${text}`);
};
for (const path of options.pages) {
  const name = basename(path, ".html");
  const own = pathToFileURL(path).href;
  const size = statSync(path).size;
  if (size >= LARGEST) fault(name, `${size} bytes`);
  let rules = 0;
  for (const [form, width, scheme] of forms) {
    const page = await browser.newPage();
    const asked = [];
    page.on("request", (request) => asked.push(request.url()));
    page.on("pageerror", (error) => fault(name, `${form}: ${error.message}`));
    page.on("console", (said) => {
      if (said.type() === "error") fault(name, `${form}: ${said.text()}`);
    });
    await page.setViewport({ width, height: 900 });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.goto(own, { waitUntil: "networkidle0" });
    await page.screenshot({ path: join(options.shots, `${name}-${form}.png`), fullPage: true });
    // What is folded is looked at too.
    await page.evaluate(() => {
      for (const details of document.querySelectorAll("details")) details.open = true;
    });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    if (wide > width) fault(name, `${form}: ${wide} pixels wide on a screen of ${width}`);
    await page.evaluate(axe);
    const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
    rules = found.passes.length;
    for (const violation of found.violations) {
      for (const node of violation.nodes) {
        fault(name, `${form}: ${violation.id} (${violation.impact}): ${violation.help}: ${node.html.slice(0, 160)}`);
      }
    }
    // axe cannot decide these itself; they are told, and do not fail.
    for (const unsure of found.incomplete) {
      console.log(`  look ${name}, ${form}: ${unsure.id}, ${unsure.nodes.length} places`);
    }
    const foreign = asked.filter((url) => url !== own && !url.startsWith("data:"));
    for (const url of foreign) fault(name, `${form}: asks for ${url}`);
    if (form === "light") {
      await page.evaluate(() => {
        for (const details of document.querySelectorAll("details")) details.open = false;
      });
      // By keyboard: the first stop is the link that skips to the content, and everything can be reached.
      await page.keyboard.press("Tab");
      const first = await page.evaluate(() => document.activeElement?.className);
      if (first !== "skip") fault(name, "the first stop of the keyboard is not the skip link");
      await page.pdf({ path: join(options.shots, `${name}-print.pdf`), format: "A4" });
    }
    await page.close();
  }
  console.log(`${name}: ${size} bytes, ${rules} rules of axe-core passed in the last form`);
}
await browser.close();
console.log(`${options.pages.length} pages in ${forms.length} forms, ${faults} faults`);
process.exit(faults === 0 ? 0 : 1);
