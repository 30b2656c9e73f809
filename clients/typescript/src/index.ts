export { Legato, type CallOptions, type LegatoOptions, type SubmitOptions, type ToolOutput } from "./client.js";
export { LegatoError, type ErrorCode } from "./errors.js";
export { isTerminal } from "./events.js";
export type {
  EventName,
  Events,
  Failure,
  FailureCode,
  Generation,
  ListQuery,
  Message,
  Page,
  Part,
  Phase,
  Request,
  Snapshot,
  Status,
  StreamEvent,
  Submission,
  Terminal,
  ToolCall,
  ToolResult,
  Usage,
} from "./events.js";
export { fold, NOTHING, type State } from "./fold.js";
export { START, step, type Limits, type Link, type Signal } from "./machine.js";
export { FrameReader, type Frame } from "./sse.js";
export { stored, type Store, type Stored } from "./storage.js";
export { type Connection, type Stream, type StreamOptions } from "./stream.js";
export { pageWakes, type Wake, type WakeSource } from "./wake.js";
