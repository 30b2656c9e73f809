import assert from "node:assert/strict";
import { test } from "node:test";
import { LegatoError } from "../src/index.js";
import { block, completed, delta, GENERATION, open, Scripted, sim, started } from "./support.js";

const SUBMISSION = { id: GENERATION, object: "generation", status: "queued", created_at: 1, stream_url: `/v1/generations/${GENERATION}/events`, stream_token: null };

test("a submit has a key of its own, the same in each try", async (t) => {
  const server = await Scripted.start(
    t,
    (x) => void x.response.socket!.destroy(),
    (x) => x.answer(503, undefined, { "Retry-After": "0" }),
    (x) => x.answer(202, SUBMISSION, { "Idempotent-Replayed": "true" }),
    (x) => x.answer(202, SUBMISSION),
  );
  const client = server.client();
  const submission = await client.submit(sim({ text: "x" }));
  assert.deepEqual([submission.id, submission.replayed], [GENERATION, true]);
  const keys = server.exchanges.map((x) => x.request.headers["idempotency-key"]);
  assert.equal(new Set(keys).size, 1);
  assert.match(String(keys[0]), /^[!-~]{16,255}$/);
  assert.deepEqual(JSON.parse(server.exchanges[2]!.body), sim({ text: "x" }));
  await client.submit(sim({ text: "x" }));
  assert.notEqual(server.exchanges[3]!.request.headers["idempotency-key"], keys[0], "another submit, another key");
  await client.submit(sim({ text: "x" }), { idempotencyKey: "mine" });
  assert.equal(server.exchanges[4]!.request.headers["idempotency-key"], "mine");
});

test("a key is there also where the page is no secure context, or has no crypto at all", async (t) => {
  const server = await Scripted.start(t, (x) => x.answer(202, SUBMISSION));
  const crypto = Object.getOwnPropertyDescriptor(globalThis, "crypto")!;
  t.after(() => Object.defineProperty(globalThis, "crypto", crypto));
  const bare = { getRandomValues: globalThis.crypto.getRandomValues.bind(globalThis.crypto) };
  for (const value of [bare, undefined]) {
    Object.defineProperty(globalThis, "crypto", { value, configurable: true });
    await server.client().submit(sim({}));
  }
  const keys = server.exchanges.map((x) => String(x.request.headers["idempotency-key"]));
  for (const key of keys) assert.match(key, /^[0-9a-f]{32}$/);
  assert.notEqual(keys[0], keys[1]);
});

test("what the server will not take is named, and not tried again", async (t) => {
  const errors = [{ field: "model", message: "is required" }, { field: "top_p", message: "at most 1" }];
  const server = await Scripted.start(t, (x) => x.answer(422, { title: "invalid request", status: 422, code: "invalid_request", detail: "2 fields", errors }));
  await assert.rejects(server.client().submit(sim({})), (error) => {
    assert.ok(error instanceof LegatoError);
    assert.deepEqual([error.code, error.status, error.message], ["invalid_request", 422, "2 fields: model: is required; top_p: at most 1"]);
    return true;
  });
  assert.equal(server.exchanges.length, 1);
});

test("a redirected submit is an error: it would submit nothing", async (t) => {
  const server = await Scripted.start(t, (x) => x.answer(302, undefined, { Location: "/elsewhere" }), (x) => x.answer(202, SUBMISSION));
  await assert.rejects(server.client().submit(sim({})), { code: "unexpected_answer" });
  assert.equal(server.exchanges.length, 1);
});

test("a redirected stream is followed", async (t) => {
  const server = await Scripted.start(
    t,
    (x) => x.answer(307, undefined, { Location: `${x.request.url}?there=1` }),
    (x) => x.sse(open("start"), started, completed("2-1")).end(),
  );
  assert.equal((await server.client().collect(GENERATION)).status, "completed");
});

test("an answer that is no JSON is not Legato's", async (t) => {
  const server = await Scripted.start(t, (x) => void x.response.writeHead(200, { "Content-Type": "text/html" }).end("<p>"));
  await assert.rejects(server.client().submit(sim({})), { code: "unexpected_answer" });
});

