// resumable-stream on Node's http: POST /make/N begins a stream whose first reader is nobody, GET /resume/N joins it,
// GET /first/N begins one and reads it.
import { createServer } from "node:http";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.BENCH_MODULES}/`);
const { createResumableStreamContext } = require("resumable-stream");
const { createClient } = require("redis");

const rate = Number(process.env.BENCH_RATE);
const url = process.env.BENCH_REDIS;
const publisher = createClient({ url });
const subscriber = createClient({ url });
await Promise.all([publisher.connect(), subscriber.connect()]);
const streams = createResumableStreamContext({ waitUntil: null, publisher, subscriber });

const token = (seq) =>
  `data: ~${String(seq).padStart(7, "0")}:${process.hrtime.bigint().toString(16).padStart(16, "0")};\n\n`;

// RATE tokens a second for ever, on time even where a timer is late.
function made() {
  let timer;
  return new ReadableStream({
    start(controller) {
      if (!rate) return;
      const begun = performance.now() + Math.random() * (1000 / rate);
      let seq = 0;
      const next = () => {
        while (begun + (seq * 1000) / rate <= performance.now()) controller.enqueue(token(++seq));
        timer = setTimeout(next, Math.max(1, begun + (seq * 1000) / rate - performance.now()));
      };
      timer = setTimeout(next, begun - performance.now());
    },
    cancel() {
      clearTimeout(timer);
    },
  });
}

async function send(stream, answer) {
  answer.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
  answer.flushHeaders();
  const reader = stream.getReader();
  answer.on("close", () => reader.cancel().catch(() => {}));
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    answer.write(value);
  }
  answer.end();
}

async function drain(stream) {
  const reader = stream.getReader();
  while (!(await reader.read()).done);
}

createServer(async (request, answer) => {
  const [, verb, name] = request.url.split("/");
  if (verb === "make") {
    drain(await streams.createNewResumableStream(name, made));
    answer.end("made");
  } else if (verb === "resume") {
    const stream = await streams.resumeExistingStream(name);
    if (stream) await send(stream, answer);
    else answer.writeHead(404).end();
  } else if (verb === "first") {
    await send(await streams.createNewResumableStream(name, made), answer);
  } else {
    answer.writeHead(404).end();
  }
}).listen({ port: Number(process.env.BENCH_PORT), host: "127.0.0.1", backlog: 4096 });
