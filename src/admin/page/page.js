// Asks the gateway how it stands, every two seconds while anyone looks, and shows it. Everything is set as text: nothing that
// the gateway tells is ever read as HTML.

import { Charts, count, millis } from "./charts.js";

const EVERY = 2000;
const PATIENCE = 8000;
/** As many doubts are shown unasked: the charts are below them. */
const FEW = 5;
/** An hour of samples. */
const KEPT = 360;

const byId = (id) => document.getElementById(id);
/** Letters that show as nothing or turn others round: the same as in src/admin/shell.rs, as far as browsers name them. */
const ODD = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\u00a0\u034f\u115f\u1160\u2000-\u200a\u202f\u205f\u3000\u3164\ufe00-\ufe0f\uffa0]/u;

let utc = false;
/** The last answer, and by this browser's clock when it came. */
let latest = null;
let cameAt = 0;
let samples = [];
/** Since when there is no answer. */
let awaySince = null;

const two = (number) => String(number).padStart(2, "0");

/** A time of day, of seconds since 1970. */
function clock(seconds, withSeconds) {
  const date = new Date(seconds * 1000);
  const [h, m, s] = utc
    ? [date.getUTCHours(), date.getUTCMinutes(), date.getUTCSeconds()]
    : [date.getHours(), date.getMinutes(), date.getSeconds()];
  return `${two(h)}:${two(m)}${withSeconds ? `:${two(s)}` : ""}`;
}

function moment(ms) {
  const date = new Date(ms);
  const [y, m, d] = utc
    ? [date.getUTCFullYear(), date.getUTCMonth(), date.getUTCDate()]
    : [date.getFullYear(), date.getMonth(), date.getDate()];
  return `${y}-${two(m + 1)}-${two(d)} ${clock(ms / 1000, true)} ${utc ? "UTC" : "local time"}`;
}

/** How long something has been going on: 8 s, 12 min, 3 h 20 min, 5 days. */
function span(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 90) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 === 0 ? `${hours} h` : `${hours} h ${minutes % 60} min`;
  return `${Math.round(hours / 24)} days`;
}

function rate(perSecond) {
  if (perSecond >= 1) return `${count(perSecond)}/s`;
  return perSecond * 60 >= 1 ? `${count(perSecond * 60)}/m` : `${count(perSecond * 3600)}/h`;
}

function set(id, text) {
  const element = typeof id === "string" ? byId(id) : id;
  if (element.textContent !== text) element.textContent = text;
}

function tile(name, value, detail, mind = false) {
  const tile = byId(`tile-${name}`);
  set(tile.querySelector(".value"), value);
  set(tile.querySelector(".detail"), detail);
  tile.classList.toggle("mind", mind);
}

/** Milliseconds since the last answer. */
const aged = () => performance.now() - cameAt;

