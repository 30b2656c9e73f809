/**
 * One generation, read to its end over as many connections as it takes. The machine decides; here are the clock, the
 * connection, and what the page says.
 */
import { isKnown, isTerminal, type StreamEvent, type Terminal } from "./events.js";
import { LegatoError } from "./errors.js";
import { fold, NOTHING, type State } from "./fold.js";
import { START, step, type Limits, type Link, type Signal } from "./machine.js";
import { FrameReader, type Frame } from "./sse.js";
import { put, stored, type Store } from "./storage.js";
import { pageWakes, type Wake, type WakeSource } from "./wake.js";

export interface StreamOptions extends Partial<Limits> {
  /** Read what is behind this position, which an earlier stream gave. */
  readonly from?: string | undefined;
  /** The state that goes with `from`: what follows is folded on to it. */
  readonly state?: State | undefined;
  /** Begin with the folded state instead of all events so far, where there is no position. */
  readonly snapshot?: boolean | undefined;
  /** Ends the reading, not the generation; the iteration throws the signal's reason. */
  readonly signal?: AbortSignal | undefined;
  /** After so long without a byte the connection counts as dead. The server sends one every 15 s. */
  readonly silenceMs?: number | undefined;
  /** Keep cursor and state here, so that the next stream of this generation goes on from them. */
  readonly storage?: Store | undefined;
  /** Under this key; `legato:<generation>` by default. */
  readonly storageKey?: string | undefined;
  /** `poll` asks again and again instead of reading a body as it grows; `auto` does so where `fetch` cannot stream. */
  readonly transport?: "auto" | "stream" | "poll" | undefined;
  /** Tells when the page or the app wakes up; a browser's own events by default. */
  readonly wake?: WakeSource | undefined;
}

/** How the connection is; `closed` after `close()` or an abort. */
export type Connection = Link["phase"] | "closed";

/** Asks for the events behind a cursor. Rejects where there is no connection. */
export type Ask = (link: Link, poll: boolean, signal: AbortSignal) => Promise<Response>;

const DEFAULTS = { firstDelayMs: 500, maxDelayMs: 30_000, giveUpMs: Infinity, silenceMs: 45_000 };
/** A connection that was heard within this time is alive, also after a wake. */
const FRESH_MS = 1000;
/** Between two writes to the storage. */
const SAVE_MS = 250;
/** A long-poll that brings nothing sooner than this was not held by the server. */
const QUICK_MS = 1000;
/** Ids that are remembered, at most twice as many, to drop what comes twice. */
const REMEMBERED = 4096;

export class Stream implements AsyncIterable<StreamEvent> {
  #link: Link = START;
  #state: State;
  #end: Terminal | undefined;
  #closed = false;
  readonly #limits: typeof DEFAULTS;
  readonly #events: AsyncGenerator<StreamEvent, void, undefined>;
  #poll: boolean;
  #seen = new Set<string>();
  #seenBefore = new Set<string>();
  // Of the present connection or wait.
  #wakeUp: (() => void) | undefined;
  #heardAt = 0;
  #savedAt = 0;
  #saving: ReturnType<typeof setTimeout> | undefined;

  constructor(
    /** Its id; of a thread's stream it is known from the first event on. */
    public generation: string,
    private readonly ask: Ask,
    private readonly stop: (generation: string) => Promise<unknown>,
    private readonly options: StreamOptions,
  ) {
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    this.#limits = { ...DEFAULTS, ...Object.fromEntries(given) };
    this.#poll = options.transport === "poll";
    this.#state = options.state ?? NOTHING;
    if (options.from) this.#link = { ...START, cursor: options.from };
    else if (options.snapshot) this.#link = { ...START, snapshot: true };
    this.#events = this.#run();
  }

  /** What a reader of all events so far has. A new value whenever it changes. */
  get state(): State {
    return this.#state;
  }

  /** The cursor to come back with, in this process or another. */
  get position(): string | undefined {
    return this.#link.cursor;
  }

  get connection(): Connection {
    const { phase } = this.#link;
    return this.#closed && phase !== "ended" && phase !== "failed" ? "closed" : phase;
  }

  /** The terminal event, once it was seen. */
  get end(): Terminal | undefined {
    return this.#end;
  }

