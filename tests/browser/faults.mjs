/**
 * What clients that people have do when a stream breaks: each client, each fault, on the real server. Writes
 * docs/reference/client-faults.md, or TABLE. `node faults.mjs [--only fault] [--background 60]`, with LEGATO as the tests have it.
 */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Legato } from "@legato/client";
import { EventSource } from "eventsource";
import { breakable, deployment, launch, pages, simulated, until } from "./support.mjs";

const BACKGROUND = Number(process.argv[process.argv.indexOf("--background") + 1]) || 60;
const PYTHON = join(dirname(process.env.LEGATO), "python");
/** How long a client has after the fault, once the generation has ended, before it counts as hanging. */
const PATIENCE_SECONDS = 60;

/** Runs a program that prints `{"text"}` lines; what it said last, and how it ended. */
function program(command, args) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
  const seen = { text: "", ended: "" };
  let rest = "";
  child.stdout.setEncoding("utf8").on("data", (chunk) => {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop();
    for (const line of lines) Object.assign(seen, JSON.parse(line));
  });
  let complaint = "";
  child.stderr.setEncoding("utf8").on("data", (chunk) => (complaint += chunk));
  child.once("exit", (code) => (seen.ended ||= code === 0 ? "ended, exit 0" : `error: ${complaint.trim().split("\n").at(-1).slice(0, 90) || `exit ${code}`}`));
  return { look: () => seen, pid: () => child.pid, close: () => child.kill("SIGKILL") };
}

const HTTPX_SSE = `
import httpx, json, sys
from httpx_sse import connect_sse
text, end = "", ""
with httpx.Client(timeout=httpx.Timeout(10, read=None)) as client, connect_sse(client, "GET", sys.argv[1]) as source:
    for event in source.iter_sse():
        if not event.data: continue
        data = json.loads(event.data)
        if event.event == "delta": text += data["text"]
        elif event.event == "reset": text = ""
        elif event.event == "snapshot": text = data["text"]
        elif event.event in ("completed", "failed", "cancelled"): end = event.event
        print(json.dumps({"text": text, "ended": end}), flush=True)
`;

/** Curl gives bytes: the text is read out of them as they came. */
function curl(url) {
  const child = spawn("curl", ["-sSN", url], { stdio: ["ignore", "pipe", "pipe"] });
  const seen = { text: "", ended: "" };
  let all = "";
  child.stdout.setEncoding("utf8").on("data", (chunk) => {
    all += chunk;
    const blocks = all.split("\n\n").slice(0, -1);
    seen.text = blocks.flatMap((block) => (/^event: delta$/m.test(block) ? [JSON.parse(/^data: (.*)$/m.exec(block)[1]).text] : [])).join("");
    if (/^event: completed$/m.test(all)) seen.ended ||= "completed";
  });
  child.once("exit", (code) => (seen.ended ||= `exit ${code}`));
  return { look: () => seen, pid: () => child.pid, close: () => child.kill("SIGKILL") };
}

/** In a browser of its own: pages behind another one are hidden, and behave differently. */
const inPage = (kind, start, look) => async (site, api, url, id, from) => {
  const browser = await launch(kind);
  const [page] = await browser.pages();
  await page.goto(`${site.url}/client`);
  await page.waitForFunction("window.ready");
  await page.evaluate(`window.eventSource = ${eventSource}`);
  await page.evaluate(start, api, id, url, from);
  let last = { text: "", ended: "" };
  return {
    look: async () => (last = (await page.evaluate(look, id).catch(() => undefined)) ?? last),
    freeze: async (state) => (await page.createCDPSession()).send("Page.setWebLifecycleState", { state }),
    close: () => browser.close(),
  };
};

/** The same few lines for the browser's EventSource and for the one of npm. */
function eventSource(make, url) {
  const seen = { text: "", ended: "" };
  const source = make(url);
  const on = (name, then) => source.addEventListener(name, (e) => e.data !== undefined && then(JSON.parse(e.data)));
  on("delta", (d) => (seen.text += d.text));
  on("reset", () => (seen.text = ""));
  on("snapshot", (d) => (seen.text = d.text));
  for (const end of ["completed", "failed", "cancelled"]) on(end, () => ((seen.ended = end), source.close()));
  source.addEventListener("error", (e) => {
    if (e.data === undefined && source.readyState === 2) seen.ended ||= "closed for good";
  });
  return seen;
}

const native = (kind) => inPage(kind, (api, id, url) => (window.seen = window.eventSource((u) => new EventSource(u), url)) && undefined, () => window.seen);

