/** The conformance suite, played against this client as it was built. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";

const ROOT = join(import.meta.dirname, "../../..");

test("every case of the conformance suite is green, and none is skipped", async (t) => {
  const python = join(dirname(process.env["LEGATO"]!), "python");
  const adapter = `node ${join(ROOT, "clients/typescript/conformance/adapter.mjs")}`;
  const ran = await promisify(execFile)(python, ["-m", "tests.conformance", "--adapter", adapter], { cwd: ROOT }).catch((error) => error);
  const summary = ran.stdout.trim().split("\n").at(-1);
  assert.match(summary, /^\d\d+ green, 0 failed, 0 skipped/, ran.stdout.split("\n").filter((line: string) => !line.startsWith("ok")).join("\n"));
  t.diagnostic(summary);
});
