import assert from "node:assert/strict";
import { test } from "node:test";
import { byFrames } from "../src/frames.js";
import { sayable, spoken } from "../src/sentences.js";

test("on screens of 60 and of 120 Hz text is rendered at most some forty times a second", (t) => {
  const callbacks: ((now: number) => void)[] = [];
  const page = globalThis as { requestAnimationFrame?: unknown; cancelAnimationFrame?: unknown };
  page.requestAnimationFrame = (callback: (now: number) => void) => callbacks.push(callback);
  t.after(() => void delete page.requestAnimationFrame);
  for (const hertz of [60, 120]) {
    const schedule = byFrames();
    let renders = 0;
    const again = (): void => void schedule(() => (renders++, again()));
    again();
    for (let frame = 1; frame <= hertz; frame++) for (const callback of callbacks.splice(0)) callback((frame * 1000) / hertz);
    assert.ok(renders >= 25 && renders <= 42, `${renders} renders at ${hertz} Hz`);
    callbacks.length = 0;
  }
});

test("a page that is hidden has no frames, and is told all the same", async (t) => {
  const page = globalThis as { requestAnimationFrame?: unknown; document?: unknown };
  page.requestAnimationFrame = () => assert.fail("no frame comes");
  page.document = { visibilityState: "hidden" };
  t.after(() => (delete page.requestAnimationFrame, delete page.document));
  await new Promise<void>((resolve) => void byFrames()(resolve));
});

test("sentences are said when something follows them", () => {
  const cases: [string, string][] = [
    ["Half a sentence", ""],
    ["One. Two", "One. "],
    ["Version 1.", ""],
    ["He said \"no.\" Then", "He said \"no.\" "],
    ["これは文です。次", "これは文です。"],
    ["- an item\n- another", "- an item\n"],
    ["e.g. this", "e.g. "],
  ];
  for (const [text, expected] of cases) assert.equal(sayable(text, 0, false), expected, text);
  assert.equal(sayable("One. Two", 5, true), "Two");
});

test("text without an end of a sentence is said in pieces, cut at spaces", () => {
  const text = "word ".repeat(200);
  const piece = sayable(text, 0, false);
  assert.ok(piece.length > 300 && piece.length <= 401 && piece.endsWith("word "), String(piece.length));
});

test("marks of Markdown are not said, and words with underscores stay words", () => {
  const text = "## One *two*\n\n> **three** [four](https://x.example/a) `five_six`\n\n- seven\n\n```js\neight\n```";
  assert.equal(spoken(text).replace(/\s+/g, " "), "One two three four five_six seven eight");
});
