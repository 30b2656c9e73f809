/** What the tests share: a server that says what a script tells it to, a proxy that cuts, and the real thing. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import * as http from "node:http";
import * as net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { TestContext } from "node:test";
import { Legato, type LegatoOptions, type Stream, type StreamEvent } from "../src/index.js";

export type Handler = (exchange: Exchange) => void | Promise<void>;

/** One request, and the means to answer it well or badly. */
export class Exchange {
  body = "";

  constructor(
    readonly request: http.IncomingMessage,
    readonly response: http.ServerResponse,
  ) {}

  get cursor(): string | undefined {
    return this.request.headers["last-event-id"] as string | undefined;
  }

  get query(): URLSearchParams {
    return new URL(this.request.url!, "http://x").searchParams;
  }

  sse(...blocks: string[]): this {
    if (!this.response.headersSent) this.response.writeHead(200, { "Content-Type": "text/event-stream; charset=utf-8" });
    for (const block of blocks) this.response.write(block);
    return this;
  }

  /** What was written goes out, then the connection is reset. */
  async cut(): Promise<void> {
    await new Promise((resolve) => this.response.write("", resolve));
    this.response.socket?.destroy();
  }

  end(): void {
    this.response.end();
  }

  answer(status: number, body: unknown = undefined, headers: Record<string, string> = {}): void {
    const text = body === undefined ? "" : JSON.stringify(body);
    const type = status >= 400 ? "application/problem+json" : "application/json";
    this.response.writeHead(status, { "Content-Type": type, ...headers }).end(text);
  }

  /** Resolves when the client has closed the connection. */
  async gone(): Promise<void> {
    if (!this.response.destroyed) await once(this.response, "close");
  }
}

/** A server that answers the n-th request with the n-th handler, and all later ones with the last. */
export class Scripted {
  readonly exchanges: Exchange[] = [];
  readonly #server: http.Server;
  #waiting: (() => void)[] = [];

  private constructor(handlers: Handler[]) {
    this.#server = http.createServer(async (request, response) => {
      const exchange = new Exchange(request, response);
      for await (const chunk of request) exchange.body += chunk;
      this.exchanges.push(exchange);
      for (const resolve of this.#waiting.splice(0)) resolve();
      await handlers[Math.min(this.exchanges.length, handlers.length) - 1]!(exchange);
    });
  }

  static async start(t: TestContext, ...handlers: Handler[]): Promise<Scripted> {
    const scripted = new Scripted(handlers);
    scripted.#server.listen(0, "127.0.0.1");
    await once(scripted.#server, "listening");
    t.after(() => {
      scripted.#server.closeAllConnections();
      scripted.#server.close();
    });
    return scripted;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as net.AddressInfo).port}`;
  }

  get cursors(): (string | undefined)[] {
    return this.exchanges.map((exchange) => exchange.cursor);
  }

  /** Resolves with the n-th request, from 1. */
  async request(n: number): Promise<Exchange> {
    while (this.exchanges.length < n) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    return this.exchanges[n - 1]!;
  }

  client(options: Partial<LegatoOptions> = {}): Legato {
    return new Legato({ url: this.url, firstDelayMs: 2, maxDelayMs: 10, giveUpMs: 10_000, silenceMs: 10_000, ...options });
  }
}

export const GENERATION = "gen_0000000000000000000000000000000a";

export const block = (event: string, id: string | undefined, data: unknown, retry?: number): string =>
  `event: ${event}\n${id ? `id: ${id}\n` : ""}${retry === undefined ? "" : `retry: ${retry}\n`}data: ${JSON.stringify(data)}\n\n`;

export const open = (verdict: string | null, from = "0-0", retry = 1): string =>
  block("open", undefined, { generation: GENERATION, verdict, from, head: "9-1", status: "running", attempt: 1 }, retry);

export const started = block("started", "1-1", { attempt: 1, provider: "sim", model: "sim" });
export const delta = (id: string, text: string): string => block("delta", id, { text });
export const completed = (id: string, characters = 0): string =>
  block("completed", id, { finish_reason: "stop", usage: { input_tokens: 1, output_tokens: 2 }, characters });

/** Every event of a stream. */
export async function all(stream: Stream): Promise<StreamEvent[]> {
  const events: StreamEvent[] = [];
  for await (const event of stream) events.push(event);
  return events;
}

/** What a consumer has that follows the least a client must do, by the events alone. */
export function textOf(events: StreamEvent[]): string {
  let text = "";
  for (const { type, data } of events) {
    if (type === "delta" && !data.kind) text += data.text;
    else if (type === "reset") text = "";
    else if (type === "snapshot") text = data.text;
  }
  return text;
}

export class Memory {
  readonly entries = new Map<string, string>();
  readonly getItem = (key: string) => this.entries.get(key) ?? null;
  readonly setItem = (key: string, value: string) => void this.entries.set(key, value);
  readonly removeItem = (key: string) => void this.entries.delete(key);
}

/** `legato dev` on a free port with data of its own. */
export async function legatoDev(t: TestContext, environment: Record<string, string> = {}): Promise<string> {
  const command = process.env["LEGATO"];
  if (!command) throw new Error("LEGATO must name the legato command; make test-node sets it");
  const data = await mkdtemp(join(tmpdir(), "legato-node-"));
  const child = spawn(command, ["dev", "--port", "0", "--data", data], {
    env: { ...process.env, LEGATO_LOG_LEVEL: "warning", ...environment },
    stdio: ["ignore", "pipe", "pipe"],
  });
  child.stderr.pipe(process.stderr, { end: false });
  const exited = once(child, "exit");
  // A test that is ended for its time must not leave a server behind.
  const bury = (): void => void child.kill("SIGKILL");
  const leave = (): void => process.exit(1);
  process.once("exit", bury).once("SIGTERM", leave);
  t.after(async () => {
    process.off("exit", bury).off("SIGTERM", leave);
    child.kill("SIGTERM");
    await exited;
    await rm(data, { recursive: true, force: true });
  });
  for await (const line of createInterface({ input: child.stdout })) {
    const url = /http:\/\/[\d.:]+/.exec(line)?.[0];
    if (url) {
      child.stdout.resume();
      return url;
    }
  }
  throw new Error("legato dev ended before it said where it is");
}

/** A proxy that resets each connection once it has carried so many bytes to its client. */
export async function cuttingProxy(t: TestContext, upstream: string, sizes: () => number): Promise<{ url: string; cuts: () => number }> {
  const { port, hostname } = new URL(upstream);
  const open = new Set<net.Socket>();
  let cuts = 0;
  const server = net.createServer((near) => {
    const far = net.connect(Number(port), hostname);
    let left = sizes();
    for (const socket of [near, far]) {
      open.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => (open.delete(socket), near.destroy(), far.destroy()));
    }
    near.pipe(far);
    far.on("data", (chunk: Buffer) => {
      near.write(chunk.subarray(0, left));
      left -= chunk.length;
      if (left > 0) return;
      cuts++;
      far.destroy();
      near.resetAndDestroy();
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.close();
    for (const socket of open) socket.destroy();
  });
  return { url: `http://127.0.0.1:${(server.address() as net.AddressInfo).port}`, cuts: () => cuts };
}

/** A body for the simulated provider. */
export const sim = (options: Record<string, unknown>, fields: Record<string, unknown> = {}) => ({
  provider: "sim",
  model: "sim-1",
  messages: [{ role: "user" as const, content: "Say something." }],
  provider_options: options,
  ...fields,
});
