import assert from "node:assert/strict";
import { test } from "node:test";
import { LegatoError, NOTHING, stored, type Wake, type WakeSource } from "../src/index.js";
import { all, block, completed, delta, GENERATION, Memory, open, Scripted, started, textOf } from "./support.js";

const FIRST = [open("start"), started, delta("2-1", "Noth"), delta("3-1", "ing ")];

const problem = (code: string, detail: string) => ({ type: `urn:legato:problem:${code}`, title: code, code, detail });

/** A stream of two connections: the first ends as told, the second goes on behind `3-1`. */
const ends: Record<string, (cut: () => Promise<void>, end: () => void) => void | Promise<void>> = {
  "a reset": (cut) => cut(),
  "a clean end without a terminal event": (_, end) => end(),
};
for (const [name, finish] of Object.entries(ends)) {
  test(`after ${name} the stream goes on from the last id, and nobody notices but for one event`, async (t) => {
    const server = await Scripted.start(
      t,
      async (x) => finish(() => x.sse(...FIRST).cut(), () => x.sse(...FIRST).end()),
      (x) => x.sse(open("resumed", "3-1"), delta("4-1", "twice"), completed("5-1")).end(),
    );
    const stream = server.client().stream(GENERATION);
    const events = await all(stream);
    assert.deepEqual(server.cursors, [undefined, "3-1"]);
    assert.deepEqual(events.map((event) => event.type), [
      "open", "started", "delta", "delta", "reconnecting", "open", "delta", "completed",
    ]);
    assert.equal(textOf(events), "Nothing twice");
    assert.deepEqual([stream.state.text, stream.state.status, stream.position, stream.connection], ["Nothing twice", "completed", "5-1", "ended"]);
  });
}

test("a block that was cut is discarded with its id", async (t) => {
  const server = await Scripted.start(
    t,
    (x) => x.sse(open("start"), started, delta("2-1", "a"), 'event: delta\nid: 3-1\ndata: {"text":"b"}\n').cut(),
    (x) => x.sse(open("resumed", "2-1"), delta("3-1", "b"), completed("4-1")).end(),
  );
  assert.equal(textOf(await all(server.client().stream(GENERATION))), "ab");
  assert.deepEqual(server.cursors, [undefined, "2-1"]);
});

test("what comes a second time is dropped, also far back and after a reconnect", async (t) => {
  const server = await Scripted.start(
    t,
    (x) => x.sse(...FIRST, delta("3-1", "ing ")).cut(),
    (x) => x.sse(open("resumed", "3-1"), started, delta("2-1", "Noth"), delta("3-1", "ing "), delta("4-1", "new"), completed("5-1")).end(),
  );
  assert.equal(textOf(await all(server.client().stream(GENERATION))), "Nothing new");
});

test("behind a snapshot ids may come again", async (t) => {
  const snapshot = block("snapshot", "2-1", { text: "Noth", tool_calls: [], attempt: 1, status: "running" });
  const server = await Scripted.start(
    t,
    (x) => x.sse(...FIRST).cut(),
    (x) => x.sse(open("rewound", "3-1"), snapshot, delta("3-1", "else"), completed("4-1")).end(),
  );
  const stream = server.client().stream(GENERATION);
  assert.equal(textOf(await all(stream)), "Nothelse");
  assert.equal(stream.state.text, "Nothelse");
});

test("a cursor that a proxy lost costs a clear, and no text twice", async (t) => {
  const server = await Scripted.start(
    t,
    (x) => x.sse(...FIRST).cut(),
    (x) => x.sse(...FIRST, completed("4-1")).end(),
  );
  const stream = server.client().stream(GENERATION);
  assert.equal(textOf(await all(stream)), "Nothing ");
  assert.equal(stream.state.text, "Nothing ");
});