/** The state in words: how bad, the line itself, what is said aloud of it, and what else there is to say. */
function standing() {
  if (awaySince !== null) {
    return {
      look: "bad",
      line: `No answer since ${clock(awaySince / 1000, true)}`,
      more: latest
        ? "The gateway, or the way to it, is away. What is below is old. This page goes on by itself."
        : "The gateway, or the way to it, is away. This page goes on by itself.",
    };
  }
  const { condition, limiter, doubts } = latest;
  switch (condition.state) {
    case "draining":
      return { look: "bad", line: "Shutting down: nothing new is sent", more: "What is on the wire is finished first." };
    case "ledger_unavailable":
      return { look: "bad", line: `Nothing is sent: ${condition.why}`, more: "No request goes out without a durable record of it." };
    case "paused": {
      const left = Math.max(0, condition.left_ms - aged());
      return {
        look: "warn",
        line: `Paused for ${span(left)}: ${condition.why}`,
        aloud: `Paused: ${condition.why}`,
        more: `Everyone waits, until ${clock((latest.now_ms + condition.left_ms) / 1000, true)}. The rate is cut and comes back step by step.`,
      };
    }
    case "breaker_open": {
      const left = Math.max(0, condition.left_ms - aged());
      return {
        look: "bad",
        line: condition.why,
        more: `Calls fail without a request. One is let through to try again ${left > 0 ? `in ${span(left)}` : "now"}. Is the API token right?`,
      };
    }
    case "serving": {
      const cut = limiter.learned_rate < limiter.configured_rate * 0.999;
      const share = Math.round((limiter.learned_rate / limiter.configured_rate) * 100);
      const line = cut ? `Serving, at ${share} % of the rate` : "Serving";
      const more = [];
      if (cut) more.push("SurveyLab answered 429 a while ago; the rate comes back step by step.");
      if (doubts && doubts.count > 0) more.push(`${inAll(doubts)} to be settled by a person, below.`);
      return { look: cut ? "warn" : "good", line, more: more.join(" ") };
    }
    default:
      // A later gateway may know more states than a page that was left open.
      return { look: "bad", line: `${condition.state}: ${condition.why}`, more: "" };
  }
}

function inAll(doubts) {
  const number = `${doubts.more ? "more than " : ""}${count(doubts.count)}`;
  return doubts.count === 1 && !doubts.more ? "1 doubt" : `${number} doubts`;
}

function showStanding() {
  if (latest === null && awaySince === null) return;
  const { look, line, aloud, more } = standing();
  byId("standing").className = `standing ${look}`;
  document.documentElement.classList.toggle("stale", awaySince !== null);
  set("state", line);
  set("more", more);
  // A countdown is not read out again and again.
  set("said", aloud ?? line);
  const title = `${awaySince === null ? (aloud ?? line) : "No answer"} – surveylab-gateway`;
  if (document.title !== title) document.title = title;
}

function showTiles(status, shown) {
  const { limiter, doubts } = status;
  const cut = limiter.learned_rate < limiter.configured_rate * 0.999;
  const burst = `burst ${count(limiter.burst)}, ${count(Math.floor(limiter.tokens))} free`;
  tile("rate", rate(limiter.learned_rate), cut ? `learned; configured ${rate(limiter.configured_rate)}; ${burst}` : `as configured; ${burst}`, cut);

  const waiting = limiter.waiting_unary + limiter.waiting_streams;
  const wait = limiter.unary_wait_ms >= 1000 ? `; a new call waits ${span(limiter.unary_wait_ms)}` : "";
  tile("waiting", count(waiting), `${count(limiter.waiting_unary)} unary, ${count(limiter.waiting_streams)} stream${wait}`, waiting > limiter.max_queue / 2);
  tile("flight", count(limiter.in_flight), `of ${count(limiter.max_in_flight)} at most`, limiter.in_flight >= limiter.max_in_flight);

  const since = shown.length > 0 ? shown[shown.length - 1].at - 60 : 0;
  const minute = shown.filter((sample) => sample.at > since + 0.5);
  const sum = (of) => minute.reduce((total, sample) => total + of(sample), 0);
  tile("minute", count(sum((s) => s.added)), `${count(sum((s) => s.failed))} failed, ${count(sum((s) => s.in_doubt))} in doubt`);

  const answered = minute.filter((sample) => sample.requests > 0).pop();
  if (answered) tile("latency", millis(answered.p95_ms), `p50 ${millis(answered.p50_ms)}, p99 ${millis(answered.p99_ms)}`);
  else tile("latency", "–", "no request in the last minute");

  if (doubts) {
    const oldest = doubts.oldest[0];
    const detail = oldest ? `the oldest for ${span(status.now_ms - oldest.since_ms)}` : "nothing to settle";
    tile("doubts", `${count(doubts.count)}${doubts.more ? "+" : ""}`, status.problem ?? detail, doubts.count > 0 || status.problem !== null);
  } else {
    tile("doubts", "?", status.problem ?? "", true);
  }
}

