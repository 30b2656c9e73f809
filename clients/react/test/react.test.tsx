import { block, completed, delta, frames, GENERATION, open, OTHER, server, settled } from "./dom.js";
import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { act, Activity, StrictMode, type ReactElement } from "react";
import { createRoot, hydrateRoot, type Root } from "react-dom/client";
import { renderToString } from "react-dom/server";
import type { Generation, Legato, Store } from "@legato/client";
import { LiveRegion, useGeneration, useThread, type StoreOptions, type UseGeneration } from "../src/index.js";

const request = { provider: "sim", model: "m", messages: [{ role: "user" as const, content: "x" }] };

let shown: UseGeneration;
let renders = 0;

function Answer(props: { client: Legato } & StoreOptions): ReactElement {
  const { client, ...options } = props;
  shown = useGeneration(client, options);
  renders++;
  return <p>{shown.text}</p>;
}

function Thread({ client, thread, ...options }: { client: Legato; thread: string } & StoreOptions): ReactElement {
  shown = useThread(client, thread, options);
  return <p>{shown.text}</p>;
}

/** A root in a page of its own; it is unmounted behind the test. */
function page(t: TestContext): { root: Root; element: HTMLElement; text: () => string | null } {
  const element = document.createElement("div");
  const root = createRoot(element);
  renders = 0;
  t.after(async () => {
    await act(async () => root.unmount());
    await settled();
  });
  return { root, element, text: () => element.textContent };
}

const step = (work: () => unknown): Promise<void> =>
  act(async () => {
    await work();
    await settled();
  });

/** Renders as changes come, so that a test sees each. */
const now = (flush: () => void): (() => void) => {
  queueMicrotask(flush);
  return () => {};
};

test("text is shown as it comes, through a cut, to its end", async (t) => {
  const { client, calls, call } = server();
  const { root, text } = page(t);
  await step(() => root.render(<Answer client={client} id={GENERATION} schedule={now} />));
  assert.deepEqual([shown.loading, shown.running, shown.status], [true, true, "queued"]);
  await step(() => calls[0]!.stream(open(), delta("2-1", "Nothing ")));
  assert.deepEqual([text(), shown.loading, shown.status, shown.connection], ["Nothing ", false, "running", "open"]);
  await step(async () => {
    calls[0]!.end();
    (await call(2)).stream(open("resumed"), delta("3-1", "twice."), completed("4-1"));
  });
  assert.deepEqual([calls[1]!.cursor, text(), shown.status, shown.running], ["2-1", "Nothing twice.", "completed", false]);
});

test("reconnecting shows while the connection is away, and what is shown stays", async (t) => {
  const { client, calls } = server();
  const { root, text } = page(t);
  await step(() => root.render(<Answer client={client} id={GENERATION} schedule={now} />));
  await step(() => calls[0]!.stream(open().replace("data:", "retry: 60000\ndata:"), delta("2-1", "Here")));
  await step(() => calls[0]!.end());
  assert.deepEqual([shown.reconnecting, shown.connection, text()], [true, "waiting", "Here"]);
});

test("many events between two frames are one rendering", async (t) => {
  const { client, calls } = server();
  const { root, text } = page(t);
  const { schedule, frame, asked } = frames();
  await step(() => root.render(<Answer client={client} id={GENERATION} schedule={schedule} />));
  await step(() => calls[0]!.stream(open()));
  await step(frame);
  const before = renders;
  await step(() => calls[0]!.stream(...Array.from({ length: 500 }, (_, i) => delta(`${i + 2}-1`, "x"))));
  assert.equal(renders, before, "nothing before the frame");
  await step(frame);
  assert.deepEqual([renders, text()?.length, asked()], [before + 1, 500, 2]);
});

test("StrictMode, which mounts twice, makes one connection", async (t) => {
  const { client, calls } = server();
  const { root, text } = page(t);
  await step(() => root.render(<StrictMode><Answer client={client} id={GENERATION} schedule={now} /></StrictMode>));
  await step(() => calls[0]!.stream(open(), delta("2-1", "once"), completed("3-1")));
  assert.deepEqual([calls.length, text()], [1, "once"]);
});

test("unmounting closes the connection, and cancels nothing", async (t) => {
  const { client, calls } = server();
  const { root } = page(t);
  await step(() => root.render(<Answer client={client} id={GENERATION} schedule={now} />));
  await step(() => calls[0]!.stream(open(), delta("2-1", "a")));
  await act(async () => root.render(null));
  await new Promise((resolve) => setTimeout(resolve, 5));
  await settled();
  assert.deepEqual([calls[0]!.signal.aborted, calls.length], [true, 1]);
});

