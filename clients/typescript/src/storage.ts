/**
 * Cursor and folded state, put away together, so that who comes back (a reload, a tab that was killed) has exactly the
 * text that belongs to the cursor. What cannot be read, or is of another generation, counts as nothing.
 */
import type { Terminal } from "./events.js";
import type { State } from "./fold.js";

/** `localStorage`, `sessionStorage`, React Native's AsyncStorage, or the like. */
export interface Store {
  getItem(key: string): string | null | Promise<string | null>;
  setItem(key: string, value: string): unknown;
  removeItem(key: string): unknown;
}

export interface Stored {
  readonly generation: string;
  readonly position: string;
  readonly state: State;
  /** The terminal event, if it was seen. */
  readonly end?: Terminal | undefined;
}

/** What was put away under this key. */
export async function stored(store: Store, key: string): Promise<Stored | undefined> {
  try {
    const entry = JSON.parse((await store.getItem(key)) ?? "null");
    const whole = entry && [entry.generation, entry.position, entry.state.text].every((it) => typeof it === "string");
    return whole && Array.isArray(entry.state.tool_calls) ? entry : undefined;
  } catch {
    return undefined;
  }
}

/** Put away, or remove where there is no entry. A store that is full or forbidden costs the reload, and not the stream. */
export async function put(store: Store, key: string, entry: Stored | undefined): Promise<void> {
  try {
    await (entry ? store.setItem(key, JSON.stringify(entry)) : store.removeItem(key));
  } catch {
    // The next reader begins with a snapshot instead.
  }
}