/** Adds a text, its odd letters written out so that they can be seen. */
function addVisibly(element, text) {
  for (const letter of text) {
    if (!ODD.test(letter)) {
      element.append(letter);
      continue;
    }
    const odd = document.createElement("span");
    odd.className = "odd";
    odd.textContent = `U+${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    element.append(odd);
  }
}

function cell(row, label, name = "") {
  const cell = row.insertCell();
  cell.dataset.label = label;
  cell.className = name;
  // Its display changes on a phone, which takes the meaning with it.
  cell.setAttribute("role", "cell");
  return cell;
}

/** Has a table hold these rows, and leaves those that stay untouched: someone may be reading or copying there. */
function rows(table, items, keyOf, make, update) {
  const body = table.tBodies[0];
  const there = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  items.forEach((item, index) => {
    const key = keyOf(item);
    let row = there.get(key);
    there.delete(key);
    if (!row) {
      row = document.createElement("tr");
      row.dataset.key = key;
      row.setAttribute("role", "row");
      make(row, item);
    }
    if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] ?? null);
    update(row, item);
  });
  for (const row of there.values()) row.remove();
}

function showDoubts(status) {
  const { doubts } = status;
  byId("doubts-section").hidden = !doubts || doubts.count === 0;
  if (!doubts) return;
  const hidden = doubts.count - doubts.oldest.length;
  byId("doubts-more").hidden = hidden === 0 && !doubts.more;
  set(
    "doubts-more",
    `Shown are ${doubts.oldest.length} of ${inAll(doubts)}, ${doubts.more ? `the oldest of the first ${count(doubts.count)} by key` : "the oldest"}. ` +
      "All: surveylab-gateway invitations list --state=in-doubt",
  );
  const folded = doubts.oldest.length - FEW;
  byId("doubts-all").hidden = folded <= 0 || !byId("doubts").classList.contains("few");
  set("doubts-all", `Show ${count(folded)} more`);
  rows(
    byId("doubts"),
    doubts.oldest,
    (doubt) => JSON.stringify([doubt.collector_id, doubt.crk, doubt.since_ms, doubt.added]),
    (row, doubt) => {
      addVisibly(cell(row, "Collector", "key"), doubt.collector_id);
      addVisibly(cell(row, "crk", "key"), doubt.crk);
      cell(row, "In doubt", "age");
      set(
        cell(row, "Why"),
        (doubt.http_status === null ? "no answer that can be read" : `SurveyLab answered ${doubt.http_status}`) +
          (doubt.attempts > 1 ? `, ${count(doubt.attempts)} requests so far` : ""),
      );
      const settle = document.createElement("div");
      settle.className = "settle";
      cell(row, "Settle it", "commands").append(settle);
      for (const [name, command] of [
        ["It is there", doubt.added],
        ["It is not there", doubt.not_added],
      ]) {
        const code = document.createElement("code");
        // Lines break between the flags.
        for (const part of command.split(/(?<= )(?=--)/)) {
          const span = document.createElement("span");
          addVisibly(span, part);
          code.append(span);
        }
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.says = `${name}: copy`;
        button.setAttribute("aria-label", `${name}: copy the command for ${doubt.crk}`);
        button.textContent = button.dataset.says;
        button.addEventListener("click", () => copy(button, code, command));
        settle.append(button, code);
      }
    },
    (row, doubt) => {
      const age = row.querySelector(".age");
      set(age, `for ${span(status.now_ms - doubt.since_ms)}`);
      age.title = `since ${moment(doubt.since_ms)}`;
    },
  );
}

/** Copies a command; where a browser keeps its clipboard from plain HTTP, marks it, to be copied by hand. */
async function copy(button, code, command) {
  let done = "Copied";
  try {
    await navigator.clipboard.writeText(command);
  } catch {
    getSelection().selectAllChildren(code);
    done = document.execCommand("copy") ? "Copied" : "Marked";
  }
  button.textContent = done;
  set("copied", done);
  setTimeout(() => {
    set(button, button.dataset.says);
    set("copied", "");
  }, 2000);
}

function showReplicas(status) {
  byId("replicas-section").hidden = status.replicas.length === 0;
  rows(
    byId("replicas"),
    status.replicas,
    (replica) => replica.id,
    (row, replica) => {
      set(cell(row, "Name"), replica.own ? `${replica.name} (this one)` : replica.name);
      set(cell(row, "Id", "key"), replica.id.slice(0, 8));
      cell(row, "Up", "up").title = `since ${moment(replica.started_ms)}`;
      cell(row, "Lease left", "lease");
    },
    (row, replica) => {
      set(row.querySelector(".up"), span(status.now_ms - replica.started_ms));
      set(row.querySelector(".lease"), replica.lease_left_ms > 0 ? span(replica.lease_left_ms) : "none: taken for dead");
    },
  );
}

const charts = new Charts(clock);

function show() {
  showStanding();
  if (latest === null) return;
  const status = latest;
  const begun = status.now_ms - status.uptime_ms;
  const shown = status.running ? [...samples, status.running] : samples;
  // By the gateway's clock as it is now: it may have been set since a sample was taken.
  const dated = shown.map((sample) => ({ ...sample, at: (begun + sample.uptime_ms) / 1000 }));
  set("about", `${status.version}, ledger ${status.ledger}, up ${span(status.uptime_ms)}; ${moment(status.now_ms)}`);
  byId("sandbox").hidden = !status.sandbox;
  showTiles(status, dated);
  showDoubts(status);
  showReplicas(status);
  charts.show(dated, status.now_ms / 1000);
}

function take(status) {
  if (latest === null || latest.instance !== status.instance) samples = [];
  const last = samples.length > 0 ? samples[samples.length - 1].number : 0;
  samples = [...samples, ...status.samples.filter((sample) => sample.number > last)].slice(-KEPT);
  latest = status;
  cameAt = performance.now();
}

async function ask() {
  const last = samples.length > 0 ? samples[samples.length - 1].number : 0;
  const fetched = async (after) => {
    const answer = await fetch(`status.json?after=${after}`, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (!answer.ok) throw new Error(String(answer.status));
    return answer.json();
  };
  try {
    let status = await fetched(last);
    // A process that began since numbers its samples from 1 again.
    if (last > 0 && status.instance !== latest.instance) status = await fetched(0);
    awaySince = null;
    if (latest !== null && status.version !== latest.version) location.reload();
    take(status);
  } catch {
    // A page that was hidden has not asked for a while.
    awaySince ??= Date.now() - (latest ? Math.min(aged(), EVERY + PATIENCE) : 0);
    showStanding();
    return;
  }
  show();
}

/** Asks again and again while the page is seen, never twice at once. */
let loop = null;
async function asking() {
  while (!document.hidden) {
    const begun = performance.now();
    // Were the page unable to show an answer, it would still ask for the next one.
    await ask().catch((error) => console.error(error));
    await new Promise((resolve) => setTimeout(resolve, Math.max(500, EVERY - (performance.now() - begun))));
  }
  loop = null;
}
function look() {
  if (!document.hidden) loop ??= asking();
}

document.addEventListener("visibilitychange", look);
// The countdown of a pause goes on between two answers.
setInterval(() => document.hidden || showStanding(), 1000);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.redraw());
byId("zone").addEventListener("click", () => {
  utc = !utc;
  set("zone", utc ? "Show local time" : "Show UTC");
  byId("replicas").tBodies[0].replaceChildren();
  charts.redraw();
  show();
});
byId("doubts-all").addEventListener("click", () => {
  byId("doubts").classList.remove("few");
  byId("doubts-all").hidden = true;
});
look();
