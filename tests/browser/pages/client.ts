/** A page that reads with @legato/client what the test tells it to. */
import { Legato, type Stream, type StreamEvent } from "@legato/client";
import { fetchEventSource } from "@microsoft/fetch-event-source";

interface Reading {
  stream: Stream;
  events: [type: string, position: string | null][];
  done: boolean;
  error?: string;
}

const readings: Record<string, Reading> = {};

function read(url: string, id: string, options: { stored?: boolean; from?: string } = {}): void {
  const stream = new Legato({ url }).stream(id, { from: options.from, ...(options.stored && { storage: localStorage }) });
  const reading: Reading = (readings[id] = { stream, events: [], done: false });
  void (async () => {
    try {
      for await (const event of stream as AsyncIterable<StreamEvent>) reading.events.push([event.type, event.position]);
    } catch (error) {
      reading.error = String(error);
    }
    reading.done = true;
  })();
}

const look = (id: string) => {
  const { stream, events, done, error } = readings[id]!;
  return { text: stream.state.text, status: stream.state.status, connection: stream.connection, position: stream.position, events, done, error };
};

/** As its documentation shows it: append what comes, stop at the end. */
function readWithFetchEventSource(url: string): void {
  const seen = { text: "", ended: "", resolved: false, opens: 0, error: "" };
  (window as any).fes = seen;
  const controller = new AbortController();
  fetchEventSource(url, {
    signal: controller.signal,
    onopen: async () => void seen.opens++,
    onmessage: ({ event, data }) => {
      if (event === "delta") seen.text += JSON.parse(data).text;
      else if (event === "reset") seen.text = "";
      else if (event === "snapshot") seen.text = JSON.parse(data).text;
      else if (["completed", "failed", "cancelled"].includes(event)) (seen.ended = event), controller.abort();
    },
  }).then(() => (seen.resolved = true), (error) => (seen.error = String(error)));
}

Object.assign(window, { read, look, readWithFetchEventSource, ready: true });