test("a reset starts the text over", async (t) => {
  const reset = block("reset", "4-2", { attempt: 2, reason: "stalled" });
  const server = await Scripted.start(t, (x) => x.sse(...FIRST, reset, delta("5-2", "Anew"), completed("6-2")).end());
  const stream = server.client().stream(GENERATION);
  assert.equal(textOf(await all(stream)), "Anew");
  assert.deepEqual([stream.state.text, stream.state.attempt], ["Anew", 2]);
});

test("204 ends the stream without an event", async (t) => {
  const server = await Scripted.start(t, (x) => x.answer(204));
  const stream = server.client().stream(GENERATION, { from: "9-1" });
  assert.deepEqual(await all(stream), []);
  assert.deepEqual([server.cursors, stream.connection], [["9-1"], "ended"]);
});

for (const [status, code] of [[400, "invalid_request"], [401, "not_allowed"], [404, "not_found"], [410, "gone"]] as const) {
  test(`${status} is thrown at once as ${code}, with what the server said`, async (t) => {
    const server = await Scripted.start(t, (x) => x.answer(status, problem("some_code", "that is so")));
    const stream = server.client().stream(GENERATION);
    await assert.rejects(all(stream), (error) => error instanceof LegatoError && error.code === code && error.message === "that is so");
    assert.deepEqual([server.exchanges.length, stream.connection], [1, "failed"]);
  });
}

test("a proxy's 503 and a fault of the server on a 200 are waited out", async (t) => {
  const fault = block("error", undefined, { code: "store_unavailable", message: "away", retryable: true });
  const server = await Scripted.start(
    t,
    (x) => x.answer(503, undefined, { "Retry-After": "0" }),
    (x) => x.sse(open(null), fault).cut(),
    (x) => x.sse(...FIRST, completed("4-1")).end(),
  );
  const events = await all(server.client().stream(GENERATION));
  assert.deepEqual(events.map((event) => event.type).slice(0, 5), ["reconnecting", "open", "error", "reconnecting", "open"]);
  assert.equal(textOf(events), "Nothing ");
});

test("no connection at all is waited out, and given up after giveUpMs", async (t) => {
  const server = await Scripted.start(t, (x) => void x.response.socket!.destroy());
  const stream = server.client({ giveUpMs: 1500, firstDelayMs: 50, maxDelayMs: 50 }).stream(GENERATION);
  await assert.rejects(all(stream), { code: "unavailable" });
  assert.ok(server.exchanges.length > 1, "tried again");
  // 1.5 s of waits that average 25 ms: a loop without waits would make thousands.
  assert.ok(server.exchanges.length < 200, `${server.exchanges.length} requests`);
});

test("a 200 that is no stream of events is not Legato", async (t) => {
  const server = await Scripted.start(t, (x) => void x.response.writeHead(200, { "Content-Type": "text/html" }).end("<p>Log in"));
  await assert.rejects(all(server.client().stream(GENERATION)), { code: "unexpected_answer" });
});

test("a block that cannot be read is not taken for received", async (t) => {
  const server = await Scripted.start(
    t,
    (x) => void x.sse(...FIRST, "event: delta\nid: 4-1\ndata: {not json\n\n"),
    (x) => x.sse(open("resumed", "3-1"), delta("4-1", "twice"), completed("5-1")).end(),
  );
  assert.equal(textOf(await all(server.client().stream(GENERATION))), "Nothing twice");
  assert.deepEqual(server.cursors, [undefined, "3-1"]);
});

test("an error event ends the connection, also where its body goes on", async (t) => {
  const away = block("error", undefined, { code: "store_unavailable", message: "away", retryable: true });
  const server = await Scripted.start(t, (x) => void x.sse(...FIRST, away), (x) => x.sse(open("resumed", "3-1"), completed("4-1")).end());
  assert.equal((await all(server.client().stream(GENERATION))).at(-1)?.type, "completed");
  await server.exchanges[0]!.gone();
});

test("a delta without text is not taken for received", async (t) => {
  const server = await Scripted.start(t, (x) => void x.sse(...FIRST, block("delta", "4-1", { txt: "x" })), (x) => x.sse(open("resumed", "3-1"), completed("4-1")).end());
  assert.equal(textOf(await all(server.client().stream(GENERATION))), "Nothing ");
  assert.deepEqual(server.cursors, [undefined, "3-1"]);
});

