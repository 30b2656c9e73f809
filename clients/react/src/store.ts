/**
 * What a component shows of a generation, kept outside of React: reads while somebody looks, goes on from its position when
 * somebody looks again, and tells of changes once a frame. It knows nothing of rendering; `useGeneration` does.
 */
import {
  isTerminal,
  LegatoError,
  NOTHING,
  stored,
  type Connection,
  type Failure,
  type Generation,
  type Legato,
  type Request,
  type State,
  type Store,
  type Stream,
} from "@legato/client";
import { byFrames, type Schedule } from "./frames.js";

export interface View {
  /** The generation; undefined as long as there is none. */
  readonly id: string | undefined;
  readonly state: State;
  /** `idle`: there is nothing to read. */
  readonly connection: Connection | "idle";
  /** What keeps it from being read or submitted. A generation that failed is no error of this kind: see `state.failure`. */
  readonly error: LegatoError | undefined;
}

export interface StoreOptions {
  /** The generation to show, from the start. */
  readonly id?: string | undefined;
  /** Show the running, or last, generation of this thread, and then the next ones. */
  readonly thread?: string | undefined;
  /** What a server got for the first rendering. */
  readonly initial?: Generation | undefined;
  /** Where cursor and text are kept over a reload, under `storageKey`. */
  readonly storage?: Store | undefined;
  readonly storageKey?: string | undefined;
  /** How often a thread is asked for its next generation while none runs. */
  readonly threadPollMs?: number | undefined;
  readonly schedule?: Schedule | undefined;
}

const IDLE: View = { id: undefined, state: NOTHING, connection: "idle", error: undefined };
const THREAD_POLL_MS = 3000;

export class GenerationStore {
  /** For the rendering on a server, and the first one in the page, which must be the same. */
  readonly initial: View;
  #view: View; // what is true
  #shown: View; // what was told
  #position: string | undefined;
  #listeners = new Set<() => void>();
  #unschedule: (() => void) | undefined;
  #stream: Stream | undefined;
  #reading = 0; // counts what is read, so that an older one that still ends changes nothing
  #submitting: AbortController | undefined;
  #stopWanted = false;
  #request: Request | undefined;
  #wake: (() => void) | undefined;

  readonly #schedule: Schedule;