test("calls are given up in time, and end with an abort at once", async (t) => {
  const server = await Scripted.start(t, (x) => x.answer(503, undefined, { "Retry-After": "0" }));
  await assert.rejects(server.client().cancel(GENERATION, { giveUpMs: 50 }), { code: "unavailable", status: 503 });
  const reason = new Error("enough");
  const slow = await Scripted.start(t, () => {});
  const controller = new AbortController();
  const cancelling = slow.client().cancel(GENERATION, { signal: controller.signal });
  await slow.request(1);
  controller.abort(reason);
  await assert.rejects(cancelling, reason);
});

test("a call that is not answered is tried again after silenceMs", async (t) => {
  const server = await Scripted.start(t, () => {}, (x) => x.answer(200, { id: GENERATION, status: "cancelling" }));
  assert.equal((await server.client({ silenceMs: 100 }).cancel(GENERATION)).status, "cancelling");
});

test("cancel, delete, get and tool results go to their routes", async (t) => {
  const server = await Scripted.start(t, (x) => (x.request.method === "DELETE" ? x.answer(204) : x.answer(200, { id: GENERATION })));
  const client = server.client();
  await client.cancel({ id: GENERATION });
  await client.get(GENERATION);
  await client.delete(GENERATION);
  await client.toolResults(GENERATION, [{ tool_call_id: "a", content: 1 }]);
  const path = `/v1/generations/${GENERATION}`;
  assert.deepEqual(server.exchanges.map((x) => `${x.request.method} ${x.request.url}`), [
    `POST ${path}/cancel`, `GET ${path}`, `DELETE ${path}`, `POST ${path}/tool_results`,
  ]);
  assert.deepEqual(JSON.parse(server.exchanges[3]!.body), { tool_results: [{ tool_call_id: "a", content: 1 }] });
});

test("a delete whose answer was lost is done when the server says so", async (t) => {
  const server = await Scripted.start(t, (x) => void x.response.socket!.destroy(), (x) => x.answer(410, {}), (x) => x.answer(404, {}));
  await server.client().delete(GENERATION);
  await assert.rejects(server.client().delete(GENERATION), { code: "not_found" });
});

test("a list is asked for by what is given", async (t) => {
  const server = await Scripted.start(t, (x) => x.answer(200, { object: "list", data: [{ id: GENERATION }], next_cursor: null, has_more: false }));
  const page = await server.client().list({ thread: "a b&c", limit: 2, status: undefined });
  assert.deepEqual([page.data[0]?.id, server.exchanges[0]!.request.url], [GENERATION, "/v1/generations?thread=a+b%26c&limit=2"]);
});

test("an accepted submit that names no generation is not Legato's", async (t) => {
  const server = await Scripted.start(t, (x) => x.answer(202, {}));
  await assert.rejects(server.client().submit(sim({})), { code: "unexpected_answer" });
});

test("an id is data and never a path", async (t) => {
  const server = await Scripted.start(t, (x) => x.answer(404, {}));
  await assert.rejects(server.client().get("../../admin?x=1"), { code: "not_found" });
  assert.equal(server.exchanges[0]!.request.url, "/v1/generations/..%2F..%2Fadmin%3Fx%3D1");
});

test("collect returns the state, and throws a failure with its code", async (t) => {
  const failure = { code: "stalled", message: "silent", retryable: true, partial: true, characters: 1 };
  const server = await Scripted.start(
    t,
    (x) => x.sse(open("start"), started, delta("2-1", "a"), completed("3-1")).end(),
    (x) => x.sse(open("start"), started, delta("2-1", "a"), block("failed", "3-1", failure)).end(),
    (x) => x.sse(open("start"), started, block("cancelled", "2-1", { reason: "user" })).end(),
  );
  const client = server.client();
  const state = await client.collect(GENERATION);
  assert.deepEqual([state.text, state.finish_reason], ["a", "stop"]);
  await assert.rejects(client.collect(GENERATION), (error) => {
    assert.ok(error instanceof LegatoError);
    assert.deepEqual([error.code, error.message, error.detail, error.state?.text], ["failed", "stalled: silent", failure, "a"]);
    return true;
  });
  await assert.rejects(client.collect(GENERATION), { code: "cancelled" });
});