  /** A stream is read once. Leaving the loop closes the connection. */
  [Symbol.asyncIterator](): AsyncGenerator<StreamEvent, void, undefined> {
    return this.#events;
  }

  /** Stop reading; the generation goes on. A loop that waits for the next event ends. */
  close(): void {
    this.#closed = true;
    this.#wakeUp?.();
  }

  /** End the generation, for everybody. Its `cancelled` comes as the last event of this stream. */
  cancel(): Promise<unknown> {
    return this.stop(this.generation);
  }

  async *#run(): AsyncGenerator<StreamEvent, void, undefined> {
    const { signal, wake = pageWakes } = this.options;
    const abort = () => this.close();
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort);
    const unwatch = wake((kind) => this.#woken(kind));
    try {
      yield* this.#restore();
      while (!this.#closed) {
        if (this.#link.phase === "connecting") yield* this.#connect();
        else if (this.#link.phase === "waiting") {
          await this.#pause(this.#link.delayMs);
          yield* this.#signal({ is: "due" });
        } else break;
      }
    } finally {
      this.#closed = true;
      unwatch();
      signal?.removeEventListener("abort", abort);
      this.#save();
    }
    if (this.#link.error) throw this.#link.error;
    if (signal?.aborted) throw signal.reason ?? new Error("aborted");
  }

  /** One connection, from its request to its end. */
  async *#connect(): AsyncGenerator<StreamEvent, void, undefined> {
    const connection = new AbortController();
    let silence: ReturnType<typeof setTimeout> | undefined;
    let cause: string | undefined;
    let woken = false;
    const within = async <T>(answer: Promise<T>): Promise<T> => {
      this.#heardAt = Date.now();
      this.#wakeUp = () => {
        woken = true;
        connection.abort();
      };
      silence = setTimeout(() => {
        cause = `nothing came for ${this.#limits.silenceMs} ms`;
        connection.abort();
      }, this.#limits.silenceMs);
      try {
        if (this.#closed) connection.abort();
        return await answer;
      } finally {
        clearTimeout(silence);
        this.#wakeUp = undefined;
      }
    };
    try {
      const response = await within(this.ask(this.#link, this.#poll, connection.signal));
      const type = response.headers.get("content-type") ?? "";
      if (response.status !== 200) {
        const body = await within(response.text());
        const retryAfterMs = retryAfter(response.headers.get("retry-after"));
        yield* this.#signal({ is: "answer", status: response.status, body, retryAfterMs, ...chance() });
        return;
      }
      if (!type.includes(this.#poll ? "application/json" : "text/event-stream")) {
        throw new LegatoError("unexpected_answer", `expected a stream of events, got ${type || "no type"}`, 200);
      }
      if (this.#poll) {
        yield* this.#polled(await within(response.json()));
        return;
      }
      const body = response.body?.getReader();
      if (!body) {
        this.#poll = true; // this `fetch` gives a body only when it is whole
        return;
      }
      const reader = new FrameReader();
      for (;;) {
        const { done, value } = await within(body.read());
        if (done) break;
        for (const frame of reader.push(value)) {
          yield* this.#take(frame);
          if (this.#link.phase === "ended") return;
          if (frame.event === "error") throw new Error(`the server gave up the connection: ${frame.data}`);
        }
      }
      cause = "the connection ended before the generation did";
    } catch (error) {
      if (error instanceof LegatoError) {
        this.#link = { ...this.#link, phase: "failed", error };
        return;
      }
      cause ??= error instanceof Error ? error.message : String(error);
    } finally {
      connection.abort();
    }
    if (!this.#closed) yield* this.#signal(woken ? { is: "due" } : { is: "cut", cause, ...chance() });
  }

  /** A frame, if it comes for the first time. */
  *#take(frame: Frame): Generator<StreamEvent, void, undefined> {
    const { id } = frame;
    let data: any;
    if (frame.data !== undefined && isKnown(frame.event)) {
      data = JSON.parse(frame.data);
      if (Object(data) !== data || (frame.event === "delta" && typeof data.text !== "string")) {
        throw new Error(`the data of ${frame.event} cannot be read`);
      }
    }
    if (id !== undefined && frame.event !== "snapshot") {
      if (id === this.#link.cursor || this.#seen.has(id) || this.#seenBefore.has(id)) return;
      if (this.#seen.size >= REMEMBERED) [this.#seenBefore, this.#seen] = [this.#seen, new Set()];
      this.#seen.add(id);
    }
    yield* this.#signal({ is: "frame", event: frame.event, id, data, retry: frame.retry });
  }

  *#polled(answer: any): Generator<StreamEvent, void, undefined> {
    const { verdict, events, position, status } = Object(answer);
    if (verdict === null) {
      this.#link = { ...this.#link, phase: "ended" }; // a thread in which nothing more runs
      return;
    }
    if (!Array.isArray(events) || typeof position !== "string") {
      throw new LegatoError("unexpected_answer", "expected an answer with events and a position", 200);
    }
    const from = this.#link.cursor ?? "0-0";
    const generation = this.generation || position.split("/")[0]!; // a thread's positions say whose they are
    const open = { generation, verdict, from, head: position, status, attempt: this.#state.attempt };
    yield* this.#signal({ is: "frame", event: "open", id: undefined, data: open, retry: undefined });
    for (const { event, id, data } of events) {
      yield* this.#take({ event, id, data: JSON.stringify(data), retry: undefined });
    }
    if (this.#link.phase === "ended") return;
    if (events.length === 0 && isTerminal({ type: status })) this.#link = { ...this.#link, phase: "ended" };
    else if (events.length === 0 && Date.now() - this.#heardAt < QUICK_MS) {
      yield* this.#signal({ is: "cut", cause: "the server did not wait", ...chance() });
    } else yield* this.#signal({ is: "due" });
  }

  *#signal(signal: Signal): Generator<StreamEvent, void, undefined> {
    const [link, events] = step(this.#link, signal, this.#limits);
    this.#link = link;
    for (const event of events) {
      if (event.type === "open") this.generation ||= event.data.generation;
      if (event.type === "snapshot") {
        this.#seen.clear();
        this.#seenBefore.clear();
      }
      this.#state = fold(this.#state, event);
      if (isTerminal(event)) this.#end = event;
      if (event.position !== null) this.#saveSoon();
      yield event;
    }
  }

  /** Wait, unless something wakes it up. */
  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, Math.min(ms, 2 ** 31 - 1));
      this.#wakeUp = () => {
        clearTimeout(timer);
        resolve();
      };
      if (this.#closed) this.#wakeUp();
    });
  }

  #woken(kind: Wake): void {
    if (kind === "hidden") this.#save();
    else if (this.#link.phase === "waiting" || kind === "online" || Date.now() - this.#heardAt > FRESH_MS) this.#wakeUp?.();
  }

  get #key(): string {
    return this.options.storageKey ?? `legato:${this.generation}`;
  }

  async *#restore(): AsyncGenerator<StreamEvent, void, undefined> {
    const { storage, from } = this.options;
    const entry = storage && !from ? await stored(storage, this.#key) : undefined;
    if (entry?.generation !== this.generation) {
      if (storage && !from) this.#link = { ...this.#link, snapshot: true };
      this.#save(); // a reload before the first event finds the generation at least
      return;
    }
    const { position, state, end } = entry;
    this.#link = { ...this.#link, cursor: position, phase: end ? "ended" : "connecting" };
    this.#state = state;
    this.#end = end;
    yield { type: "snapshot", position, data: state };
    if (end) yield end;
  }

  #saveSoon(): void {
    if (!this.options.storage) return;
    if (this.#end || Date.now() - this.#savedAt > SAVE_MS) this.#save();
    else this.#saving ??= setTimeout(() => this.#save(), SAVE_MS);
  }

  #save(): void {
    const { storage, from, state } = this.options;
    clearTimeout(this.#saving);
    this.#saving = undefined;
    if (!storage || (from && !state)) return; // without what came before, the text is none to begin with
    this.#savedAt = Date.now();
    const { cursor: position = "0-0", error } = this.#link;
    const hopeless = error && error.code !== "unavailable";
    const entry = { generation: this.generation, position, state: this.#state, end: this.#end };
    void put(storage, this.#key, hopeless ? undefined : entry);
  }
}

const chance = () => ({ now: Date.now(), random: Math.random() });

/** Milliseconds of a `Retry-After`: seconds, or a date. */
export function retryAfter(header: string | null): number {
  const ms = Number(header) * 1000 || Date.parse(header ?? "") - Date.now();
  return ms > 0 ? ms : 0;
}
