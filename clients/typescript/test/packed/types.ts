// Checked against the packed package, as who installs it does. Lines marked with @ts-expect-error must not compile.
import {
  isTerminal,
  Legato,
  LegatoError,
  stored,
  type ErrorCode,
  type Failure,
  type Generation,
  type State,
  type Store,
  type Stream,
  type StreamEvent,
  type Submission,
} from "@legato/client";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const yes = <T extends true>(_?: T): void => {};

const client = new Legato({ url: "", token: async () => "t", headers: { "X-App": "1" }, credentials: "include" });
// @ts-expect-error the address is required
new Legato({});
// @ts-expect-error no such option
new Legato({ url: "", retries: 3 });

export async function submits(): Promise<void> {
  const made = await client.submit({ provider: "sim", model: "m", messages: [{ role: "user", content: "x" }] });
  yes<Same<typeof made, Submission & { replayed: boolean }>>();
  // @ts-expect-error a message has a role that exists
  await client.submit({ provider: "sim", model: "m", messages: [{ role: "robot", content: "x" }] });
  // @ts-expect-error the model is required
  await client.submit({ provider: "sim", messages: [] });
  const { status } = await client.cancel(made);
  yes<Same<typeof status, Generation["status"]>>();
}

export async function reads(stream: Stream): Promise<string> {
  for await (const event of stream) {
    yes<Same<typeof event, StreamEvent>>();
    switch (event.type) {
      case "delta":
        yes<Same<typeof event.data.kind, "reasoning" | "refusal" | undefined>>();
        event.data.text.trim();
        break;
      case "failed":
        yes<Same<typeof event.data, Failure>>();
        break;
      case "tool_call_done":
        JSON.parse(event.data.arguments);
        break;
      case "open":
        yes<Same<typeof event.data.verdict, "start" | "resumed" | "rewound" | null>>();
        break;
      // @ts-expect-error no such event
      case "finished":
        break;
    }
    if (isTerminal(event)) yes<Same<typeof event.type, "completed" | "failed" | "cancelled">>();
  }
  yes<Same<typeof stream.position, string | undefined>>();
  // @ts-expect-error the state is read only by name, and text is a string
  const wrong: number = stream.state.text;
  const state: State = await client.collect("gen_x", { signal: new AbortController().signal, storage: localStorage });
  return state.text + String(wrong);
}

export function fails(error: unknown): ErrorCode | undefined {
  return error instanceof LegatoError ? error.code : undefined;
}

const AsyncStorage: Store = {
  getItem: async () => null,
  setItem: async () => {},
  removeItem: async () => {},
};
void stored(AsyncStorage, "k").then((entry) => entry?.state.text.length);
