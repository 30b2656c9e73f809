/** A page for React, and a Legato whose answers the test writes. */
import { Window } from "happy-dom";
import { Legato } from "@legato/client";

const window = new Window({ url: "http://localhost/" });
for (const name of ["window", "document", "HTMLElement", "HTMLIFrameElement", "Node", "Event", "MutationObserver", "navigator"] as const) {
  Object.defineProperty(globalThis, name, { value: name === "window" ? window : window[name], configurable: true, writable: true });
}
(globalThis as { IS_REACT_ACT_ENVIRONMENT?: boolean }).IS_REACT_ACT_ENVIRONMENT = true;

export const GENERATION = "gen_0000000000000000000000000000000a";
export const OTHER = "gen_0000000000000000000000000000000b";

export interface Call {
  readonly method: string;
  readonly path: string;
  readonly cursor: string | null;
  readonly body: unknown;
  readonly signal: AbortSignal;
  /** Answer with a stream, and write to it. */
  stream(...blocks: string[]): void;
  /** End the body, which is a cut unless a terminal event came. */
  end(): void;
  answer(status: number, body?: unknown): void;
}

/** A client, and the calls that it makes, in order. */
export function server(): { client: Legato; calls: Call[]; call: (n: number) => Promise<Call> } {
  const calls: Call[] = [];
  let waiting: (() => void)[] = [];
  const fake: typeof fetch = (input, init = {}) =>
    new Promise((resolve, reject) => {
      let body: ReadableStreamDefaultController<Uint8Array> | undefined;
      const signal = init.signal!;
      signal.addEventListener("abort", () => {
        reject(new Error("aborted"));
        try {
          body?.error(new Error("aborted"));
        } catch {
          // closed already
        }
      });
      const url = new URL(String(input), "http://x");
      calls.push({
        method: init.method!,
        path: url.pathname,
        cursor: new Headers(init.headers).get("last-event-id"),
        body: init.body ? JSON.parse(String(init.body)) : undefined,
        signal,
        stream(...blocks) {
          if (!body) {
            const stream = new ReadableStream<Uint8Array>({ start: (controller) => void (body = controller) });
            resolve(new Response(stream, { headers: { "Content-Type": "text/event-stream" } }));
          }
          for (const text of blocks) body!.enqueue(new TextEncoder().encode(text));
        },
        end: () => body!.close(),
        answer: (status, json) => resolve(new Response(json === undefined ? null : JSON.stringify(json), { status })),
      });
      for (const next of waiting.splice(0)) next();
    });
  const call = async (n: number): Promise<Call> => {
    while (calls.length < n) await new Promise<void>((resolve) => waiting.push(resolve));
    return calls[n - 1]!;
  };
  return { client: new Legato({ url: "", fetch: fake, firstDelayMs: 1, maxDelayMs: 2 }), calls, call };
}

export const block = (event: string, id: string | undefined, data: unknown): string =>
  `event: ${event}\n${id ? `id: ${id}\n` : ""}data: ${JSON.stringify(data)}\n\n`;
export const open = (verdict = "start", status = "running", generation = GENERATION): string =>
  block("open", undefined, { generation, verdict, from: "0-0", head: "1-1", status, attempt: 1 });
export const delta = (id: string, text: string): string => block("delta", id, { text });
export const completed = (id: string): string => block("completed", id, { finish_reason: "stop", usage: null, characters: 0 });

/** Until what the stream brought has come through. */
export const settled = async (): Promise<void> => {
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
};

/** A schedule whose frames the test decides. */
export function frames(): { schedule: (flush: () => void) => () => void; frame: () => void; asked: () => number } {
  let pending: (() => void) | undefined;
  let asked = 0;
  return {
    schedule: (flush) => {
      asked++;
      pending = flush;
      return () => void (pending = undefined);
    },
    frame: () => {
      const flush = pending;
      pending = undefined;
      flush?.();
    },
    asked: () => asked,
  };
}
