/**
 * Lets the conformance suite drive this client: JSON lines on stdin and stdout (docs/how-to/write-a-client.md). It writes
 * what the client gave it, and heals, folds or drops nothing itself.
 */
import { createInterface } from "node:readline";
import { Legato, LegatoError } from "../dist/index.js";

const streams = new Map();
const say = (id, line) => process.stdout.write(`${JSON.stringify({ id, ...line })}\n`);

const LIMITS = { silence_ms: "silenceMs", give_up_ms: "giveUpMs", first_delay_ms: "firstDelayMs", max_delay_ms: "maxDelayMs" };
const limits = (options = {}) =>
  Object.fromEntries(Object.entries(LIMITS).flatMap(([name, ours]) => (name in options ? [[ours, options[name]]] : [])));

const ops = {
  async hello() {
    return { outcome: "ok", client: "@legato/client 0.1.0", ops: Object.keys(ops) };
  },

  async stream({ id, url, generation, from, snapshot, options }) {
    const stream = new Legato({ url }).stream(generation, { from: from ?? undefined, snapshot, ...limits(options) });
    streams.set(id, stream);
    let outcome;
    try {
      for await (const { type, position, data } of stream) {
        if (type !== "reconnecting") say(id, { event: type, position, data });
      }
      outcome = { outcome: stream.end?.type ?? (stream.connection === "closed" ? "stopped" : "ended") };
    } catch (error) {
      outcome = failure(error);
    } finally {
      streams.delete(id);
    }
    return { ...outcome, text: stream.state.text, position: stream.position ?? null };
  },

  /** A stream of this client's is one generation; behind its end a page asks for the thread's next one, as here. */
  async stream_thread({ id, url, thread, from, options }) {
    const legato = new Legato({ url });
    let [position, text] = [from ?? undefined, ""];
    try {
      for (;;) {
        const stream = legato.thread(thread, { from: position, ...limits(options) });
        streams.set(id, stream);
        for await (const { type, position: place, data } of stream) {
          if (type !== "reconnecting") say(id, { event: type, position: place, data });
          text = stream.state.text;
        }
        position = stream.position;
        if (!stream.end) {
          return { outcome: stream.connection === "closed" ? "stopped" : "ended", text, position: position ?? null };
        }
      }
    } catch (error) {
      return failure(error);
    } finally {
      streams.delete(id);
    }
  },

  async collect({ url, generation, options }) {
    try {
      const { status, text } = await new Legato({ url }).collect(generation, limits(options));
      return { outcome: status, text };
    } catch (error) {
      if (error instanceof LegatoError && error.state) return { outcome: error.code, text: error.state.text };
      throw error;
    }
  },

  async submit({ url, request, idempotency_key, options }) {
    const { id, replayed } = await new Legato({ url }).submit(request, { idempotencyKey: idempotency_key, ...limits(options) });
    return { outcome: "ok", generation: id, replayed };
  },

  async get({ url, generation, options }) {
    return { outcome: "ok", state: await new Legato({ url }).get(generation, limits(options)) };
  },

  async list({ url, query, options }) {
    const { data, next_cursor } = await new Legato({ url }).list(query, limits(options));
    return { outcome: "ok", generations: data.map(({ id }) => id), next_cursor };
  },

  async cancel({ url, generation, options }) {
    const { status } = await new Legato({ url }).cancel(generation, limits(options));
    return { outcome: "ok", status };
  },

  async delete({ url, generation, options }) {
    await new Legato({ url }).delete(generation, limits(options));
    return { outcome: "ok" };
  },

  async stop({ target }) {
    streams.get(target)?.close();
    return { outcome: "ok" };
  },
};

function failure(error) {
  if (error instanceof LegatoError) return { outcome: "error", error: error.code, message: error.message };
  throw error;
}

for await (const line of createInterface({ input: process.stdin })) {
  const { id, op, ...fields } = JSON.parse(line);
  if (!ops[op]) say(id, { outcome: "unsupported" });
  else {
    ops[op]({ id, ...fields })
      .catch(failure)
      .then((outcome) => say(id, outcome));
  }
}
// The end of stdin is the end of everything that still runs.
process.exit(0);