  constructor(
    private readonly client: Legato,
    private readonly options: StoreOptions = {},
  ) {
    this.#schedule = options.schedule ?? byFrames();
    const { initial, id } = options;
    this.#position = initial?.position;
    const state = initial ? stateOf(initial) : NOTHING;
    const ended = initial !== undefined && isTerminal({ type: initial.status });
    const connection = ended ? "ended" : initial || id || options.thread ? "connecting" : "idle";
    this.#view = this.#shown = this.initial = { ...IDLE, id: initial?.id ?? id, state, connection };
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    if (this.#listeners.size === 1) this.#start();
    return () => {
      this.#listeners.delete(listener);
      // StrictMode, and a list that is sorted, leave and come back at once: the connection is kept for that long.
      setTimeout(() => {
        if (this.#listeners.size === 0) this.#leave();
      });
    };
  };

  readonly view = (): View => this.#shown;

  /** Show another generation, or none. */
  readonly show = (id: string | undefined): void => {
    if (id === this.#view.id) return;
    this.#leave();
    this.#position = undefined;
    this.#set({ ...IDLE, id, connection: id ? "connecting" : "idle" });
    if (this.#listeners.size > 0) this.#start();
  };

  /** Submit, and show what comes of it. Resolves to the id once it is stored; undefined where that failed, or another one came. */
  readonly submit = async (request: Request): Promise<string | undefined> => {
    this.#leave();
    const submitting = (this.#submitting = new AbortController());
    this.#request = request;
    this.#position = undefined;
    this.#stopWanted = false;
    this.#set({ ...IDLE, connection: "connecting" });
    try {
      const { id } = await this.client.submit(request, { signal: submitting.signal });
      if (this.#submitting !== submitting) return undefined;
      this.#submitting = undefined;
      this.#set({ ...this.#view, id });
      if (this.#stopWanted) void this.stop();
      if (this.#listeners.size > 0) this.#start();
      return id;
    } catch (error) {
      if (this.#submitting !== submitting) return undefined;
      this.#submitting = undefined;
      this.#set({ ...this.#view, connection: "failed", error: asError(error) });
      return undefined;
    }
  };

  /** End the generation for everybody. Its end comes by the stream. */
  readonly stop = async (): Promise<void> => {
    const { id, state } = this.#view;
    if (!id) this.#stopWanted = this.#submitting !== undefined; // as soon as it has an id
    if (!id || isTerminal({ type: state.status })) return;
    this.#set({ ...this.#view, state: { ...state, status: "cancelling" } });
    try {
      await this.client.cancel(id);
    } catch (error) {
      if (this.#view.id === id) this.#set({ ...this.#view, error: asError(error) });
    }
  };

  /** Try again: the same request, if that is what failed or ended; else the reading. */
  readonly retry = (): void => {
    const { state, id, error } = this.#view;
    const over = !id || isTerminal({ type: state.status });
    if (over && this.#request) {
      void this.submit(this.#request);
    } else if (error) {
      this.#set({ ...this.#view, connection: "connecting", error: undefined });
      this.#start();
    }
  };

  #start(): void {
    if (this.#stream || this.#submitting) return;
    const { id, connection } = this.#view;
    const { thread } = this.options;
    if (thread !== undefined && !this.#request) void this.#follow(thread);
    else if (id && (connection === "connecting" || connection === "closed")) void this.#read(this.#open(id));
    else if (!id) void this.#resume();
  }

  /** What was being read before the page was loaded anew, if anything was. */
  async #resume(): Promise<void> {
    const { storage, storageKey } = this.options;
    if (!storage || !storageKey) return;
    const before = await stored(storage, storageKey);
    if (before && !this.#view.id && !this.#submitting) this.show(before.generation);
  }

  #open(id: string): Stream {
    const { storage, storageKey } = this.options;
    const from = this.#position && { from: this.#position, state: this.#view.state };
    return this.client.stream(id, { snapshot: true, storage, storageKey, ...from });
  }

  /** One generation of a thread after the other. */
  async #follow(thread: string): Promise<void> {
    const reading = ++this.#reading;
    while (reading === this.#reading) {
      const { id, state } = this.#view;
      const over = isTerminal({ type: state.status });
      const from = this.#position && { from: this.#position, ...(!over && { state }) };
      const came = await this.#read(this.client.thread(thread, { snapshot: true, ...from }), reading, over);
      if (reading !== this.#reading || this.#view.connection === "failed") return;
      if (!came || id === this.#view.id) await this.#pause(this.options.threadPollMs ?? THREAD_POLL_MS);
    }
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Whether anything came. `quiet`: what is shown stays until something does. */
  async #read(stream: Stream, reading = ++this.#reading, quiet = false): Promise<boolean> {
    this.#stream = stream;
    let came = false;
    const look = (): void => {
      const { state, position, generation, connection } = stream;
      if (quiet && !came) return;
      this.#position = position;
      this.#set({ id: generation || this.#view.id, state, connection, error: undefined });
    };
    try {
      for await (const event of stream) {
        if (reading !== this.#reading) return came;
        came ||= event.position !== null;
        look();
      }
      if (reading === this.#reading) look();
      if (reading === this.#reading && !came && !this.#view.id) this.#set({ ...this.#view, connection: "idle" });
    } catch (error) {
      if (reading === this.#reading) this.#set({ ...this.#view, connection: "failed", error: asError(error) });
    } finally {
      if (this.#stream === stream) this.#stream = undefined;
    }
    return came;
  }

  /** Stop reading and submitting. The generation goes on. */
  #leave(): void {
    this.#reading++;
    this.#submitting?.abort();
    this.#submitting = undefined;
    this.#stream?.close();
    this.#stream = undefined;
    this.#wake?.();
    this.#wake = undefined;
    const { connection } = this.#view;
    if (connection === "open" || connection === "waiting") this.#view = { ...this.#view, connection: "connecting" };
  }

  #set(view: View): void {
    this.#view = view;
    this.#unschedule ??= this.#schedule(() => {
      this.#unschedule = undefined;
      this.#shown = this.#view;
      for (const listener of this.#listeners) listener();
    });
  }
}

/** The folded state of a record. */
function stateOf(generation: Generation): State {
  const { text, reasoning, refusal, tool_calls, tool_results, parts, attempt, status, usage, finish_reason, error } = generation;
  const optional = { reasoning, refusal, tool_results, parts, usage, finish_reason: finish_reason ?? undefined };
  const known = Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== undefined));
  const failure: Failure | undefined = error ? { retryable: false, partial: text !== "", ...error } : undefined;
  return { text, tool_calls, attempt, status, ...known, ...(failure && { failure }) };
}

const asError = (error: unknown): LegatoError =>
  error instanceof LegatoError ? error : new LegatoError("unavailable", error instanceof Error ? error.message : String(error));
