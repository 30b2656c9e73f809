/**
 * The life of one stream over its connections, as a value: every signal leads to a new link, and the link's phase says
 * what to do next. Pure: time and chance come with the signals.
 *
 *     connecting ──frame──► open ──terminal──► ended
 *        ▲  │ ▲               │ cut
 *        │  └─┼── cut, 5xx ───┤                 failed ◄── 4xx, or given up
 *        │    └──── woken ────┤
 *        └──── due ── waiting ◄
 */
import { isKnown, isTerminal, type Snapshot, type StreamEvent } from "./events.js";
import { errorOf, LegatoError, mayPass } from "./errors.js";

export interface Limits {
  /** Bound of the first random wait, doubled by each connection in turn that brings nothing. */
  readonly firstDelayMs: number;
  /** The most that bound grows to. */
  readonly maxDelayMs: number;
  /** How long no connection may become good before it is given up; 0 is one try. */
  readonly giveUpMs: number;
}

export interface Link {
  readonly phase: "connecting" | "open" | "waiting" | "ended" | "failed";
  /** Id of the last event that was wholly received. */
  readonly cursor: string | undefined;
  /** Ask for the folded state, as long as there is no cursor. */
  readonly snapshot: boolean;
  /** This connection was good: an `open` with a verdict, or an event of the log. */
  readonly good: boolean;
  /** Connections in a row that were not. */
  readonly failures: number;
  /** When they began. */
  readonly failingSince: number | undefined;
  /** The server's last `retry:`. */
  readonly retryMs: number;
  /** With `waiting`: until the next connection. */
  readonly delayMs: number;
  /** With `waiting`: what happened, for people. */
  readonly cause: string;
  /** With `failed`. */
  readonly error?: LegatoError;
}

export type Signal =
  /** A block of the stream. Its data is parsed JSON. */
  | { is: "frame"; event: string; id: string | undefined; data: any; retry: number | undefined }
  /** An answer that is no stream. */
  | { is: "answer"; status: number; body: string; retryAfterMs: number; now: number; random: number }
  /** The connection is over, however it ended, or there was none. */
  | { is: "cut"; cause: string; now: number; random: number }
  /** The wait is over, or the page woke up and its connection can not be trusted. */
  | { is: "due" };

export const START: Link = {
  phase: "connecting",
  cursor: undefined,
  snapshot: false,
  good: false,
  failures: 0,
  failingSince: undefined,
  retryMs: 0,
  delayMs: 0,
  cause: "",
};

const isCursor = (position: string | undefined): boolean => !!position && position !== "0-0";

/** The next link, and what the reader of the stream is told. */
export function step(link: Link, signal: Signal, limits: Limits): [Link, StreamEvent[]] {
  if (link.phase === "ended" || link.phase === "failed") return [link, []];
  switch (signal.is) {
    case "due":
      return [{ ...link, phase: "connecting", good: false }, []];
    case "frame":
      return frame(link, signal);
    case "cut":
      return wait(link, signal, 0, undefined, limits);
    case "answer": {
      if (signal.status === 204) return [{ ...link, phase: "ended" }, []];
      const error = errorOf(signal.status, signal.body);
      if (!mayPass(signal.status)) return [{ ...link, phase: "failed", error }, []];
      return wait(link, { ...signal, cause: error.message }, signal.retryAfterMs, error, limits);
    }
  }
}

function frame(link: Link, signal: Extract<Signal, { is: "frame" }>): [Link, StreamEvent[]] {
  const { event: type, id, data } = signal;
  const next: Link = { ...link, phase: "open", retryMs: signal.retry ?? link.retryMs, cursor: id ?? link.cursor };
  const good: Link = { ...next, good: true, failures: 0, failingSince: undefined };
  const told = isKnown(type) && data ? [{ type, position: id ?? null, data } as StreamEvent] : [];
  if (isTerminal({ type })) return [{ ...good, phase: "ended" }, told];
  if (id !== undefined) return [good, told];
  if (type !== "open" || !data?.verdict) return [next, told]; // without a verdict: a fault that passes, and a cut behind it
  if (data.verdict !== "start" || !isCursor(link.cursor)) return [good, told];
  // The cursor was lost on the way, by a proxy that drops the header: what follows is the whole, from the first event.
  const nothing: Snapshot = { text: "", tool_calls: [], attempt: 0, status: data.status };
  return [{ ...good, cursor: undefined }, [...told, { type: "snapshot", position: "0-0", data: nothing }]];
}

function wait(
  link: Link,
  signal: { cause: string; now: number; random: number },
  retryAfterMs: number,
  error: LegatoError | undefined,
  limits: Limits,
): [Link, StreamEvent[]] {
  const { cause, now } = signal;
  const failures = link.good ? 0 : link.failures + 1;
  const failingSince = link.failingSince ?? now;
  const left = limits.giveUpMs - (now - failingSince);
  const least = Math.max(link.retryMs, retryAfterMs);
  if (left <= 0 || retryAfterMs > left) {
    const why = new LegatoError("unavailable", `given up: ${cause}`, error?.status, error?.detail);
    return [{ ...link, phase: "failed", error: why }, []];
  }
  const bound = Math.min(limits.maxDelayMs, limits.firstDelayMs * 2 ** Math.max(0, failures - 1));
  const random = failures || !least ? signal.random * bound : 0;
  const delayMs = Math.round(Math.max(least, Math.min(least + random, left)));
  return [
    { ...link, phase: "waiting", failures, failingSince, delayMs, cause },
    [{ type: "reconnecting", position: null, data: { delay_ms: delayMs, cause } }],
  ];
}