test("an unknown event is passed over, and its id kept", async (t) => {
  const server = await Scripted.start(
    t,
    (x) => x.sse(...FIRST, "event: novelty\nid: 4-1\ndata: no JSON\n\n").cut(),
    (x) => x.sse(open("resumed", "4-1"), completed("5-1")).end(),
  );
  const events = await all(server.client().stream(GENERATION));
  assert.ok(!events.some((event) => (event.type as string) === "novelty"));
  assert.deepEqual(server.cursors, [undefined, "4-1"]);
});

test("a connection that says nothing for silenceMs is left for another one", async (t) => {
  const server = await Scripted.start(
    t,
    (x) => void x.sse(...FIRST), // and then nothing, for ever
    (x) => x.sse(open("resumed", "3-1"), completed("4-1")).end(),
  );
  const events = await all(server.client({ silenceMs: 100 }).stream(GENERATION));
  assert.match(String(events.find((event) => event.type === "reconnecting")?.data.cause), /nothing came for 100 ms/);
  await server.exchanges[0]!.gone();
});

test("a server that answers no request at all counts as silent too", async (t) => {
  const server = await Scripted.start(t, () => {}, (x) => x.sse(...FIRST, completed("4-1")).end());
  assert.equal(textOf(await all(server.client({ silenceMs: 100 }).stream(GENERATION))), "Nothing ");
});

test("keepalives count as a sign of life", async (t) => {
  const server = await Scripted.start(t, async (x) => {
    x.sse(...FIRST);
    for (let i = 0; i < 12; i++) {
      await new Promise((resolve) => setTimeout(resolve, 200));
      x.sse(": ping\n");
    }
    x.sse(completed("4-1")).end();
  });
  const events = await all(server.client({ silenceMs: 2000 }).stream(GENERATION));
  assert.equal(server.exchanges.length, 1, JSON.stringify(events.at(-1)));
});

test("a reader that takes its time does not make the server silent", async (t) => {
  const server = await Scripted.start(t, (x) => x.sse(...FIRST, completed("4-1")).end());
  const stream = server.client({ silenceMs: 2000 }).stream(GENERATION);
  for await (const event of stream) if (event.type === "started") await new Promise((resolve) => setTimeout(resolve, 2500));
  assert.equal(server.exchanges.length, 1);
});

test("leaving the loop closes the connection and cancels nothing", async (t) => {
  const server = await Scripted.start(t, (x) => void x.sse(...FIRST));
  const stream = server.client().stream(GENERATION);
  for await (const event of stream) if (event.position === "3-1") break;
  await server.exchanges[0]!.gone();
  assert.deepEqual([server.exchanges.length, stream.connection, stream.position], [1, "closed", "3-1"]);
});

test("close ends a loop that waits, for an event or for the next connection", async (t) => {
  const server = await Scripted.start(t, (x) => void x.sse(...FIRST), (x) => x.answer(503, undefined, { "Retry-After": "100" }));
  const client = server.client({ giveUpMs: Infinity });
  for (const until of ["delta", "reconnecting"]) {
    const stream = client.stream(GENERATION);
    const events: string[] = [];
    for await (const event of stream) {
      events.push(event.type);
      if (event.type === until && event.position !== "2-1") setImmediate(() => stream.close());
    }
    assert.equal(events.at(-1), until);
    assert.equal(stream.connection, "closed");
  }
});

test("an abort ends the loop with its reason, and cancels nothing", async (t) => {
  const server = await Scripted.start(t, (x) => void x.sse(...FIRST));
  const controller = new AbortController();
  const stream = server.client().stream(GENERATION, { signal: controller.signal });
  const reason = new Error("enough");
  await assert.rejects(async () => {
    for await (const event of stream) if (event.position === "3-1") setImmediate(() => controller.abort(reason));
  }, reason);
  await server.exchanges[0]!.gone();
  assert.equal(server.exchanges.length, 1);
  await assert.rejects(all(server.client().stream(GENERATION, { signal: controller.signal })), reason);
  assert.equal(server.exchanges.length, 1, "nothing is asked for a signal that is aborted already");
});

