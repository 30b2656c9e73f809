/** Submits, reads, cancels. Everything that asks the server comes back by itself from what may pass. */
import type { Generation, ListQuery, Page, Request, Submission } from "./events.js";
import { LegatoError } from "./errors.js";
import type { State } from "./fold.js";
import { START, step, type Limits } from "./machine.js";
import { retryAfter, Stream, type StreamOptions } from "./stream.js";

type Headers_ = Record<string, string>;

export interface LegatoOptions extends Omit<StreamOptions, "from" | "state" | "snapshot" | "signal" | "storage" | "storageKey"> {
  /** Where the API is, without a slash at its end. In a page it may be relative: `""`, `/api/legato`. */
  readonly url: string;
  /** Sent as `Authorization: Bearer`. A function is asked anew for each connection. */
  readonly token?: string | (() => string | Promise<string>) | undefined;
  /** More headers for every request. */
  readonly headers?: Headers_ | (() => Headers_ | Promise<Headers_>) | undefined;
  readonly credentials?: RequestCredentials | undefined;
  /** Instead of the global `fetch`. */
  readonly fetch?: typeof fetch | undefined;
}

export interface CallOptions extends Partial<Limits> {
  readonly signal?: AbortSignal | undefined;
  /** How long one try may take. */
  readonly silenceMs?: number | undefined;
}

export interface SubmitOptions extends CallOptions {
  /** A new random one by default; the same in each try. */
  readonly idempotencyKey?: string | undefined;
}

export interface ToolOutput {
  tool_call_id: string;
  content: unknown;
  is_error?: boolean;
}

/** How long a call other than a stream is tried, by default. */
const CALL_GIVE_UP_MS = 60_000;

export class Legato {
  constructor(private readonly options: LegatoOptions) {}

  /** Start a generation. It is billed once, however often this is tried: the key is the same in each try. */
  async submit(request: Request, options: SubmitOptions = {}): Promise<Submission & { replayed: boolean }> {
    const { idempotencyKey = randomKey() } = options;
    const [response, body] = await this.#call("POST", "", request, options, { "Idempotency-Key": idempotencyKey });
    if (typeof body?.id !== "string") throw new LegatoError("unexpected_answer", "the answer names no generation");
    return { ...body, replayed: response.headers.get("idempotent-replayed") === "true" };
  }

  /**
   * Read a generation to its end. Nothing is asked before the first event is waited for. Throws where the server says no,
   * not where the generation fails: that is its last event.
   */
  stream(generation: string | { id: string }, options: StreamOptions = {}): Stream {
    const id = idOf(generation);
    return this.#read(id, `/v1/generations/${id}/events`, options);
  }

  /**
   * Read the generation that runs in a thread, or its last one, to its end. With the position that this ends at as `from`:
   * the next one of the thread; no event where there is none yet. Positions of threads and of generations are not the same.
   */
  thread(name: string, options: Omit<StreamOptions, "storage" | "storageKey"> = {}): Stream {
    return this.#read("", `/v1/threads/${encodeURIComponent(name)}/events`, options);
  }

