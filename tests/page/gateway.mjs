// A gateway with its sandbox, as a process of its own, and the commands that call it.

import { execFile, spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";

/** Commands that fail answer too: their exit code and what they printed. */
export function run(file, args, env = {}) {
  return new Promise((resolve) => {
    execFile(file, args, { env: { ...process.env, ...env } }, (error, stdout, stderr) => {
      resolve({ code: error ? error.code : 0, stdout, stderr });
    });
  });
}

export class Gateway {
  constructor(binary) {
    this.binary = binary;
    this.directory = mkdtempSync(join(tmpdir(), "page-"));
    this.addresses = { grpc: "127.0.0.1:0", admin: "127.0.0.1:0" };
  }

  /** Starts it; once more on the ports that it had before. */
  async start(...flags) {
    const args = [
      "serve",
      "--sandbox",
      `--listen=${this.addresses.grpc}`,
      `--admin-listen=${this.addresses.admin}`,
      `--ledger=sqlite:${join(this.directory, "ledger.db")}`,
      "--log-format=json",
      ...flags,
    ];
    this.process = spawn(this.binary, args, { stdio: ["ignore", "ignore", "pipe"] });
    this.ended = new Promise((resolve) => this.process.once("exit", resolve));
    const lines = [];
    await new Promise((resolve, reject) => {
      this.process.once("exit", () => reject(new Error(`the gateway ended:\n${lines.join("\n")}`)));
      createInterface({ input: this.process.stderr }).on("line", (line) => {
        if (lines.length < 100) lines.push(line);
        const entry = JSON.parse(line);
        if (entry.report) this.sandbox = new URL(entry.report).origin;
        if (entry.message === "listening") {
          this.addresses = { grpc: entry.grpc, admin: entry.admin };
          resolve();
        }
      });
    });
  }

  get url() {
    return `http://${this.addresses.admin}/`;
  }

  async kill() {
    this.process.kill("SIGKILL");
    await this.ended;
  }

  async end() {
    await this.kill();
    rmSync(this.directory, { recursive: true });
  }

  /** A command of the gateway's own. */
  command(...args) {
    return run(this.binary, [...args, `--target=${this.addresses.grpc}`]);
  }

  add(crk, ...flags) {
    return this.command("add", "--collector=8379821739721", "--email=anna@example.com", `--crk=${crk}`, ...flags);
  }

  /** Adds so many in one stream, with crks that begin so. */
  importing(prefix, count, ...flags) {
    const list = join(this.directory, `${prefix}.csv`);
    const rows = Array.from({ length: count }, (_, n) => `${prefix}-${n},${prefix}${n}@example.com`);
    writeFileSync(list, ["crk,email", ...rows, ""].join("\n"));
    return this.command("import", list, "--collector=8379821739721", ...flags);
  }

  /** What goes wrong in SurveyLab from now on. */
  async faults(...faults) {
    const answer = await fetch(`${this.sandbox}/sandbox/faults`, { method: "PUT", body: JSON.stringify(faults) });
    if (!answer.ok) throw new Error(await answer.text());
  }

  /** What a shell makes of a command that the page shows. */
  shell(command) {
    return run("bash", ["-c", command], { PATH: `${dirname(this.binary)}:${process.env.PATH}` });
  }
}