/** A page whose moments the test decides. */
function page(): { wake: WakeSource; say: (kind: Wake) => void; listening: () => boolean } {
  let notify: ((kind: Wake) => void) | undefined;
  return {
    wake: (then) => ((notify = then), () => void (notify = undefined)),
    say: (kind) => notify!(kind),
    listening: () => notify !== undefined,
  };
}

test("when the network is there again a wait ends at once, and an open connection is left", async (t) => {
  const server = await Scripted.start(
    t,
    (x) => x.answer(503, undefined, { "Retry-After": "100" }),
    (x) => void x.sse(...FIRST),
    (x) => x.sse(open("resumed", "3-1"), completed("4-1")).end(),
  );
  const { wake, say, listening } = page();
  const stream = server.client({ wake, giveUpMs: Infinity }).stream(GENERATION);
  for await (const event of stream) {
    if (event.type === "reconnecting" || event.position === "3-1") setImmediate(() => say("online"));
  }
  assert.deepEqual(server.cursors, [undefined, undefined, "3-1"]);
  assert.equal(listening(), false, "nothing is left behind");
});

test("a page that is seen again keeps a connection that was just heard, and leaves one that was not", async (t) => {
  let now = 1_000_000;
  t.mock.method(Date, "now", () => now);
  const server = await Scripted.start(t, (x) => void x.sse(...FIRST), (x) => x.sse(open("resumed", "4-1"), completed("5-1")).end());
  const { wake, say } = page();
  for await (const event of server.client({ wake }).stream(GENERATION)) {
    if (event.position === "3-1") {
      setImmediate(() => {
        now += 900;
        say("visible");
        server.exchanges[0]!.sse(delta("4-1", "twice"));
      });
    } else if (event.position === "4-1") {
      setImmediate(() => {
        now += 1100;
        say("visible");
      });
    }
  }
  assert.deepEqual(server.cursors, [undefined, "4-1"]);
});

test("what was put away is where the next stream begins, text and cursor together", async (t) => {
  const server = await Scripted.start(
    t,
    (x) => void x.sse(open("start"), block("snapshot", "0-0", { text: "", tool_calls: [], attempt: 0, status: "queued" }), ...FIRST.slice(1)),
    (x) => x.sse(open("resumed", "3-1"), delta("4-1", "twice"), completed("5-1")).end(),
  );
  const storage = new Memory();
  const client = server.client();
  for await (const event of client.stream(GENERATION, { storage })) if (event.position === "3-1") break;
  assert.equal(server.exchanges[0]!.query.get("from"), "snapshot");

  const second = client.stream(GENERATION, { storage });
  const events = await all(second);
  assert.deepEqual(events.map((event) => event.type), ["snapshot", "open", "delta", "completed"]);
  assert.deepEqual([textOf(events), second.state.text], ["Nothing twice", "Nothing twice"]);
  assert.deepEqual(server.cursors, [undefined, "3-1"]);

  const third = client.stream(GENERATION, { storage });
  assert.deepEqual((await all(third)).map((event) => event.type), ["snapshot", "completed"]);
  assert.deepEqual([third.state.status, server.exchanges.length], ["completed", 2], "an ended one asks nothing");
});

test("a page that is gone before the first event finds its generation again", async (t) => {
  const server = await Scripted.start(t, () => {});
  const storage = new Memory();
  const stream = server.client().stream(GENERATION, { storage, storageKey: "chat" });
  const reading = all(stream);
  await server.request(1);
  assert.equal((await stored(storage, "chat"))?.generation, GENERATION);
  stream.close();
  await reading;
});

