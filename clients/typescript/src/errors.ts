/** Everything that is thrown on purpose. `code` says what it is; a message is for people. */
import type { State } from "./fold.js";

export type ErrorCode =
  | "invalid_request" // 400, 413, 422: it will never be accepted as it is
  | "not_allowed" // 401, 403
  | "not_found" // 404
  | "conflict" // 409, or another 4xx
  | "gone" // 410: deleted, or its time is over
  | "unavailable" // nobody answered well for `giveUpMs`
  | "unexpected_answer" // whoever answers is not Legato
  | "failed" // the generation ended so; thrown by `collect`
  | "cancelled";

export class LegatoError extends Error {
  override readonly name: string = "LegatoError";

  constructor(
    readonly code: ErrorCode,
    message: string,
    /** The answer's HTTP status, where there was one. */
    readonly status?: number,
    /** What the server said (problem+json), or the data of the terminal event. */
    readonly detail?: unknown,
    /** With `failed` and `cancelled`: what there was until then. */
    readonly state?: State,
  ) {
    super(message);
  }
}

const CODES: Record<number, ErrorCode> = {
  400: "invalid_request",
  401: "not_allowed",
  403: "not_allowed",
  404: "not_found",
  410: "gone",
  413: "invalid_request",
  422: "invalid_request",
};

/** Whether the same request may be answered well a little later. */
export const mayPass = (status: number): boolean => status >= 500 || status === 408 || status === 425 || status === 429;

/** The error of an answer that is none of the good ones. `body` is its text. */
export function errorOf(status: number, body: string): LegatoError {
  let problem: { detail?: string; title?: string; errors?: { field: string; message: string }[] } = {};
  try {
    problem = Object(JSON.parse(body));
  } catch {
    // A proxy's page: the status says enough.
  }
  const fields = Array.isArray(problem.errors) ? problem.errors.map((e) => `${e.field}: ${e.message}`).join("; ") : "";
  const message = [problem.detail ?? problem.title ?? `the server answered ${status}`, fields].filter(Boolean).join(": ");
  const code = CODES[status] ?? (mayPass(status) ? "unavailable" : status >= 400 ? "conflict" : "unexpected_answer");
  return new LegatoError(code, message, status, problem);
}