const CLIENTS = {
  "@legato/client, Chromium": inPage("chrome", (api, id, url, from) => window.read(api, id, { from }), (id) => {
    const { text, status, done, error } = window.look(id);
    return { text, ended: error ?? (done ? (status === "queued" ? "ended" : status) : "") };
  }),
  "@legato/client, Node.js": async (site, api, url, id, from) => {
    const stream = new Legato({ url: api }).stream(id, { from });
    const seen = { error: "" };
    const reading = (async () => { for await (const _ of stream); })().catch((error) => (seen.error = String(error)));
    const ended = () => (stream.connection === "ended" ? (stream.end?.type ?? "ended") : "");
    return { look: () => ({ text: stream.state.text, ended: seen.error || ended() }), close: () => (stream.close(), reading) };
  },
  "EventSource, Chromium": native("chrome"),
  "EventSource, Firefox": native("firefox"),
  "npm eventsource 4": async (site, api, url) => {
    let source;
    const seen = eventSource((u) => (source = new EventSource(u)), url);
    return { look: () => seen, close: () => source.close() };
  },
  "@microsoft/fetch-event-source, Chromium": inPage("chrome", (api, id, url) => window.readWithFetchEventSource(url), () => {
    const { text, ended, error, resolved } = window.fes;
    return { text, ended: ended || error || (resolved ? "ended as if all had come" : "") };
  }),
  "httpx-sse": async (site, api, url) => program(PYTHON, ["-c", HTTPX_SSE, url]),
  "curl": async (site, api, url) => curl(url),
};

/** Each fault: how long the text takes, and what is done once some of it is there. */
const FAULTS = {
  "cut": { does: "The connection is reset in mid-stream.", run: async ({ path }) => path.cut() },
  "clean end": { does: "Something in between ends the body cleanly in mid-stream.", run: async ({ ender }) => ender.endCleanly() },
  "nothing more (204)": { does: "The client comes back with the end as its cursor." },
  "restart of the API": { does: "SIGKILL, and a new process on the same port.", all: (server) => server.restart("SIGKILL") },
  "drain": { does: "SIGTERM, which ends streams at a frame, and a new process on the same port.", all: (server) => server.restart("SIGTERM") },
  "silent half-open": { does: "The path loses everything that is on its way, and nobody is told. New connections are good.", run: async ({ path }) => path.hold() },
  "background": {
    does: `The page is frozen, or the process stopped, for ${BACKGROUND} s, while its path dies without a word.`,
    run: async ({ path, client }) => {
      const stop = client.freeze ?? (async (state) => client.pid && process.kill(client.pid(), state === "frozen" ? "SIGSTOP" : "SIGCONT"));
      await stop("frozen");
      path.hold();
      await sleep(BACKGROUND * 1000);
      await stop("active");
    },
  },
};

/** A proxy of HTTP that ends a body well where nobody ended it: what a CDN does. */
async function cleanEnder(upstream) {
  const open = new Set();
  const server = http.createServer((request, response) => {
    if (request.method !== "OPTIONS") counted.requests++; // a browser asks first whether it may
    const { "accept-encoding": _, ...headers } = request.headers;
    const far = http.request(upstream + request.url, { method: request.method, headers }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response, { end: false });
      const over = () => (open.delete(pair), response.end());
      const pair = { end: () => (over(), answer.destroy()) };
      open.add(pair);
      answer.on("end", over).on("error", () => (open.delete(pair), response.destroy())); // a cut stays a cut
    });
    far.on("error", () => response.destroy());
    request.pipe(far);
    response.on("close", () => far.destroy());
  });
  const counted = { requests: 0, url: "", endCleanly: () => [...open].forEach((pair) => pair.end()), close: () => (server.closeAllConnections(), server.close()) };
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  counted.url = `http://127.0.0.1:${server.address().port}`;
  return counted;
}

const TOKENS = 300;

/** One client and one fault. `together` resolves when all clients have some text and what concerns all of them was done. */
async function cell(server, site, start, fault, seed, together) {
  const path = await breakable(server.port);
  const ender = await cleanEnder(path.url);
  const id = await server.submit({ tokens: TOKENS, seed, tokens_per_second: 8 });
  const client = await start(site, ender.url, `${ender.url}/v1/generations/${id}/events`, id, undefined);
  const whole = simulated(TOKENS, seed);
  try {
    await until(async () => (await client.look()).text.length > 40, "some text", 120);
    const before = ender.requests;
    await (fault.all ? together() : fault.run({ path, client, ender }));
    const since = Date.now();
    await until(async () => (await server.state(id)).status === "completed", "the end of the generation", 240);
    const ended = await until(async () => (await client.look()).ended, "", PATIENCE_SECONDS).catch(() => "");
    const { text } = await client.look();
    const asked = ender.requests - before;
    await sleep(3000);
    const after = ender.requests - before - asked;
    const part = Math.floor((text.length / whole.length) * 100);
    const judged = text === whole ? "whole" : whole.startsWith(text) ? `**cut short**, ${part} %` : "**wrong text**";
    const how = ended === "completed" ? "" : ended || "**hangs**";
    return [judged, how, requests(asked), after > 0 ? `**${after} more in 3 s behind the end**` : ""].filter(Boolean).join("; ");
  } finally {
    await client.close();
    ender.close();
    path.close();
  }
}