test("a part of the page that is hidden for a while reads nothing, and then goes on from its position", async (t) => {
  const { client, calls } = server();
  const { root, text } = page(t);
  const show = (mode: "visible" | "hidden") => <Activity mode={mode}><Answer client={client} id={GENERATION} schedule={now} /></Activity>;
  await step(() => root.render(show("visible")));
  await step(() => calls[0]!.stream(open(), delta("2-1", "Nothing ")));
  await step(() => root.render(show("hidden")));
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual([calls[0]!.signal.aborted, calls.length], [true, 1]);
  await step(() => root.render(show("visible")));
  assert.equal(calls[1]!.cursor, "2-1");
  await step(() => calls[1]!.stream(open("resumed"), delta("3-1", "twice."), completed("4-1")));
  assert.equal(text(), "Nothing twice.");
});

test("submit shows the generation that it starts, stop cancels it, retry submits the same again", async (t) => {
  const { client, calls } = server();
  const { root, text } = page(t);
  await step(() => root.render(<Answer client={client} schedule={now} />));
  assert.deepEqual([shown.status, shown.running, calls.length], ["idle", false, 0]);
  let id: Promise<string | undefined>;
  await step(() => void (id = shown.submit(request)));
  assert.deepEqual([shown.loading, calls[0]!.method, calls[0]!.body], [true, "POST", request]);
  await step(() => calls[0]!.answer(202, { id: GENERATION }));
  assert.equal(await id!, GENERATION);
  await step(() => calls[1]!.stream(open(), delta("2-1", "half")));
  await step(() => void shown.stop());
  assert.deepEqual([shown.status, calls[2]!.path], ["cancelling", `/v1/generations/${GENERATION}/cancel`]);
  await step(() => calls[2]!.answer(202, { id: GENERATION, status: "cancelling" }));
  await step(() => calls[1]!.stream(block("cancelled", "3-1", { reason: "user" })));
  assert.deepEqual([shown.status, shown.running, text()], ["cancelled", false, "half"]);
  await step(() => shown.retry());
  assert.deepEqual([calls[3]!.method, calls[3]!.body, text()], ["POST", request, ""]);
});

test("stop before the submit was answered cancels as soon as there is an id", async (t) => {
  const { client, calls } = server();
  const { root } = page(t);
  await step(() => root.render(<Answer client={client} schedule={now} />));
  await step(() => void shown.submit(request));
  await step(() => void shown.stop());
  assert.equal(calls.length, 1);
  await step(() => calls[0]!.answer(202, { id: GENERATION }));
  const cancel = calls.find((call) => call.path.endsWith("/cancel"));
  await step(() => cancel!.answer(202, { id: GENERATION, status: "cancelling" }));
});

test("a second submit replaces the first, and nothing of the first shows up later", async (t) => {
  const { client, calls } = server();
  const { root, text } = page(t);
  await step(() => root.render(<Answer client={client} schedule={now} />));
  await step(() => void shown.submit(request));
  await step(() => calls[0]!.answer(202, { id: GENERATION }));
  await step(() => calls[1]!.stream(open(), delta("2-1", "old")));
  await step(() => void shown.submit(request));
  assert.deepEqual([text(), calls[1]!.signal.aborted], ["", true]);
  await step(() => calls[2]!.answer(202, { id: OTHER }));
  await step(() => calls[3]!.stream(open("start", "running", OTHER), delta("2-1", "new")));
  assert.deepEqual([text(), shown.id], ["new", OTHER]);
});

test("a submit that is refused, a generation that is gone and one that fails are three problems, each said", async (t) => {
  const { client, calls } = server();
  const { root } = page(t);
  await step(() => root.render(<Answer client={client} schedule={now} />));
  await step(() => void shown.submit(request));
  await step(() => calls[0]!.answer(422, { detail: "no such model" }));
  assert.deepEqual([shown.error?.code, shown.problem?.message, shown.running], ["invalid_request", "no such model", false]);
  await step(() => root.render(<Answer client={client} id={GENERATION} schedule={now} />));
  await step(() => calls[1]!.answer(410, { detail: "deleted" }));
  assert.deepEqual([shown.error?.code, shown.connection], ["gone", "failed"]);
  await step(() => root.render(<Answer client={client} id={OTHER} schedule={now} />));
  const failure = { code: "stalled", message: "silent", retryable: true, partial: false };
  await step(() => calls[2]!.stream(open(), block("failed", "2-1", failure)));
  assert.deepEqual([shown.error, shown.problem, shown.status], [undefined, failure, "failed"]);
});

test("retry reads on where the reading had failed", async (t) => {
  const { client, calls } = server();
  const { root, text } = page(t);
  await step(() => root.render(<Answer client={client} id={GENERATION} schedule={now} />));
  await step(() => calls[0]!.answer(403, {}));
  await step(() => shown.retry());
  await step(() => calls[1]!.stream(open(), delta("2-1", "back"), completed("3-1")));
  assert.deepEqual([text(), shown.error], ["back", undefined]);
});

test("another id shows another generation", async (t) => {
  const { client, calls } = server();
  const { root, text } = page(t);
  await step(() => root.render(<Answer client={client} id={GENERATION} schedule={now} />));
  await step(() => calls[0]!.stream(open(), delta("2-1", "one")));
  await step(() => root.render(<Answer client={client} id={OTHER} schedule={now} />));
  await step(() => calls[1]!.stream(open("start", "running", OTHER), delta("2-1", "two")));
  assert.deepEqual([text(), calls[0]!.signal.aborted, calls[1]!.path], ["two", true, `/v1/generations/${OTHER}/events`]);
});