test("from a position with the state that belongs to it, what follows is folded on to it and put away with it", async (t) => {
  const server = await Scripted.start(t, (x) => x.sse(open("resumed", "3-1"), delta("4-1", "twice"), completed("5-1")).end());
  const storage = new Memory();
  const stream = server.client().stream(GENERATION, { from: "3-1", state: { ...NOTHING, text: "Nothing " }, storage, storageKey: "k" });
  await all(stream);
  assert.deepEqual([stream.state.text, (await stored(storage, "k"))?.state.text], ["Nothing twice", "Nothing twice"]);

  await all(server.client().stream(GENERATION, { from: "3-1", storage, storageKey: "tail" }));
  assert.equal(await stored(storage, "tail"), undefined, "a tail alone is never put away as the text");
});

test("a page that goes away puts away what it has at that moment", async (t) => {
  const server = await Scripted.start(t, (x) => void x.sse(...FIRST));
  const storage = new Memory();
  const { wake, say } = page();
  const stream = server.client({ wake }).stream(GENERATION, { storage, storageKey: "chat" });
  for await (const event of stream) {
    if (event.position !== "3-1") continue;
    say("hidden");
    assert.equal(JSON.parse(storage.getItem("chat")!).position, "3-1");
    break;
  }
});

test("what is stored and cannot be read, or is of another generation, counts as nothing", async (t) => {
  const other = JSON.stringify({ generation: "gen_other", position: "3-1", state: { text: "x", tool_calls: [] } });
  for (const entry of ["{broken", "null", "[]", '{"generation":"x"}', other]) {
    const server = await Scripted.start(t, (x) => x.sse(...FIRST, completed("4-1")).end());
    const storage = new Memory();
    storage.setItem("k", entry);
    assert.equal(textOf(await all(server.client().stream(GENERATION, { storage, storageKey: "k" }))), "Nothing ");
    assert.deepEqual(server.cursors, [undefined]);
  }
});

test("a store that is full costs nothing but the reload, and a generation that is gone is forgotten", async (t) => {
  const server = await Scripted.start(t, (x) => x.sse(...FIRST, completed("4-1")).end(), (x) => x.answer(410, problem("gone", "deleted")));
  const full = { ...new Memory(), getItem: () => null, removeItem: () => {}, setItem: () => { throw new Error("full"); } };
  assert.equal(textOf(await all(server.client().stream(GENERATION, { storage: full }))), "Nothing ");
  const storage = new Memory();
  storage.setItem("k", JSON.stringify({ generation: GENERATION, position: "3-1", state: { text: "x", tool_calls: [] } }));
  await assert.rejects(all(server.client().stream(GENERATION, { storage, storageKey: "k" })), { code: "gone" });
  assert.equal(storage.getItem("k"), null);
});

test("a token that is a function is asked anew for each connection", async (t) => {
  const server = await Scripted.start(t, (x) => x.sse(...FIRST).cut(), (x) => x.sse(open("resumed", "3-1"), completed("4-1")).end());
  let asked = 0;
  await all(server.client({ token: async () => `t${++asked}`, headers: { "X-App": "1" } }).stream(GENERATION));
  assert.deepEqual(server.exchanges.map((x) => [x.request.headers.authorization, x.request.headers["x-app"]]), [["Bearer t1", "1"], ["Bearer t2", "1"]]);
});

test("a thread's stream has qualified positions, learns its generation, cancels that, and goes on with the next one", async (t) => {
  const at = (seq: string) => `${GENERATION}/${seq}`;
  const server = await Scripted.start(
    t,
    (x) => x.sse(open("start"), block("started", at("1-1"), { attempt: 1 }), delta(at("2-1"), "a")).cut(),
    (x) => x.sse(open("resumed", "2-1"), delta(at("3-1"), "b"), completed(at("4-1"))).end(),
    (x) => x.answer(200, { id: GENERATION, status: "completed" }),
    (x) => x.answer(204),
  );
  const client = server.client();
  const stream = client.thread("a/b c");
  assert.equal(textOf(await all(stream)), "ab");
  await stream.cancel();
  assert.deepEqual(await all(client.thread("a/b c", { from: stream.position })), []);
  assert.deepEqual(server.cursors, [undefined, at("2-1"), undefined, at("4-1")]);
  assert.deepEqual(server.exchanges.map((x) => x.request.url), [
    "/v1/threads/a%2Fb%20c/events", "/v1/threads/a%2Fb%20c/events", `/v1/generations/${GENERATION}/cancel`, "/v1/threads/a%2Fb%20c/events",
  ]);
});

