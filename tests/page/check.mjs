// The status page in a real browser: see ../page.sh.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

import { Gateway } from "./gateway.mjs";

const { BROWSER, PAGE_TOOLS } = process.env;
const tools = createRequire(`${PAGE_TOOLS}/`);
const { chromium } = tools("playwright-core");
const axe = readFileSync(tools.resolve("axe-core/axe.min.js"), "utf8");

/** After so long something never happens. Nothing measures time with it. */
const NEVER = 60_000;

const browser = await chromium.launch({ executablePath: BROWSER, args: process.getuid?.() === 0 ? ["--no-sandbox"] : [] });
const gateway = new Gateway(resolve(process.argv[2]));

try {
  await gateway.start("--rate=50/s", "--burst=20");
  const page = await opened();
  await loads(page);
  await movesUnderLoad(page);
  await settlesADoubt(page);
  await saysWhyItPauses(page);
  await asksOnlyWhileItIsSeen(page);
  await comesBackWithTheGateway(page);
  await isFreeOfViolations(page);
} finally {
  await browser.close();
  await gateway.end();
}
console.log("the status page: passed");

/** The page, in a context that records what a browser objects to and whom it asks. */
async function opened() {
  const context = await browser.newContext({ permissions: ["clipboard-read", "clipboard-write"] });
  context.setDefaultTimeout(NEVER);
  const page = await context.newPage();
  page.wrong = [];
  page.asked = [];
  page.away = false;
  page.on("pageerror", (error) => page.wrong.push(`error: ${error}`));
  page.on("console", (message) => {
    // While the gateway is away a browser says so by itself.
    if (["error", "warning"].includes(message.type()) && !page.away) page.wrong.push(`console: ${message.text()}`);
  });
  page.on("request", (request) => page.asked.push(request.url()));
  await page.addInitScript(() => {
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
  });
  await page.goto(gateway.url);
  return page;
}

function step(what) {
  console.log(`- ${what}`);
}

/** Waits until an element's text matches. */
async function says(page, selector, pattern) {
  const expected = { selector, source: pattern.source, flags: pattern.flags };
  try {
    await page.waitForFunction(
      ({ selector, source, flags }) => new RegExp(source, flags).test(document.querySelector(selector)?.textContent ?? ""),
      expected,
    );
  } catch (error) {
    const text = await page.locator(selector).first().textContent();
    throw new Error(`${selector} says ${JSON.stringify(text)}, not ${pattern}`, { cause: error });
  }
}

async function loads(page) {
  step("it loads, and says how it stands");
  await says(page, "#state", /^Serving$/);
  await says(page, "#tile-rate .value", /^50\/s$/);
  await says(page, "#about", /ledger sqlite/);
  assert.equal(await page.locator("#sandbox").isVisible(), true);
  assert.equal(await page.locator(".plot canvas").count(), 4);
  assert.equal(await page.locator("#doubts-section").isVisible(), false);
}

/** All pixels of each chart. */
function pixels(page) {
  return page.locator(".plot canvas").evaluateAll((charts) => charts.map((chart) => chart.toDataURL()));
}

async function movesUnderLoad(page) {
  step("its charts move under load");
  const before = await pixels(page);
  const imported = await gateway.importing("load", 200);
  assert.equal(imported.code, 0, imported.stderr);
  await says(page, "#chart-outcomes figcaption", /In all: 200 added/);
  await says(page, "#chart-rate figcaption", /^200 requests, 0 of them/);
  await says(page, "#tile-latency .value", /ms$/);
  const after = await pixels(page);
  before.forEach((chart, index) => assert.notEqual(after[index], chart, `chart ${index} has not changed`));
  // Once the interval is a whole one: what was counted stays.
  await says(page, "#chart-outcomes figcaption", /In all: 200 added, 0 duplicate/);
}