test("a reload goes on with what was being read, text first", async (t) => {
  const entries = new Map<string, string>();
  const storage: Store = {
    getItem: (key) => entries.get(key) ?? null,
    setItem: (key, value) => void entries.set(key, value),
    removeItem: (key) => void entries.delete(key),
  };
  const { client, calls } = server();
  const first = page(t);
  await step(() => first.root.render(<Answer client={client} storage={storage} storageKey="chat" schedule={now} />));
  await step(() => void shown.submit(request));
  await step(() => calls[0]!.answer(202, { id: GENERATION }));
  await step(() => calls[1]!.stream(open(), delta("2-1", "Nothing ")));
  await act(async () => first.root.unmount());
  await new Promise((resolve) => setTimeout(resolve, 5));

  const second = page(t);
  await step(() => second.root.render(<Answer client={client} storage={storage} storageKey="chat" schedule={now} />));
  assert.deepEqual([second.text(), calls[2]!.cursor], ["Nothing ", "2-1"]);
  await step(() => calls[2]!.stream(open("resumed"), delta("3-1", "twice."), completed("4-1")));
  assert.equal(second.text(), "Nothing twice.");
});

test("on a server nothing is asked, and the page takes over without a difference", async (t) => {
  const { client, calls } = server();
  const initial = { id: GENERATION, text: "Half a ", tool_calls: [], attempt: 1, status: "running", position: "3-1", finish_reason: null, error: null } as unknown as Generation;
  const html = renderToString(<Answer client={client} initial={initial} />);
  await settled();
  assert.deepEqual([html, calls.length], ["<p>Half a </p>", 0]);
  const element = document.createElement("div");
  element.innerHTML = html;
  const complaints: unknown[] = [];
  let root: Root;
  await step(() => void (root = hydrateRoot(element, <Answer client={client} initial={initial} schedule={now} />, { onRecoverableError: (error) => complaints.push(error) })));
  t.after(() => act(async () => root.unmount()));
  assert.deepEqual([complaints, calls[0]!.cursor], [[], "3-1"]);
  await step(() => calls[0]!.stream(open("resumed"), delta("4-1", "word"), completed("5-1")));
  assert.equal(element.textContent, "Half a word");
});

test("a thread shows its generation, then the next one that any device starts, and keeps the last while none runs", async (t) => {
  const { client, call, calls } = server();
  const { root, text } = page(t);
  await step(() => root.render(<Thread client={client} thread="chat 1" threadPollMs={1} schedule={now} />));
  await step(() => calls[0]!.stream(open(), delta(`${GENERATION}/2-1`, "one"), completed(`${GENERATION}/3-1`)));
  assert.equal(calls[0]!.path, "/v1/threads/chat%201/events");
  await step(async () => (await call(2)).answer(204));
  assert.deepEqual([text(), shown.status, calls[1]!.cursor], ["one", "completed", `${GENERATION}/3-1`]);
  await step(async () => (await call(3)).stream(open("start", "running", OTHER), delta(`${OTHER}/2-2`, "two")));
  assert.deepEqual([text(), shown.id, shown.running], ["two", OTHER, true]);
});

test("what is read out is whole sentences, each once, never half a word", async (t) => {
  t.mock.timers.enable({ apis: ["setInterval"] });
  const { root, element } = page(t);
  const said = (): string[] => [...element.querySelectorAll("p")].map((p) => p.textContent ?? "");
  const show = async (text: string, more: object = {}): Promise<string[]> => {
    const generation = { id: GENERATION, text, status: "running" as const, reconnecting: false, running: true, ...more };
    await act(async () => root.render(<LiveRegion generation={generation} />));
    await act(async () => t.mock.timers.tick(1000));
    return said();
  };
  assert.deepEqual(await show(""), []);
  assert.deepEqual(await show("Pi is 3."), [], "may go on");
  assert.deepEqual(await show("Pi is 3.14 or so. Tw"), ["Pi is 3.14 or so."]);
  assert.deepEqual(await show("Pi is 3.14 or so. Two more! And three? Fo"), ["Pi is 3.14 or so.", "Two more! And three?"]);
  assert.deepEqual((await show("Pi is 3.14 or so. Two more! And three? Fo", { reconnecting: true })).at(-1), "Connection lost. Reconnecting.");
  assert.deepEqual((await show("Four", { reconnecting: false })).at(-1), "The answer starts over.");
  const end = await show("Four", { running: false, status: "cancelled" });
  assert.deepEqual(end.slice(-2), ["Four", "The answer was stopped."]);
  const region = element.firstElementChild!;
  assert.deepEqual([region.getAttribute("aria-live"), region.getAttribute("role")], ["polite", "log"]);
});
