/** What the browser tests share: the server with an API of its own, a path to it that can be broken, pages, browsers. */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import http from "node:http";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { Legato } from "@legato/client";
import { build } from "esbuild";
import puppeteer from "puppeteer-core";

const LEGATO = process.env.LEGATO;
if (!LEGATO) throw new Error("LEGATO must name the legato command; make test-browser sets it");

/** Children that are ended with this process, however it ends. */
const children = new Set();
process.on("exit", () => children.forEach((child) => child.kill("SIGKILL")));
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => process.exit(1));

async function legato(args, environment, pattern) {
  const child = spawn(LEGATO, args, { env: { ...process.env, LEGATO_LOG_LEVEL: "error", ...environment }, stdio: ["ignore", "pipe", "pipe"] });
  children.add(child);
  child.once("exit", () => children.delete(child));
  for (const out of [child.stdout, child.stderr]) out.setEncoding("utf8");
  const said = new Promise((resolve, reject) => {
    for (const out of [child.stdout, child.stderr]) {
      createInterface({ input: out }).on("line", (line) => {
        const found = pattern.exec(line);
        if (found) resolve(found[0]);
        else if (!/stopping in good order/.test(line)) console.error(line);
      });
    }
    child.once("exit", (code) => reject(new Error(`legato ${args[0]} ended with ${code}`)));
  });
  return [child, await said];
}

export async function ended(child, signal) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, "exit");
  child.kill(signal);
  await exited;
}

/**
 * Store and worker in one process (`legato dev`), and an API process of its own on a port that stays, behind a proxy. So the
 * API can be killed and drained while generations go on.
 */
export async function deployment(environment = {}) {
  const data = mkdtempSync(join(tmpdir(), "legato-browser-"));
  const [dev, devUrl] = await legato(["dev", "--port", "0", "--data", data], environment, /http:\/\/[\d.:]+/);
  const socket = readdirSync(data).find((name) => name.endsWith(".sock"));
  const store = { LEGATO_REDIS_URL: `unix://${join(data, socket)}`, LEGATO_PROVIDERS: "sim", ...environment };
  let [api, apiUrl] = await legato(["api", "--port", "0"], store, /http:\/\/[\d.:]+/);
  const port = new URL(apiUrl).port;
  const proxy = await breakable(Number(port));
  const direct = new Legato({ url: devUrl });
  return {
    url: proxy.url,
    port: Number(port),
    proxy,
    /** SIGKILL, or SIGTERM, which drains; then it is there again. */
    async restart(signal) {
      await ended(api, signal);
      [api] = await legato(["api", "--port", port], store, /http:\/\/[\d.:]+/);
    },
    async submit(options, fields = {}) {
      const body = { provider: "sim", model: "sim-1", messages: [{ role: "user", content: "x" }], provider_options: options, ...fields };
      return (await direct.submit(body)).id;
    },
    state: (id) => direct.get(id),
    cancel: (id) => direct.cancel(id),
    async close() {
      proxy.close();
      await ended(api, "SIGKILL");
      await ended(dev, "SIGTERM");
      rmSync(data, { recursive: true, force: true });
    },
  };
}

export const simulated = (tokens, seed) =>
  execFileSync(LEGATO, ["sim", "--tokens", String(tokens), "--seed", String(seed)], { encoding: "utf8" }).replace(/\n$/, "");

/** A TCP proxy on a port that stays. What is held looks like packets that get lost. */
export async function breakable(upstream) {
  const pairs = new Set();
  const state = { held: false, refusing: false };
  const server = net.createServer((near) => {
    if (state.refusing) return near.resetAndDestroy();
    proxy.connections++;
    const far = net.connect(upstream, "127.0.0.1");
    const pair = { near, far };
    pairs.add(pair);
    // Those that the browser has closed are closed before it opens others, but may be read after them.
    near.on("end", () => (pair.closing = true));
    setImmediate(() => (proxy.most = Math.max(proxy.most, [...pairs].filter((one) => !one.closing).length)));
    const over = () => (pairs.delete(pair), near.destroy(), far.destroy());
    for (const socket of [near, far]) socket.on("error", over).on("close", over);
    // An orderly end and a reset are passed on as what they are.
    near.on("data", (chunk) => state.held || far.write(chunk));
    far.on("data", (chunk) => {
      if (!state.held) near.write(chunk);
      if (pair.left !== undefined && (pair.left -= chunk.length) <= 0) near.resetAndDestroy();
    });
  });
  const proxy = {
    connections: 0,
    most: 0,
    url: "",
    get open() {
      return pairs.size;
    },
    /** Reset every open connection. */
    cut() {
      const cut = pairs.size;
      for (const { near } of pairs) near.resetAndDestroy();
      return cut;
    },
    /** Nothing gets through on the connections that are open, and nobody is told. New ones are good. */
    hold() {
      for (const { near, far } of pairs) near.removeAllListeners("data").pause(), far.removeAllListeners("data").pause();
    },
    refuse(refusing) {
      state.refusing = refusing;
    },
    close() {
      server.close();
      for (const { near, far } of pairs) near.destroy(), far.destroy();
    },
  };
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  proxy.url = `http://127.0.0.1:${server.address().port}`;
  return proxy;
}

/** The pages of this folder, bundled, on an origin of their own. */
export async function pages() {
  const bundle = await build({
    entryPoints: { client: "pages/client.ts", react: "pages/react.tsx" },
    bundle: true, format: "esm", target: "es2022", write: false, outdir: "/", jsx: "automatic",
    define: { "process.env.NODE_ENV": '"production"' }, minify: true, logLevel: "error",
    preserveSymlinks: true, // one React for all
  });
  const files = new Map(bundle.outputFiles.map((file) => [file.path.replace(/^.*\//, "/"), file.contents]));
  const server = http.createServer((request, response) => {
    const { pathname } = new URL(request.url, "http://x");
    const script = files.get(pathname);
    if (script) return response.writeHead(200, { "Content-Type": "text/javascript" }).end(script);
    response.setHeader("Content-Type", "text/html; charset=utf-8");
    if (pathname === "/example") return response.end(readFileSync(new URL("../../examples/html/index.html", import.meta.url)));
    const name = pathname.slice(1);
    const module = files.has(`/${name}.js`) ? `<script type="module" src="/${name}.js"></script>` : "";
    response.end(`<!doctype html><html lang="en"><title>${name}</title><meta charset="utf-8"><link rel="icon" href="data:,"><body><div id="root"></div>${module}</body></html>`);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { url: `http://127.0.0.1:${server.address().port}`, close: () => server.close() };
}

const EXECUTABLES = { chrome: ["/usr/bin/chromium", "/usr/bin/google-chrome"], firefox: ["/usr/bin/firefox-esr", "/usr/bin/firefox"] };
const CHROMIUM = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

/** A browser of the distribution, with a profile that is new and empty. */
export async function launch(browser) {
  const executablePath = EXECUTABLES[browser].find(existsSync);
  if (!executablePath) throw new Error(`${browser} is not there`);
  return puppeteer.launch({ browser, executablePath, headless: true, args: browser === "chrome" ? CHROMIUM : [], timeout: 120_000, protocolTimeout: 240_000 });
}

/** A tab that waits as long as `until` does. */
export async function tab(browser) {
  const page = await browser.newPage();
  page.setDefaultTimeout(120_000);
  return page;
}

/** Until `look` gives something true. The bound is for a hang, and no measure. */
export async function until(look, what, seconds = 120) {
  const deadline = Date.now() + seconds * 1000;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`waited ${seconds} s for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
