/**
 * What a reader of all events up to here has: the folded state. Pure; a new value for each event that changes it, so
 * that a view may compare by identity.
 */
import type { Failure, Phase, Snapshot, StreamEvent, ToolCall } from "./events.js";

export interface State extends Snapshot {
  /** Where a silent generation is: its last `status`, until something else comes. */
  readonly phase?: Phase | undefined;
  readonly finish_reason?: string | undefined;
  /** Why it failed, if it did. */
  readonly failure?: Failure | undefined;
}

export const NOTHING: State = { text: "", tool_calls: [], attempt: 0, status: "queued" };

const STATUS_OF_PHASE: Record<string, State["status"]> = { retrying: "retrying", waiting_for_tools: "waiting_for_tools" };

export function fold(state: State, event: StreamEvent): State {
  switch (event.type) {
    case "delta": {
      const part = event.data.kind ?? "text";
      return { ...state, phase: undefined, [part]: (state[part] ?? "") + event.data.text };
    }
    case "tool_call": {
      const seen = state.tool_calls.find((call) => call.index === event.data.index);
      return withCall(state, {
        index: event.data.index,
        id: event.data.id ?? seen?.id ?? "",
        name: event.data.name ?? seen?.name ?? "",
        arguments: (seen?.arguments ?? "") + event.data.arguments,
      });
    }
    case "tool_call_done":
      return withCall(state, event.data);
    case "tool_result":
      return { ...state, phase: undefined, tool_results: [...(state.tool_results ?? []), event.data] };
    case "part":
      return { ...state, parts: [...(state.parts ?? []), event.data] };
    case "started":
      return { ...state, phase: undefined, attempt: event.data.attempt, status: "running" };
    case "reset":
      return { ...NOTHING, attempt: event.data.attempt, status: "running" };
    case "snapshot":
      return { ...NOTHING, ...event.data };
    case "status":
      return { ...state, phase: event.data, status: STATUS_OF_PHASE[event.data.phase] ?? "running" };
    case "usage":
      return { ...state, usage: event.data };
    case "open":
      return event.data.status ? { ...state, status: event.data.status } : state;
    case "completed":
    case "cancelled":
    case "failed": {
      const end = event.data;
      const usage = ("usage" in end && end.usage) || state.usage;
      return {
        ...state,
        phase: undefined,
        status: event.type,
        ...(usage && { usage }),
        ...("finish_reason" in end && { finish_reason: end.finish_reason }),
        ...(event.type === "failed" && { failure: event.data }),
      };
    }
    default:
      return state;
  }
}

function withCall(state: State, call: ToolCall): State {
  const others = state.tool_calls.filter((other) => other.index !== call.index);
  return { ...state, phase: undefined, tool_calls: [...others, call].sort((a, b) => a.index - b.index) };
}
