import assert from "node:assert/strict";
import { test } from "node:test";
import { START, step, type Limits, type Link, type Signal } from "../src/machine.js";

const LIMITS: Limits = { firstDelayMs: 100, maxDelayMs: 1000, giveUpMs: Infinity };
const frame = (event: string, id?: string, data: unknown = {}, retry?: number): Signal => ({ is: "frame", event, id, data, retry });
const cut = (now = 0, random = 0.5): Signal => ({ is: "cut", cause: "gone", now, random });
const answer = (status: number, retryAfterMs = 0, now = 0): Signal => ({ is: "answer", status, body: "", retryAfterMs, now, random: 0.5 });
const OPEN = frame("open", undefined, { verdict: "start", status: "running" }, 1500);

/** The link after these signals; a link that waits is due at once. */
function after(signals: Signal[], limits: Limits = LIMITS, from: Link = START): Link {
  return signals.reduce((link, signal) => step(link.phase === "waiting" ? step(link, { is: "due" }, limits)[0] : link, signal, limits)[0], from);
}

test("a link is never changed, only followed by another one", () => {
  const frozen = Object.freeze({ ...START });
  for (const signal of [OPEN, frame("delta", "2-1", { text: "x" }), cut(), answer(503), answer(404), { is: "due" } as Signal]) {
    assert.notEqual(step(frozen, signal, LIMITS)[0], frozen);
  }
});

test("the cursor is the id of the last event that has one", () => {
  assert.equal(after([OPEN, frame("delta", "2-1", { text: "x" }), frame("error", undefined, { code: "x" }), cut()]).cursor, "2-1");
});

test("an event that this version does not know moves the cursor and is told to nobody", () => {
  const [link, told] = step(START, frame("novelty", "3-1"), LIMITS);
  assert.deepEqual([link.cursor, told], ["3-1", []]);
});

test("a good connection that is cut is followed by the next after the server's retry, exactly", () => {
  assert.equal(after([OPEN, cut()]).delayMs, 1500);
});

test("connections that bring nothing wait longer and longer, at random below a bound that doubles up to its cap", () => {
  const delays = [1, 2, 3, 4, 5, 6].map((n) => after(Array.from({ length: n }, () => cut(0, 1))).delayMs);
  assert.deepEqual(delays, [100, 200, 400, 800, 1000, 1000]);
  assert.equal(after([cut(0, 0.25), cut(0, 0.25)]).delayMs, 50);
});

test("the server's retry is the least that every wait lasts", () => {
  const link = after([OPEN, cut(), cut(0, 1), cut(0, 1)]);
  assert.equal(link.delayMs, 1500 + 200);
});

test("an open without a verdict is a fault: it does not count as a good connection", () => {
  const fault = frame("open", undefined, { verdict: null, status: null }, 5000);
  const link = after([fault, frame("error", undefined, { code: "draining" }), cut(0, 1), fault, cut(0, 1)]);
  assert.deepEqual([link.failures, link.delayMs], [2, 5200]);
});

test("Retry-After is waited for", () => {
  for (const status of [408, 425, 429, 500, 502, 503, 504]) {
    const link = after([answer(status, 7000)]);
    assert.deepEqual([link.phase, link.delayMs], ["waiting", 7050], String(status));
  }
});

test("an answer that will stay the same ends the stream with an error that says which", () => {
  const codes = { 400: "invalid_request", 401: "not_allowed", 403: "not_allowed", 404: "not_found", 409: "conflict", 410: "gone", 422: "invalid_request", 301: "unexpected_answer" };
  for (const [status, code] of Object.entries(codes)) {
    const link = after([answer(Number(status))]);
    assert.deepEqual([link.phase, link.error?.code, link.error?.status], ["failed", code, Number(status)]);
  }
});

test("204 is the end, and nothing comes behind an end", () => {
  const link = after([answer(204)]);
  assert.equal(link.phase, "ended");
  for (const signal of [OPEN, cut(), answer(500), { is: "due" } as Signal]) assert.equal(step(link, signal, LIMITS)[0], link);
});

test("every terminal event ends, also one without an id", () => {
  for (const type of ["completed", "failed", "cancelled"]) {
    assert.equal(after([frame(type, "4-1")]).phase, "ended");
    assert.equal(after([frame(type)]).phase, "ended");
  }
});

test("an open that starts over although a cursor was given clears everything first", () => {
  const [link, told] = step({ ...START, cursor: "5-1" }, OPEN, LIMITS);
  assert.deepEqual(told.map((event) => [event.type, event.position]), [["open", null], ["snapshot", "0-0"]]);
  assert.equal(link.cursor, undefined);
  assert.equal(step({ ...START, cursor: "0-0" }, OPEN, LIMITS)[1].length, 1, "0-0 is no cursor");
});

test("a stream is given up when no connection was good for long enough, and not sooner", () => {
  const limits = { ...LIMITS, giveUpMs: 1000 };
  assert.equal(after([cut(0), cut(999)], limits).phase, "waiting");
  const link = after([cut(0), cut(1000)], limits);
  assert.deepEqual([link.phase, link.error?.code], ["failed", "unavailable"]);
  assert.equal(after([cut(0), cut(900), OPEN, cut(1000), cut(1999)], limits).phase, "waiting", "a good one starts the time anew");
});

test("giving up after 0 ms is one try, and a Retry-After beyond the time left is not waited for", () => {
  assert.equal(after([cut()], { ...LIMITS, giveUpMs: 0 }).phase, "failed");
  assert.equal(after([answer(503, 2000)], { ...LIMITS, giveUpMs: 1000 }).error?.code, "unavailable");
  assert.equal(after([answer(503, 500)], { ...LIMITS, giveUpMs: 1000 }).phase, "waiting");
});

test("the last wait before giving up ends at that time, so that it is used", () => {
  assert.equal(after([cut(0, 1), cut(0, 1), cut(0, 1), cut(950, 1)], { ...LIMITS, giveUpMs: 1000 }).delayMs, 50);
});

test("whatever signals come, a stream goes on from where it was: the cursor is the last id, and waits stay in bounds", () => {
  let seed = 7;
  const random = (): number => (seed = (seed * 48271) % 2147483647) / 2147483647;
  for (let run = 0; run < 500; run++) {
    let link: Link = START;
    let last: string | undefined;
    for (let i = 1; i < 60; i++) {
      const dice = Math.floor(random() * 6);
      const resumed = frame("open", undefined, { verdict: link.cursor ? "resumed" : "start", status: "running" }, 30);
      const signal = [frame("delta", `${i}-1`, { text: "x" }), resumed, cut(i, random()), answer(503, 20, i), { is: "due" } as Signal, frame("error", undefined, {})][dice]!;
      if (link.phase === "waiting") {
        assert.ok(link.delayMs >= 0 && link.delayMs <= 30 + 1000 + 20, `${link.delayMs}`);
        if (dice !== 4) continue;
      }
      if (dice === 0) last = `${i}-1`;
      [link] = step(link, signal, LIMITS);
      assert.equal(link.cursor, last);
      assert.ok(["connecting", "open", "waiting"].includes(link.phase));
    }
  }
});
