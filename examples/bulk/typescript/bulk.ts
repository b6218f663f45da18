// Adds the respondents of a list through a gateway. Run again, it goes on where it stopped.
//
//     npm install && npm run build
//     npm start -- [--target HOST:PORT] [--tries COUNT] ROWS RESULTS
//
// ROWS has an AddRespondentRequest as JSON on each line. RESULTS gets a line for each answer: ADDED, DUPLICATE, FAILED
// or IN_DOUBT. A row is known by its line, its collector and its crk. Exit code: 0 all are added, 1 not all are
// answered (run it again), 2 wrong arguments or rows, 3 some failed, 4 some are in doubt.
import { createReadStream, fsyncSync, ftruncateSync, openSync, readFileSync, writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { pipeline, Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { fromBinary, fromJsonString, toBinary } from "@bufbuild/protobuf";
import { anyUnpack, durationMs } from "@bufbuild/protobuf/wkt";
import { Client, type ClientDuplexStream, credentials, type ServiceError, status as codes } from "@grpc/grpc-js";
import { ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import type { Status } from "./gen/google/rpc/status_pb.js";
import * as api from "./gen/surveylab/invitation/v1/invitation_pb.js";

const OPTIONS = {
  // The stream has no deadline. Who else would notice that the gateway's machine is gone?
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
  // The default waits up to two minutes before it looks again.
  "grpc.initial_reconnect_backoff_ms": 500,
  "grpc.max_reconnect_backoff_ms": 5_000,
};

type Key = { row: number; collectorId: string; crk: string };
type Row = { key: Key; request: api.AddRespondentRequest };

/** The rows, one at a time: a list may be larger than the memory. */
async function* read(path: string): AsyncGenerator<Row> {
  let row = 0;
  for await (const line of createInterface({ input: createReadStream(path), crlfDelay: Infinity })) {
    row += 1;
    if (line.trim() === "") continue;
    let request;
    try {
      request = fromJsonString(api.AddRespondentRequestSchema, line);
    } catch {
      // Not its words: they quote the row, which is about a person.
      throw new Error(`${path}: line ${row} is no AddRespondentRequest`);
    }
    yield { key: { row, collectorId: request.collectorId, crk: request.crk }, request };
  }
}

class Results {
  readonly outcomes = new Map<string, string>();
  readonly #file: number;

  constructor(path: string) {
    this.#file = openSync(path, "a+");
    const bytes = readFileSync(path);
    // A last line without its end: its writer was killed. The row is sent again.
    const whole = bytes.lastIndexOf("\n") + 1;
    ftruncateSync(this.#file, whole);
    for (const line of bytes.toString("utf8", 0, whole).split("\n").slice(0, -1)) {
      const { outcome, ...key } = JSON.parse(line);
      this.outcomes.set(id(key), outcome);
    }
  }

  add(key: Key, outcome: string, why: { reason?: string; message?: string } = {}): void {
    writeSync(this.#file, JSON.stringify({ ...key, outcome, ...why }) + "\n");
    this.outcomes.set(id(key), outcome);
  }

  sync(): void {
    fsyncSync(this.#file);
  }

  async tally(rows: string): Promise<Map<string, number>> {
    const outcomes = new Map<string, number>();
    for await (const { key } of read(rows)) {
      const outcome = this.outcomes.get(id(key)) ?? "missing";
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    }
    return outcomes;
  }
}

function id({ row, collectorId, crk }: Key): string {
  return `${row} ${collectorId} ${crk}`;
}

async function* missing(rows: string, results: Results): AsyncGenerator<Row> {
  for await (const row of read(rows)) if (!results.outcomes.has(id(row.key))) yield row;
}

// As a Duplex of Node's own types, what is written may be anything.
function open(client: Client): ClientDuplexStream<any, api.StreamAddRespondentResponse> {
  return client.makeBidiStreamRequest(
    "/surveylab.invitation.v1.InvitationService/StreamAddRespondent",
    (request: api.AddRespondentRequest) => Buffer.from(toBinary(api.AddRespondentRequestSchema, request)),
    (bytes: Buffer) => fromBinary(api.StreamAddRespondentResponseSchema, bytes),
  );
}

// [core]

/** One stream with each row that has no result yet. Returns the milliseconds to wait before another one. */
async function addMissing(client: Client, rows: string, results: Results): Promise<number> {
  const sent = new Map<bigint, Key>();
  const later: Record<string, number> = {};
  let [sequence, notBefore] = [0n, 0];

  async function* requests() {
    for await (const { key, request } of missing(rows, results)) {
      sent.set(sequence++, key);
      yield request;
    }
  }

  const call = open(client);
  // Takes the requests only as fast as the gateway reads them. Errors are told by the loop that reads the answers.
  pipeline(Readable.from(requests()), call, () => {});
  try {
    for await (const answer of call) {
      const key = sent.get(answer.sequence)!;
      sent.delete(answer.sequence);
      if (answer.result.case === "added") {
        results.add(key, api.Outcome[answer.result.value.outcome]);
        continue;
      }
      const { reason, message, retryAfter } = details(answer.result.value!);
      if (retryAfter === undefined) {
        results.add(key, reason === "OUTCOME_IN_DOUBT" ? "IN_DOUBT" : "FAILED", { reason, message });
      } else {
        // It gets no result, so the next stream takes it.
        later[reason] = (later[reason] ?? 0) + 1;
        notBefore = Math.max(notBefore, performance.now() + retryAfter);
      }
    }
  } catch (error) {
    const { code, details } = error as ServiceError;
    if (codes[code] === undefined) throw error;
    console.error(`the stream ended: ${codes[code]}: ${details}`);
  }
  if (Object.keys(later).length > 0) console.error("to be sent again:", later);
  results.sync();
  return Math.max(0, notBefore - performance.now());
}

// [/core]

/** Why a row failed, and after how many milliseconds another try makes sense, if one does. */
function details({ message, details }: Status): { reason: string; message: string; retryAfter?: number } {
  const reason = details.map((detail) => anyUnpack(detail, ErrorInfoSchema)?.reason).find(Boolean) ?? "";
  const delay = details.map((detail) => anyUnpack(detail, RetryInfoSchema)?.retryDelay).find(Boolean);
  return { reason, message, retryAfter: delay && durationMs(delay) };
}

async function main(): Promise<number> {
  let target, tries, rows: string, path: string;
  try {
    const { values, positionals } = parseArgs({
      options: { target: { type: "string", default: "127.0.0.1:50051" }, tries: { type: "string", default: "10" } },
      allowPositionals: true,
    });
    ({ target, tries } = values);
    if (positionals.length !== 2) throw new Error("usage: bulk [--target HOST:PORT] [--tries COUNT] ROWS RESULTS");
    [rows, path] = positionals as [string, string];
    // A list with a broken line is refused before any of it is sent.
    for await (const _ of read(rows)) continue;
  } catch (error) {
    console.error((error as Error).message);
    return 2;
  }
  const results = new Results(path);
  const client = new Client(target, credentials.createInsecure(), OPTIONS);
  let [wait, fruitless] = [0, 0];
  for (;;) {
    const outcomes = await results.tally(rows);
    const missing = outcomes.get("missing") !== undefined;
    if (missing && fruitless === Number(tries)) {
      console.error("gave up, run it again:", Object.fromEntries(outcomes));
      return 1;
    }
    if (!missing) {
      console.log(Object.fromEntries(outcomes));
      return outcomes.has("IN_DOUBT") ? 4 : outcomes.has("FAILED") ? 3 : 0;
    }
    await sleep(wait);
    const known = results.outcomes.size;
    wait = await addMissing(client, rows, results);
    fruitless = results.outcomes.size > known ? 0 : fruitless + 1;
    // With jitter, so that not all who were cut off come back at once.
    wait = Math.max(wait, 1000 * (1 + Math.random()) * Math.min(16, 2 ** fruitless));
  }
}

process.exit(await main());
