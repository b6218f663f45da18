// See screenshots.sh.

import { createRequire } from "node:module";
import { resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { Gateway } from "../tests/page/gateway.mjs";

const { BROWSER, PAGE_TOOLS, PICTURE_TOOLS, MINUTES = "7", OUT = "docs" } = process.env;
const { chromium } = createRequire(`${PAGE_TOOLS}/`)("playwright-core");
const sharp = createRequire(`${PICTURE_TOOLS}/`)("sharp");

/** SurveyLab on a usual day: mostly quick, sometimes slow, with a wrong address here and there. */
const USUAL = [
  { latency_ms: 1400, probability: 0.01, seed: 1 },
  { status: 400, probability: 0.015, seed: 2 },
  { latency_ms: 420, probability: 0.08, seed: 3 },
  { latency_ms: 190, probability: 0.4, seed: 4 },
  { latency_ms: 110 },
];

const gateway = new Gateway(resolve(process.argv[2]));
const browser = await chromium.launch({ executablePath: BROWSER, args: process.getuid?.() === 0 ? ["--no-sandbox"] : [] });
let ended = false;

/** Services that call now and then; some of them twice. */
async function calling(name) {
  for (let n = 1; !ended; n++) {
    await gateway.add(`${name}-${n - (n % 7 === 6 ? 1 : 0)}`);
    await sleep(250 + 700 * Math.abs(Math.sin(n / 9)));
  }
}

try {
  await gateway.start("--rate=12/s", "--burst=6", "--max-in-flight=16");
  await gateway.faults(...USUAL);
  const services = [calling("order"), calling("ticket")];
  const step = (Number(MINUTES) * 60_000) / 7;

  await sleep(step);
  const list = gateway.importing("spring", Math.round((step / 1000) * 3.2 * 11));
  await sleep(step * 1.5);
  await gateway.faults({ status: 502, times: 1, crk_prefix: "spring" }, { fault: "close_before_answer", times: 1, crk_prefix: "order" }, ...USUAL);
  await sleep(step * 0.5);
  await gateway.faults({ status: 429, retry_after: String(Math.round(step / 3000)), times: 1 }, ...USUAL);
  await sleep(step * 2);
  await gateway.faults({ status: 504, times: 1 }, ...USUAL);
  await sleep(step * 2);

  const width = { light: 1200, dark: 1200, phone: 390 };
  const shots = {};
  for (const name of ["light", "dark", "phone"]) {
    const context = await browser.newContext({
      viewport: { width: width[name], height: 844 },
      colorScheme: name === "light" ? "light" : "dark",
      deviceScaleFactor: 1,
    });
    shots[name] = await context.newPage();
    await shots[name].goto(gateway.url);
    await shots[name].waitForFunction(() => document.querySelector("#state").textContent.startsWith("Serving"));
  }
  const shoot = async (name) => {
    const picture = await shots[name].screenshot({ fullPage: true });
    await sharp(picture).png({ palette: true, colours: 96, dither: 0, effort: 10 }).toFile(`${OUT}/page-${name}.png`);
  };
  // After a whole round of questions, so that everything is drawn.
  await sleep(5000);
  await shoot("light");
  await gateway.faults({ status: 429, retry_after: "45", times: 1 }, ...USUAL);
  for (const name of ["dark", "phone"]) {
    await shots[name].waitForFunction(() => document.querySelector("#state").textContent.startsWith("Paused"));
  }
  await sleep(3000);
  await shoot("dark");
  await shoot("phone");
  ended = true;
  await Promise.race([Promise.all([...services, list]), sleep(1000)]);
} finally {
  ended = true;
  await browser.close();
  await gateway.end();
}