const requests = (count) => (count === 1 ? "1 request" : `${count} requests`);

/** What a client does that is told that there is nothing more. */
async function nothingMore(server, site, start, seed) {
  const ender = await cleanEnder(`http://127.0.0.1:${server.port}`);
  const id = await server.submit({ tokens: 3, seed });
  const { position } = await until(async () => { const now = await server.state(id); return now.status === "completed" && now; }, "the end");
  const url = `${ender.url}/v1/generations/${id}/events?last_event_id=${position}`;
  const client = await start(site, ender.url, url, id, position);
  try {
    const ended = await until(async () => (await client.look()).ended, "", 20).catch(() => "");
    await sleep(5000);
    return [ended || "**hangs**", requests(ender.requests)].join("; ");
  } finally {
    await client.close();
    ender.close();
  }
}

const [server, site] = await Promise.all([deployment(), pages()]);
const rows = Object.keys(CLIENTS).map((name) => [name, {}]);
const names = process.argv.includes("--only") ? [process.argv[process.argv.indexOf("--only") + 1]] : Object.keys(FAULTS);
let seed = 300;
try {
  for (const name of names) {
    const fault = FAULTS[name];
    let waiting = rows.length;
    let release;
    const done = new Promise((resolve) => (release = resolve));
    const together = async () => {
      if (--waiting === 0) release(await fault.all(server));
      await done;
    };
    await Promise.all(
      rows.map(async ([client, cells]) => {
        const start = CLIENTS[client];
        if (name === "background" && /Firefox/.test(client)) {
          cells[name] = "not tried: a test cannot freeze it";
          return;
        }
        const seen = name === "nothing more (204)" ? nothingMore(server, site, start, seed++) : cell(server, site, start, fault, seed++, together);
        cells[name] = await seen.catch((error) => (waiting--, `not seen: ${error.message}`));
        if (name === "background" && /npm|Node/.test(client)) cells[name] += " (not frozen)";
        console.log(`${client} | ${name} | ${cells[name]}`);
      }),
    );
  }
  const [chromium, firefox] = await Promise.all(["chrome", "firefox"].map(async (kind) => {
    const browser = await launch(kind);
    const said = (await browser.version()).replace(/.*\//, "");
    return browser.close(), said;
  }));
  const versions = {
    Chromium: chromium,
    Firefox: firefox,
    "Node.js": process.versions.node,
    ...Object.fromEntries(["eventsource", "@microsoft/fetch-event-source"].map((name) => [name, version(name)])),
    "httpx-sse": execFileSync(PYTHON, ["-c", "from importlib.metadata import version; print(version('httpx-sse'))"], { encoding: "utf8" }).trim(),
    curl: execFileSync("curl", ["--version"], { encoding: "utf8" }).split(" ")[1],
  };
  writeFileSync(process.env.TABLE ?? "../../docs/reference/client-faults.md", document(names, rows, versions));
} finally {
  site.close();
  await server.close();
}

function version(name) {
  const main = createRequire(import.meta.url).resolve(name);
  const root = main.slice(0, main.lastIndexOf(name) + name.length);
  return JSON.parse(readFileSync(join(root, "package.json"), "utf8")).version;
}

function document(names, rows, versions) {
  const list = Object.entries(versions).map(([name, version]) => `${name} ${version}`).join(", ");
  const table = names
    .map((name) => `## ${name[0].toUpperCase()}${name.slice(1)}\n\n${FAULTS[name].does}\n\n| client | what was seen |\n|---|---|\n${rows.map(([client, cells]) => `| ${client} | ${cells[name]} |`).join("\n")}`)
    .join("\n\n");
  return `# What clients do when a stream breaks

Written by \`node tests/browser/faults.mjs\` from one run; do not edit. Every cell is one generation of ${TOKENS} tokens from the real
server, read by the client as its documentation shows it, with the few lines that
[the protocol](../protocol.md#8-endings) asks of a client (append, clear, replace, stop). The fault comes once some text is there.
"Whole" is exactly the text that was generated. Requests are those behind the fault. Who has not ended ${PATIENCE_SECONDS} s after the
generation did hangs. The clients of a row ran at the same time, on a machine that was busy elsewhere.

Versions: ${list}.

${table}
`;
}
