/** Against the real thing: `legato dev`, through a proxy that cuts. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { Legato, type Stream, type StreamEvent, type Wake, type WakeSource } from "../src/index.js";
import { all, cuttingProxy, legatoDev, Memory, sim, textOf } from "./support.js";

const simulated = (tokens: number, seed: number): string =>
  execFileSync(process.env["LEGATO"]!, ["sim", "--tokens", String(tokens), "--seed", String(seed)], { encoding: "utf8" }).replace(/\n$/, "");

const QUICK = { firstDelayMs: 5, maxDelayMs: 50 };
/** All events of a stream that need not wait as long as the server asks: the page says that the network is back. */
async function impatiently(make: (wake: WakeSource) => Stream): Promise<{ stream: Stream; events: StreamEvent[] }> {
  let notify: ((wake: Wake) => void) | undefined;
  const stream = make((then) => ((notify = then), () => void (notify = undefined)));
  const events: StreamEvent[] = [];
  for await (const event of stream) {
    events.push(event);
    if (event.type === "reconnecting") setTimeout(() => stream.connection === "waiting" && notify?.("online"), 5);
  }
  return { stream, events };
}

test("the real server: text is whole behind a proxy that cuts, resets, cancels, errors, long-poll, storage", async (t) => {
  const url = await legatoDev(t);
  const direct = new Legato({ url, ...QUICK });

  await t.test("cut again and again, the text is what the provider said, by events and by state", async (t) => {
    // A reader that is behind gets all it lacks in one frame: now and then a connection must last for that, and no longer.
    let connections = 0;
    const proxy = await cuttingProxy(t, url, () => [1000, 2500, 1500, 10_000][connections++ % 4]!);
    const client = new Legato({ url: proxy.url, ...QUICK });
    const { id } = await direct.submit(sim({ tokens: 600, seed: 11, tokens_per_second: 100 }));
    const { stream, events } = await impatiently((wake) => client.stream(id, { wake }));
    const expected = simulated(600, 11);
    assert.equal(textOf(events), expected);
    assert.equal(stream.state.text, expected);
    assert.equal((await direct.get(id)).text, expected);
    const positions = events.map((event) => event.position).filter((position) => position !== null);
    assert.equal(new Set(positions).size, positions.length, "no position twice");
    assert.ok(proxy.cuts() >= 5, `${proxy.cuts()} cuts`);
  });

  await t.test("an attempt that fails after text was shown is cleared, and the text is whole", async () => {
    const faults = [{ at_token: 20, kind: "truncate", attempt: 1 }];
    const { id } = await direct.submit(sim({ tokens: 40, seed: 3, tokens_per_second: 200, faults }));
    const stream = direct.stream(id);
    const events = await all(stream);
    assert.ok(events.some((event) => event.type === "reset"));
    assert.deepEqual([textOf(events), stream.state.text], [simulated(40, 3), simulated(40, 3)]);
    assert.equal(stream.state.attempt, 2);
  });

  await t.test("a cancel ends the stream with its event, an abort does not end the generation", async () => {
    const { id } = await direct.submit(sim({ tokens: 5000, seed: 1, tokens_per_second: 50 }));
    for await (const event of direct.stream(id)) if (event.type === "delta") break;
    assert.equal((await direct.get(id)).status, "running");
    const stream = direct.stream(id);
    for await (const event of stream) if (event.type === "delta" && stream.state.text) void stream.cancel();
    assert.deepEqual([stream.end?.type, stream.end?.data], ["cancelled", { ...stream.end?.data, reason: "user" }]);
  });

  await t.test("failures and refusals say what they are", async () => {
    const { id } = await direct.submit(sim({ tokens: 5, faults: [{ at_token: 2, kind: "error" }] }, { max_attempts: 1 }));
    await assert.rejects(direct.collect(id), { code: "failed" });
    await assert.rejects(direct.submit({ ...sim({}), nonsense: 1 } as never), { code: "invalid_request", message: /nonsense/ });
    await assert.rejects(all(direct.stream("gen_0000000000000000000000000000000f")), { code: "not_found" });
    await assert.rejects(all(direct.stream(id, { from: "nonsense" })), { code: "invalid_request" });
    await direct.delete(id);
    await assert.rejects(all(direct.stream(id)), { code: "gone" });
  });

  await t.test("behind the end there is nothing, and an unknown position is answered with the state", async () => {
    const { id } = await direct.submit(sim({ tokens: 12, seed: 5 }));
    const stream = direct.stream(id);
    await all(stream);
    assert.deepEqual(await all(direct.stream(id, { from: stream.position })), []);
    const rewound = await all(direct.stream(id, { from: "4-77" }));
    assert.equal(textOf(rewound), simulated(12, 5));
    assert.deepEqual(rewound.map((event) => event.type), ["open", "snapshot", "completed"]);
  });

  await t.test("by long-poll the text is the same", async () => {
    const { id } = await direct.submit(sim({ tokens: 60, seed: 8, tokens_per_second: 100 }));
    const stream = new Legato({ url, ...QUICK, transport: "poll" }).stream(id);
    assert.equal(textOf(await all(stream)), simulated(60, 8));
    assert.equal(stream.state.status, "completed");
  });

  await t.test("who comes back with what was put away has the same text as who stayed", async () => {
    const { id } = await direct.submit(sim({ tokens: 80, seed: 9, tokens_per_second: 20 }));
    const storage = new Memory();
    let visits = 0;
    for (let ended = false; !ended; visits++) {
      const stream = direct.stream(id, { storage });
      let seen = 0;
      for await (const event of stream) if (event.type === "delta" && ++seen === 5) break;
      ended = stream.end !== undefined;
      if (ended) assert.equal(stream.state.text, simulated(80, 9));
    }
    assert.ok(visits > 2, `${visits} visits`);
  });

  for (const transport of ["stream", "poll"] as const) {
    await t.test(`a thread gives one generation after the other, and nothing behind the last (${transport})`, async () => {
      const client = new Legato({ url, ...QUICK, transport });
      const thread = `chat/${transport} é`;
      assert.deepEqual(await all(client.thread(thread)), []);
      let from: string | undefined;
      for (const seed of [31, 32]) {
        const { id } = await direct.submit(sim({ tokens: 30, seed, tokens_per_second: 100 }, { thread }));
        const stream = client.thread(thread, { from });
        assert.equal(textOf(await all(stream)), simulated(30, seed));
        assert.deepEqual([stream.generation, stream.state.text, stream.end?.type], [id, simulated(30, seed), "completed"]);
        assert.deepEqual(await all(client.thread(thread, { from: stream.position })), []);
        from = stream.position;
      }
    });
  }

  await t.test("the same key is the same generation", async () => {
    const first = await direct.submit(sim({ tokens: 1 }), { idempotencyKey: "once" });
    const second = await direct.submit(sim({ tokens: 1 }), { idempotencyKey: "once" });
    assert.deepEqual([second.id, first.replayed, second.replayed], [first.id, false, true]);
  });
});
