import assert from "node:assert/strict";
import { test } from "node:test";
import { fold, NOTHING, type State } from "../src/fold.js";
import type { StreamEvent } from "../src/index.js";

const event = (type: string, data: unknown, position: string | null = "1-1") => ({ type, data, position }) as StreamEvent;
const folded = (...events: StreamEvent[]): State => events.reduce(fold, NOTHING);

test("deltas join by their kind", () => {
  const state = folded(
    event("delta", { text: "a", kind: "reasoning" }),
    event("delta", { text: "b" }),
    event("delta", { text: "c", kind: "refusal" }),
    event("delta", { text: "d" }),
  );
  assert.deepEqual([state.text, state.reasoning, state.refusal], ["bd", "a", "c"]);
});

test("fragments of a tool call join by index, and the whole call replaces them", () => {
  const fragments = [
    event("tool_call", { index: 1, id: "b", name: "second", arguments: "{" }),
    event("tool_call", { index: 0, id: "a", name: "first", arguments: '{"x"' }),
    event("tool_call", { index: 0, arguments: ":1}" }),
  ];
  assert.deepEqual(folded(...fragments).tool_calls, [
    { index: 0, id: "a", name: "first", arguments: '{"x":1}' },
    { index: 1, id: "b", name: "second", arguments: "{" },
  ]);
  const done = { index: 1, id: "b", name: "second", arguments: "{}" };
  assert.deepEqual(folded(...fragments, event("tool_call_done", done)).tool_calls[1], done);
});

test("reset clears everything that was shown, and snapshot replaces it", () => {
  const shown = folded(
    event("delta", { text: "x" }),
    event("delta", { text: "y", kind: "reasoning" }),
    event("tool_call_done", { index: 0, id: "a", name: "n", arguments: "{}" }),
    event("tool_result", { id: "a", name: "n", content: "1", is_error: false }),
    event("part", { type: "citation", data: {} }),
    event("usage", { input_tokens: 1, output_tokens: 1 }),
  );
  assert.deepEqual(fold(shown, event("reset", { attempt: 2, reason: "stalled" })), { ...NOTHING, attempt: 2, status: "running" });
  const snapshot = { text: "z", tool_calls: [], attempt: 3, status: "running" };
  assert.deepEqual(fold(shown, event("snapshot", snapshot)), snapshot);
});

test("the phase of a silent generation lasts until something comes", () => {
  const waiting = folded(event("status", { phase: "waiting_for_tools", calls: [] }));
  assert.deepEqual([waiting.status, waiting.phase?.phase], ["waiting_for_tools", "waiting_for_tools"]);
  assert.equal(folded(event("status", { phase: "running_tool" })).status, "running");
  assert.equal(fold(waiting, event("delta", { text: "x" })).phase, undefined);
});

test("an end keeps what was shown, and tells why", () => {
  const failure = { code: "stalled", message: "silent", retryable: true, partial: true };
  const failed = folded(event("delta", { text: "x" }), event("failed", failure));
  assert.deepEqual([failed.text, failed.status, failed.failure], ["x", "failed", failure]);
  const usage = { input_tokens: 1, output_tokens: 2 };
  assert.deepEqual(folded(event("completed", { finish_reason: "stop", usage, characters: 0 })).usage, usage);
  assert.deepEqual(folded(event("usage", usage), event("completed", { finish_reason: "stop", usage: null, characters: 0 })).usage, usage);
});

test("an event that changes nothing gives the very same state", () => {
  assert.equal(fold(NOTHING, event("error", { code: "x", message: "", retryable: true }, null)), NOTHING);
});