const events = (...list: [string, string, unknown][]) => list.map(([event, id, data]) => ({ event, id, data }));

test("where bodies cannot be read as they grow, the same events come by long-poll", async (t) => {
  const end = { finish_reason: "stop", usage: null, characters: 2 };
  const server = await Scripted.start(
    t,
    (x) => x.answer(200, { verdict: "start", events: events(["started", "1-1", { attempt: 1 }], ["delta", "2-1", { text: "a" }]), position: "2-1", status: "running" }),
    (x) => x.answer(503, problem("store_unavailable", "away"), { "Retry-After": "0" }),
    (x) => x.answer(200, { verdict: "resumed", events: events(["delta", "3-1", { text: "b" }], ["completed", "4-1", end]), position: "4-1", status: "completed" }),
  );
  const stream = server.client({ transport: "poll" }).stream(GENERATION);
  assert.equal(textOf(await all(stream)), "ab");
  assert.deepEqual(server.cursors, [undefined, "2-1", "2-1"]);
  assert.deepEqual([server.exchanges[0]!.request.headers.accept, server.exchanges[0]!.query.get("wait")], ["application/json", "5"]);
  assert.equal(stream.state.status, "completed");
});

test("a fetch that gives no body is noticed, and polled with", async (t) => {
  const server = await Scripted.start(
    t,
    (x) => x.sse(...FIRST).end(),
    (x) => x.answer(200, { verdict: "start", events: events(["failed", "2-1", { code: "stalled", message: "", retryable: true, partial: false }]), position: "2-1", status: "failed" }),
  );
  const blind: typeof fetch = async (...args) => {
    const response = await fetch(...args);
    if (!response.headers.get("content-type")?.includes("event-stream")) return response;
    return { status: 200, ok: true, headers: response.headers, body: undefined } as unknown as Response;
  };
  const stream = server.client({ fetch: blind }).stream(GENERATION);
  assert.equal((await all(stream)).at(-1)?.type, "failed");
  assert.equal(server.exchanges[1]!.request.headers.accept, "application/json");
});

test("a global Response without a body, as React Native has it, is polled with from the start", async (t) => {
  const server = await Scripted.start(t, (x) => x.answer(200, { verdict: "start", events: [], position: "3-1", status: "completed" }));
  const { Response } = globalThis;
  t.after(() => void (globalThis.Response = Response));
  globalThis.Response = class {} as unknown as typeof Response;
  const stream = server.client().stream(GENERATION);
  assert.deepEqual((await all(stream)).map((event) => event.type), ["open"]);
  assert.deepEqual([stream.connection, server.exchanges[0]!.request.headers.accept], ["ended", "application/json"]);
});

test("a server that does not wait is not asked in a hot loop", async (t) => {
  const server = await Scripted.start(t, (x) => x.answer(200, { verdict: "resumed", events: [], position: "1-1", status: "running" }));
  const stream = server.client({ transport: "poll", firstDelayMs: 40, maxDelayMs: 40 }).stream(GENERATION, { from: "1-1" });
  setTimeout(() => stream.close(), 200);
  await all(stream);
  assert.ok(server.exchanges.length < 100, `${server.exchanges.length} requests in 200 ms`);
});

test("a poll that is answered with something else is not Legato", async (t) => {
  const server = await Scripted.start(t, (x) => x.answer(200, { hello: 1 }));
  await assert.rejects(all(server.client({ transport: "poll" }).stream(GENERATION)), { code: "unexpected_answer" });
});
