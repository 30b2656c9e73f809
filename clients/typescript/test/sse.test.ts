import assert from "node:assert/strict";
import { test } from "node:test";
import { FrameReader, type Frame } from "../src/sse.js";

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

function read(whole: Uint8Array, cuts: readonly number[]): Frame[] {
  const reader = new FrameReader();
  const at = [0, ...cuts, whole.length];
  return at.slice(1).flatMap((end, i) => reader.push(whole.subarray(at[i]!, end)));
}

const STREAM =
  ': ping\nevent: open\nretry: 1612\ndata: {"verdict":"start"}\n\n' +
  'event: delta\nid: 3-1\ndata: {"text":"né 🦊 日"}\n\n: ping\nevent: delta\nid: 4-1\ndata: a\ndata:b\ndata\n\n';

const FRAMES: Frame[] = [
  { event: "open", data: '{"verdict":"start"}', id: undefined, retry: 1612 },
  { event: "delta", data: '{"text":"né 🦊 日"}', id: "3-1", retry: undefined },
  { event: "delta", data: "a\nb\n", id: "4-1", retry: undefined },
];

for (const [name, end] of [["LF", "\n"], ["CRLF", "\r\n"], ["CR", "\r"]] as const) {
  test(`frames are the same wherever their bytes are cut in two and in three, lines ended by ${name}`, () => {
    const whole = bytes("\ufeff" + STREAM.replaceAll("\n", end));
    for (let first = 0; first <= whole.length; first++) {
      assert.deepEqual(read(whole, [first]), FRAMES, `cut at ${first}`);
      const second = Math.min(whole.length, first + 1 + (first % 7));
      assert.deepEqual(read(whole, [first, second]), FRAMES, `cut at ${first} and ${second}`);
    }
    assert.deepEqual(read(whole, [...whole.keys()]), FRAMES, "byte by byte");
  });
}

test("a block that its stream never finished is discarded", () => {
  assert.deepEqual(read(bytes("id: 7-1\nevent: delta\ndata: half\n"), []), []);
});

test("comments, unknown fields and a retry that is no number change nothing", () => {
  assert.deepEqual(read(bytes(": x\n\nfoo: bar\nretry: 1s\n\nid: 5\0-1\ndata: x\n\n"), []), [
    { event: "message", data: "x", id: undefined, retry: undefined },
  ]);
});

test("an id without data is still given, so that a cursor can follow it", () => {
  assert.deepEqual(read(bytes("id: 7-1\n\n"), []), [{ event: "message", data: undefined, id: "7-1", retry: undefined }]);
});

test("a byte order mark inside the stream is text", () => {
  assert.equal(read(bytes("data: a\ufeffb\n\n"), [])[0]?.data, "a\ufeffb");
});

test("a frame of two megabytes in small chunks is read in linear time", () => {
  const whole = bytes(`data: ${"x".repeat(2_000_000)}\n\n`);
  const cuts = Array.from({ length: 2000 }, (_, i) => (i + 1) * 1000);
  assert.equal(read(whole, cuts)[0]?.data?.length, 2_000_000);
});
