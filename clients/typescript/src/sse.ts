/**
 * Reads server-sent events from bytes, as the HTML standard says, cut anywhere: inside a character, between CR and LF,
 * inside a field. A block that its stream never finished is discarded, and its id with it, so a cursor that is taken
 * from frames names wholly received events only. Pure.
 *
 * One oddity on purpose: `id` is that of the frame's own block, and not the last one seen. Frames without an id are the
 * server's own (`open`, `error`), and must never look like an event of the log.
 */
export interface Frame {
  readonly event: string;
  /** Undefined where the block had no `data`; such a frame carries an `id` or a `retry` only. */
  readonly data: string | undefined;
  readonly id: string | undefined;
  /** Milliseconds. */
  readonly retry: number | undefined;
}

/** One a response. */
export class FrameReader {
  // Keeps the bytes of a character that a chunk cut, and drops a byte order mark at the very beginning.
  readonly #decoder = new TextDecoder();
  #line = "";
  #afterCr = false;
  #event = "";
  #data: string | undefined;
  #id: string | undefined;
  #retry: number | undefined;

  /** The frames that `chunk` completes, in order. */
  push(chunk: Uint8Array): Frame[] {
    const frames: Frame[] = [];
    const text = this.#decoder.decode(chunk, { stream: true });
    let from = 0;
    if (this.#afterCr && text) {
      this.#afterCr = false;
      if (text[0] === "\n") from = 1;
    }
    const ends = /\r\n|\n|\r/g;
    ends.lastIndex = from;
    for (let end = ends.exec(text); end; end = ends.exec(text)) {
      const line = this.#line + text.slice(from, end.index);
      this.#line = "";
      from = ends.lastIndex;
      this.#afterCr = from === text.length && end[0] === "\r";
      if (line) this.#field(line);
      else this.#dispatch(frames);
    }
    this.#line += text.slice(from);
    return frames;
  }

  #field(line: string): void {
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment: the server's keepalive
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") this.#data = this.#data === undefined ? value : `${this.#data}\n${value}`;
    else if (name === "event") this.#event = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^\d+$/.test(value)) this.#retry = Number(value);
  }

  #dispatch(frames: Frame[]): void {
    const frame = { event: this.#event || "message", data: this.#data, id: this.#id, retry: this.#retry };
    this.#event = "";
    this.#data = this.#id = this.#retry = undefined;
    if (frame.data !== undefined || frame.id !== undefined || frame.retry !== undefined) frames.push(frame);
  }
}