async function settlesADoubt(page) {
  step("a doubt appears, whatever its crk holds, and its command settles it");
  const crks = [`it's <img src=x onerror=alert(1)> "$(id)"`, "-\u202etab\u200b!"];
  await gateway.faults({ status: 502, times: 2 });
  for (const crk of crks) {
    const added = await gateway.add(crk);
    assert.equal(added.code, 4, added.stderr);
  }
  await says(page, "#tile-doubts .value", /^2$/);
  await says(page, "#state", /^Serving$/);
  assert.match(await page.locator("#more").textContent(), /^2 doubts to be settled/);
  const rows = page.locator("#doubts tbody tr");
  assert.equal(await rows.count(), 2);
  assert.equal(await rows.nth(0).locator("td").nth(1).textContent(), crks[0]);
  assert.equal(await rows.nth(1).locator("td").nth(1).textContent(), "-U+202EtabU+200B!");
  assert.equal(await page.locator("#doubts img").count(), 0);
  await isReadable(page);

  for (const [button, left] of [
    ["It is there", "1"],
    ["It is not there", "0"],
  ]) {
    await rows.nth(0).getByRole("button", { name: `${button}: copy` }).click();
    const command = await page.evaluate(() => navigator.clipboard.readText());
    assert.match(command, /^surveylab-gateway invitations resolve /);
    const settled = await gateway.shell(command);
    assert.equal(settled.code, 0, `${command}\n${settled.stderr}`);
    await says(page, "#tile-doubts .value", new RegExp(`^${left}$`));
  }
  assert.equal(await page.locator("#doubts-section").isVisible(), false);
}

/** For eyes, hands and screen readers: wide and narrow, light and dark. */
async function isReadable(page) {
  for (const [width, colorScheme] of [
    [1280, "light"],
    [1280, "dark"],
    [360, "light"],
    [360, "dark"],
  ]) {
    step(`it is readable at ${width} px, ${colorScheme}`);
    await page.setViewportSize({ width, height: 800 });
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    await page.waitForFunction((width) => document.documentElement.scrollWidth <= width, width);
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => window.axe.run());
    const told = violations.map(({ id, help, nodes }) => `${id}: ${help}\n  ${nodes.map((node) => node.html).join("\n  ")}`);
    assert.deepEqual(told, [], told.join("\n"));
  }
  await page.setViewportSize({ width: 1280, height: 800 });
}

async function saysWhyItPauses(page) {
  step("a pause is told, with what is left of it");
  await gateway.faults({ status: 429, retry_after: "2", times: 1 });
  const adding = gateway.add("paused");
  await says(page, "#state", /^Paused for \d+ s: SurveyLab answered 429$/);
  await says(page, "#said", /^Paused: SurveyLab answered 429$/);
  assert.equal((await adding).code, 0);
  await says(page, "#state", /^Serving, at \d+ % of the rate$/);
  await says(page, "#chart-rate figcaption", /, 1 of them answered with 429/);
}

async function asksOnlyWhileItIsSeen(page) {
  step("a hidden page asks no more");
  const see = (hidden) =>
    page.evaluate((hidden) => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }, hidden);
  await see(true);
  // One may be under way.
  await page.waitForTimeout(3000);
  const asked = page.asked.length;
  await page.waitForTimeout(5000);
  assert.equal(page.asked.length, asked);
  const answered = page.waitForResponse(/status\.json/);
  await see(false);
  await answered;
}

async function comesBackWithTheGateway(page) {
  step("it says that the gateway is away, and goes on when it is back");
  page.away = true;
  await gateway.kill();
  await says(page, "#state", /^No answer since \d\d:\d\d:\d\d$/);
  await gateway.start("--rate=7/s");
  await says(page, "#state", /^Serving$/);
  page.away = false;
  await says(page, "#tile-rate .value", /^7\/s$/);
  // The history is the new process's.
  await says(page, "#chart-outcomes figcaption", /In all: 0 added/);
  const added = await gateway.add("again");
  assert.equal(added.code, 0, added.stderr);
  await says(page, "#chart-outcomes figcaption", /In all: 1 added/);
}

async function isFreeOfViolations(page) {
  step("nothing was objected to, and nobody else was asked");
  assert.deepEqual(page.wrong, []);
  assert.deepEqual(await page.evaluate(() => window.violations), []);
  assert.ok(page.asked.length > 5);
  const elsewhere = page.asked.filter((url) => new URL(url).origin !== new URL(gateway.url).origin);
  assert.deepEqual(elsewhere, []);
  // That what would be objected to is seen: the policy holds for scripts in the page.
  await page.evaluate(() => {
    const script = document.createElement("script");
    script.textContent = "window.ran = true";
    document.body.append(script);
  });
  assert.equal(await page.evaluate(() => window.ran), undefined);
  await page.waitForFunction(() => window.violations.length > 0);
}
