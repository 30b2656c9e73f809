/** What comes over the wire, as types. Names are the protocol's own: docs/protocol.md, section 9. */

export type Status =
  | "queued"
  | "running"
  | "retrying"
  | "waiting_for_tools"
  | "cancelling"
  | "completed"
  | "failed"
  | "cancelled";

export type FailureCode =
  | "rate_limited"
  | "context_length"
  | "content_filter"
  | "upstream_error"
  | "upstream_incomplete"
  | "upstream_auth"
  | "stalled"
  | "timeout"
  | "invalid_request"
  | "validation_failed"
  | "budget_exceeded"
  | "tool_error"
  | "worker_lost"
  | "store_lost"
  | "internal";

export interface Usage {
  input_tokens: number;
  output_tokens: number;
  cached_tokens?: number;
  reasoning_tokens?: number;
}

export interface ToolCall {
  index: number;
  id: string;
  name: string;
  /** JSON text; while the call is still coming, its beginning. */
  arguments: string;
}

export interface ToolResult {
  id: string;
  name: string;
  content: string;
  is_error: boolean;
}

export interface Part {
  type: string;
  data: unknown;
}

/** Where a silent generation is. Which other fields there are depends on `phase`. */
export interface Phase {
  phase: "waiting" | "running_tool" | "waiting_for_tools" | "retrying" | (string & {});
  reason?: string;
  provider?: string;
  id?: string;
  name?: string;
  calls?: { id: string; name: string }[];
  timeout_seconds?: number;
  attempt?: number;
  delay_ms?: number;
  code?: string;
  message?: string;
}

export interface Failure {
  code: FailureCode | (string & {});
  message: string;
  retryable: boolean;
  partial: boolean;
  characters?: number;
}

export interface Snapshot {
  text: string;
  reasoning?: string;
  refusal?: string;
  tool_calls: ToolCall[];
  tool_results?: ToolResult[];
  parts?: Part[];
  attempt: number;
  status: Status;
  usage?: Usage;
}

/** The data of each event, by its name. */
export interface Events {
  // Of the log: they have a position.
  started: { attempt: number; provider: string; model: string };
  delta: { text: string; kind?: "reasoning" | "refusal" };
  tool_call: { index: number; id?: string; name?: string; arguments: string };
  tool_call_done: ToolCall;
  tool_result: ToolResult;
  part: Part;
  status: Phase;
  reset: { attempt: number; reason: string };
  usage: Usage;
  completed: { finish_reason: "stop" | "length" | "tool_calls" | "content_filter"; usage: Usage | null; characters: number };
  failed: Failure;
  cancelled: { reason: "user" | "abandoned" | "interrupted" | "deleted"; usage?: Usage };
  snapshot: Snapshot;
  // Of the connection: they have none.
  open: {
    generation: string;
    verdict: "start" | "resumed" | "rewound" | null;
    from: string;
    head: string;
    status: Status | null;
    attempt: number;
  };
  error: { code: string; message: string; retryable: boolean };
  /** Made by this client: the connection is lost, and comes back by itself after `delay_ms`. */
  reconnecting: { delay_ms: number; cause: string };
}

export type EventName = keyof Events;

/** One event. `position` is `null` where it is not of the log. */
export type StreamEvent = {
  [Name in EventName]: { readonly type: Name; readonly position: string | null; readonly data: Events[Name] };
}[EventName];

export type Terminal = Extract<StreamEvent, { type: "completed" | "failed" | "cancelled" }>;

export const isTerminal = (event: { type: string }): event is Terminal =>
  event.type === "completed" || event.type === "failed" || event.type === "cancelled";

/** What this version knows. Others move the cursor and are passed over. */
export const isKnown = (name: string): name is EventName =>
  (
    "started delta tool_call tool_call_done tool_result part status reset usage completed failed cancelled " +
    "snapshot open error "
  ).includes(`${name} `);

/** What a submit takes: docs/protocol.md, section 3. */
export interface Request {
  provider: string;
  model: string;
  messages: Message[];
  max_output_tokens?: number;
  temperature?: number;
  top_p?: number;
  stop?: string | string[];
  tools?: unknown[];
  tool_choice?: unknown;
  tool_mode?: "return" | "server" | "interactive";
  max_tool_rounds?: number;
  tool_timeout_seconds?: number;
  provider_options?: Record<string, unknown>;
  fallbacks?: { provider: string; model: string; provider_options?: Record<string, unknown> }[];
  thread?: string;
  thread_policy?: "enqueue" | "reject" | "interrupt";
  recovery?: "restart" | "continue" | "fail";
  max_attempts?: number;
  on_disconnect?: { policy: "continue" } | { policy: "cancel"; grace_seconds?: number };
  timeout_seconds?: number;
  stall_seconds?: number;
  delivery?: { unit?: "token" | "word" | "sentence"; max_chars?: number; flush_ms?: number };
  transforms?: unknown[];
  validators?: unknown[];
  max_output_characters?: number;
  priority?: "interactive" | "batch";
  ttl_seconds?: number;
  metadata?: Record<string, unknown>;
}

export interface Message {
  role: "system" | "developer" | "user" | "assistant" | "tool";
  content?: string | { type: string; [field: string]: unknown }[] | null;
  name?: string;
  tool_calls?: unknown[];
  tool_call_id?: string;
  is_error?: boolean;
}

/** The answer to a submit. */
export interface Submission {
  id: string;
  object: "generation";
  status: Status;
  created_at: number;
  stream_url: string;
  stream_token: string | null;
}

/** The answer to `get`. */
export interface Generation extends Snapshot {
  id: string;
  object: "generation";
  provider: string;
  model: string;
  priority: string;
  thread: string | null;
  created_at: number;
  started_at: number | null;
  ended_at: number | null;
  code: FailureCode | null;
  position: string;
  metadata: Record<string, unknown> | null;
  finish_reason: string | null;
  characters?: number;
  error: { code: string; message: string } | null;
  timings?: Record<string, number | null> | null;
}

export interface ListQuery {
  status?: Status | undefined;
  thread?: string | undefined;
  code?: FailureCode | undefined;
  /** 1 to 100. */
  limit?: number | undefined;
  cursor?: string | undefined;
}

/** The answer to `list`. Records only: text and state come with `get`. */
export interface Page {
  object: "list";
  data: Pick<Generation, "id" | "status" | "provider" | "model" | "created_at">[];
  next_cursor: string | null;
  has_more: boolean;
}