  #read(id: string, path: string, options: StreamOptions): Stream {
    const merged: StreamOptions = { ...this.options, ...options };
    // A `fetch` of its own may stream where the global one cannot: the body tells.
    const blind = !this.options.fetch && typeof Response === "function" && !("body" in Response.prototype);
    const transport = (merged.transport ?? "auto") === "auto" && blind ? "poll" : merged.transport;
    const wait = Math.min(25, Math.max(1, ((merged.silenceMs ?? 45_000) - 5_000) / 1000));
    return new Stream(
      id,
      async ({ cursor, snapshot }, poll, signal) => {
        const query = [...(poll ? [`wait=${wait}`] : []), ...(snapshot && !cursor ? ["from=snapshot"] : [])].join("&");
        const headers = { Accept: poll ? "application/json" : "text/event-stream" };
        const more = cursor ? { ...headers, "Last-Event-ID": cursor } : headers;
        return this.#fetch("GET", query ? `${path}?${query}` : path, undefined, more, signal);
      },
      (generation) => this.cancel(generation),
      { ...merged, transport },
    );
  }

  /** Read to the end and return the state. Throws where the generation failed or was cancelled. */
  async collect(generation: string | { id: string }, options: StreamOptions = {}): Promise<State> {
    const stream = this.stream(generation, { snapshot: true, ...options });
    for await (const _ of stream);
    const { end, state } = stream;
    if (end?.type === "failed")
      throw new LegatoError("failed", `${end.data.code}: ${end.data.message}`, undefined, end.data, state);
    if (end?.type === "cancelled")
      throw new LegatoError("cancelled", `cancelled: ${end.data.reason}`, undefined, end.data, state);
    return state;
  }

  /** End the generation. Once this returns, `cancelled` is the only end it can have, or it has ended before. */
  async cancel(generation: string | { id: string }, options: CallOptions = {}): Promise<Pick<Generation, "id" | "status">> {
    return (await this.#call("POST", `/${idOf(generation)}/cancel`, undefined, options))[1];
  }

  /** Record and folded state. */
  async get(generation: string | { id: string }, options: CallOptions = {}): Promise<Generation> {
    return (await this.#call("GET", `/${idOf(generation)}`, undefined, options))[1];
  }

  /** One page of generations, the newest first; `next_cursor` gives the next. */
  async list(query: ListQuery = {}, options: CallOptions = {}): Promise<Page> {
    const asked = Object.entries(query).flatMap(([name, value]) => (value === undefined ? [] : [[name, String(value)]]));
    return (await this.#call("GET", asked.length ? `?${new URLSearchParams(asked)}` : "", undefined, options))[1];
  }

  /** Erase prompt and log. One that is deleted already stays so. */
  async delete(generation: string | { id: string }, options: CallOptions = {}): Promise<void> {
    try {
      await this.#call("DELETE", `/${idOf(generation)}`, undefined, options);
    } catch (error) {
      if ((error as LegatoError).code !== "gone") throw error;
    }
  }

  /** Answer the calls that a generation with `tool_mode: "interactive"` waits for. */
  async toolResults(
    generation: string | { id: string },
    tool_results: ToolOutput[],
    options: CallOptions = {},
  ): Promise<{ id: string; accepted: number; owed: number }> {
    return (await this.#call("POST", `/${idOf(generation)}/tool_results`, { tool_results }, options))[1];
  }

  /** Any call of the API below `/v1/generations`, tried again while it may pass. */
  async #call(
    method: string,
    path: string,
    body: unknown,
    options: CallOptions,
    extra: Headers_ = {},
  ): Promise<[Response, any]> {
    const { signal } = options;
    const { firstDelayMs = 500, maxDelayMs = 30_000, silenceMs = 45_000 } = { ...this.options, ...options };
    const limits = { firstDelayMs, maxDelayMs, giveUpMs: options.giveUpMs ?? CALL_GIVE_UP_MS };
    let link = START;
    for (;;) {
      const trying = new AbortController();
      const abort = () => trying.abort(signal?.reason);
      if (signal?.aborted) abort();
      signal?.addEventListener("abort", abort);
      const timer = setTimeout(abort, silenceMs);
      const chance = () => ({ now: Date.now(), random: Math.random() });
      try {
        const response = await this.#fetch(method, `/v1/generations${path}`, body, extra, trying.signal);
        const text = await response.text();
        if (response.ok) return [response, text ? parsed(text) : undefined];
        const retryAfterMs = retryAfter(response.headers.get("retry-after"));
        [link] = step(link, { is: "answer", status: response.status, body: text, retryAfterMs, ...chance() }, limits);
      } catch (error) {
        if (signal?.aborted) throw signal.reason ?? error;
        if (error instanceof LegatoError) throw error;
        [link] = step(link, { is: "cut", cause: String(error), ...chance() }, limits);
      } finally {
        clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
      }
      if (link.error) throw link.error;
      await pause(link.delayMs, signal);
    }
  }

  async #fetch(method: string, path: string, body: unknown, extra: Headers_, signal: AbortSignal): Promise<Response> {
    const { url, token, headers, credentials, fetch: own = fetch } = this.options;
    const bearer = typeof token === "function" ? await token() : token;
    const more = typeof headers === "function" ? await headers() : headers;
    return own(url.replace(/\/$/, "") + path, {
      method,
      signal,
      // A redirected POST would become a GET, and submit nothing.
      redirect: method === "GET" ? "follow" : "manual",
      headers: {
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        ...(bearer && { Authorization: `Bearer ${bearer}` }),
        ...more,
        ...extra,
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      ...(credentials && { credentials }),
    });
  }
}

const idOf = (generation: string | { id: string }): string =>
  encodeURIComponent(typeof generation === "string" ? generation : generation.id);

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new LegatoError("unexpected_answer", "the answer is no JSON");
  }
}

const pause = (ms: number, signal: AbortSignal | undefined): Promise<void> =>
  new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, Math.min(ms, 2 ** 31 - 1));
    signal?.addEventListener("abort", done);
  });

/** A random key. `randomUUID` is there in secure contexts only, and a page under http is none. */
function randomKey(): string {
  const { crypto } = globalThis;
  if (crypto?.randomUUID) return crypto.randomUUID();
  const bytes = crypto?.getRandomValues?.(new Uint8Array(16)) ?? Array.from({ length: 16 }, () => Math.random() * 256);
  return Array.from(bytes, (byte) => Math.floor(byte).toString(16).padStart(2, "0")).join("");
}
