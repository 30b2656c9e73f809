"use client";
import type { Failure, Legato, LegatoError, State, ToolCall } from "@legato/client";
import { useEffect, useMemo, useState, useSyncExternalStore } from "react";
import { GenerationStore, type StoreOptions, type View } from "./store.js";

export interface UseGeneration extends View {
  readonly text: string;
  readonly reasoning: string | undefined;
  readonly toolCalls: readonly ToolCall[];
  /** Of the generation; `idle` where there is none. */
  readonly status: State["status"] | "idle";
  /** It has not ended, and nothing of it is there yet. */
  readonly loading: boolean;
  /** It has not ended: there is something to stop. */
  readonly running: boolean;
  /** The connection is lost and comes back by itself; what is shown stays. */
  readonly reconnecting: boolean;
  /** Why it failed, or why it cannot be read. */
  readonly problem: LegatoError | Failure | undefined;
  readonly submit: GenerationStore["submit"];
  readonly stop: GenerationStore["stop"];
  readonly retry: GenerationStore["retry"];
}

/**
 * Shows a generation: the one named by `id`, the one being read before a reload (`storage` and `storageKey`), or the one that
 * `submit` starts. Renders at most once a frame. Reads only while it is mounted; leaving is not cancelling.
 */
export function useGeneration(client: Legato, options: Omit<StoreOptions, "thread" | "threadPollMs"> = {}): UseGeneration {
  const [store] = useState(() => new GenerationStore(client, options));
  const { id } = options;
  useEffect(() => {
    if (id !== undefined) store.show(id);
  }, [store, id]);
  return useStore(store);
}

/**
 * Shows what a thread is doing: its running generation, or the last one; then the next, whichever device started it. `submit`
 * adds the thread to its request, and shows that generation.
 */
export function useThread(client: Legato, thread: string, options: Pick<StoreOptions, "schedule" | "threadPollMs"> = {}): UseGeneration {
  const store = useMemo(() => new GenerationStore(client, { ...options, thread }), [client, thread]);
  return useStore(store);
}

function useStore(store: GenerationStore): UseGeneration {
  const view = useSyncExternalStore(store.subscribe, store.view, () => store.initial);
  return useMemo(() => {
    const { state, connection, error, id } = view;
    const ended = connection === "ended" || connection === "failed" || connection === "idle";
    const something = state.text || state.reasoning || state.refusal || state.tool_calls.length > 0;
    return {
      ...view,
      text: state.text,
      reasoning: state.reasoning,
      toolCalls: state.tool_calls,
      status: connection === "idle" && !id ? "idle" : state.status,
      loading: !ended && !something,
      running: !ended,
      reconnecting: connection === "waiting" && !error,
      problem: error ?? state.failure,
      submit: store.submit,
      stop: store.stop,
      retry: store.retry,
    };
  }, [store, view]);
}
