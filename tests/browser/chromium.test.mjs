/** Debian's Chromium over the real server. */
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { after, before, test } from "node:test";
import { clientThroughCuts, eventSourceOfTheReadme, reloadInMidStream } from "./suite.mjs";
import { deployment, launch, pages, simulated, tab, until } from "./support.mjs";

/** Where pictures of the pages go; nowhere unless it is set. */
const PICTURES = process.env.PICTURES;

let server, site, browser;
before(async () => {
  if (PICTURES) mkdirSync(PICTURES, { recursive: true });
  [server, site, browser] = await Promise.all([deployment(), pages(), launch("chrome")]);
});
after(async () => {
  await browser?.close();
  site?.close();
  await server?.close();
});

async function open(path) {
  const page = await tab(browser);
  page.on("pageerror", (error) => console.error(String(error)));
  await page.goto(`${site.url}${path}`);
  if (path === "/client") await page.waitForFunction("window.ready");
  return page;
}

const picture = async (page, name) => PICTURES && page.screenshot({ path: `${PICTURES}/${name}.png` });
const look = (page, id) => page.evaluate((id) => window.look(id), id);

test("the browser's EventSource, as the README has it, through cuts", async (t) => {
  const page = await open("/plain");
  t.diagnostic(`${await eventSourceOfTheReadme(page, server)} cuts`);
  await page.close();
});

test("the client, through cuts", async (t) => {
  const page = await open("/client");
  t.diagnostic(`${await clientThroughCuts(page, server)} cuts`);
  await page.close();
});

test("a reload in mid-stream shows the text at once, and goes on behind it", async () => {
  const page = await tab(browser);
  const cursors = [];
  page.on("request", (request) => request.url().endsWith("/events") && request.method() === "GET" && cursors.push(request.headers()["last-event-id"]));
  await reloadInMidStream(page, site.url, server);
  assert.match(String(cursors.at(-1)), /^\d+-\d+$/, "the second page asked with the cursor of the first");
  await picture(page, "ended");
  await page.close();
});

test("a tab that is killed goes on in another one", async () => {
  const id = await server.submit({ tokens: 100, seed: 24, tokens_per_second: 20 });
  const first = await open("/client");
  await first.evaluate((url, id) => window.read(url, id, { stored: true }), server.url, id);
  const kept = () => first.evaluate((id) => JSON.parse(localStorage.getItem(`legato:${id}`))?.state?.text ?? "", id);
  await until(async () => (await kept()).length > 100, "that some text is put away");
  const session = await first.createCDPSession();
  await Promise.race([session.send("Page.crash").catch(() => {}), new Promise((resolve) => first.once("error", resolve))]);
  await first.close();
  const second = await open("/client");
  await second.evaluate((url, id) => window.read(url, id, { stored: true }), server.url, id);
  const end = await until(async () => { const now = await look(second, id); return now.done && now; }, "the end");
  assert.equal(end.text, simulated(100, 24));
  assert.equal(end.events[0][0], "snapshot", "what was put away came first");
  await second.close();
});

test("offline, then online: it comes back at once, and nothing is missing", async (t) => {
  const page = await open(`/react?api=${encodeURIComponent(server.url)}&id=${await server.submit({ tokens: 400, seed: 25, tokens_per_second: 12 })}`);
  const shown = () => page.evaluate(() => document.querySelector("#text")?.textContent ?? "");
  await until(async () => (await shown()).length > 60, "some text");
  await picture(page, "streaming");
  await page.setOfflineMode(true);
  server.proxy.cut();
  await until(() => page.evaluate(() => document.querySelector("#reconnecting") !== null), "that it says that it is reconnecting");
  await picture(page, "reconnecting");
  const before = await shown();
  await page.setOfflineMode(false);
  const since = Date.now();
  await until(async () => (await shown()).length > before.length, "more text");
  t.diagnostic(`more text ${Date.now() - since} ms after the network was back`);
  await until(() => page.evaluate(() => document.querySelector("#status")?.textContent === "completed"), "the end");
  assert.equal(await shown(), simulated(400, 25));
  await page.close();
});

test("a tab that was frozen while its connection died without a word goes on when it thaws", async (t) => {
  const page = await open("/client");
  const id = await server.submit({ tokens: 120, seed: 26, tokens_per_second: 20 });
  await page.evaluate((url, id) => window.read(url, id), server.url, id);
  await until(async () => (await look(page, id)).text.length > 50, "some text");
  const session = await page.createCDPSession();
  await session.send("Page.setWebLifecycleState", { state: "frozen" });
  server.proxy.hold();
  await until(async () => (await server.state(id)).status === "completed", "that the generation ends meanwhile");
  await session.send("Page.setWebLifecycleState", { state: "active" });
  const since = Date.now();
  const end = await until(async () => { const now = await look(page, id); return now.done && now; }, "the end");
  t.diagnostic(`whole ${Date.now() - since} ms after the thaw`);
  assert.equal(end.text, simulated(120, 26));
  await page.close();
});

test("the API is killed, and then drained, in mid-stream", async () => {
  const page = await open("/client");
  const id = await server.submit({ tokens: 10_000, seed: 27, tokens_per_second: 25 });
  await page.evaluate((url, id) => window.read(url, id), server.url, id);
  for (const signal of ["SIGKILL", "SIGTERM"]) {
    const { length } = (await look(page, id)).text;
    await until(async () => (await look(page, id)).text.length > length + 50, "some text");
    await server.restart(signal);
  }
  const { length } = (await look(page, id)).text;
  await until(async () => (await look(page, id)).text.length > length, "more text");
  await server.cancel(id);
  const end = await until(async () => { const now = await look(page, id); return now.done && now; }, "the end");
  assert.deepEqual([end.text, end.status, end.error], [(await server.state(id)).text, "cancelled", undefined]);
  assert.ok(simulated(10_000, 27).startsWith(end.text));
  assert.ok(end.events.filter(([type]) => type === "reconnecting").length >= 2);
  await page.close();
});

test("the plain HTML example: asks, goes on after a reload, stops", async () => {
  const page = await open(`/example?api=${encodeURIComponent(server.url)}`);
  const content = (id) => page.evaluate((id) => document.getElementById(id).textContent, id);
  await page.evaluate(() => document.querySelector("#form button").click());
  await until(async () => (await content("text")).length > 60, "some text");
  const before = await content("text");
  await page.reload();
  await until(async () => (await content("text")).length > before.length, "more text");
  assert.ok((await content("text")).startsWith(before));
  await picture(page, "example");
  await page.evaluate(() => document.getElementById("stop").click());
  await until(async () => (await content("status")) === "Stopped.", "the end");
  await page.close();
});

test("twenty streams at once: one connection with GET /v1/events, and six at a time without it", async (t) => {
  const page = await open("/client");
  const seeds = Array.from({ length: 20 }, (_, i) => 100 + i);
  const submit = () => Promise.all(seeds.map((seed) => server.submit({ tokens: 60, seed, tokens_per_second: 20 })));
  const together = await submit();
  server.proxy.cut(); // what the browser kept open of earlier tests
  server.proxy.connections = 0;
  const texts = await page.evaluate(
    (url, ids) =>
      new Promise((resolve) => {
        const texts = Object.fromEntries(ids.map((id) => [id, ""]));
        let ended = 0;
        const source = new EventSource(`${url}/v1/events?${ids.map((id) => `generation=${id}`).join("&")}`);
        const on = (name, then) => source.addEventListener(name, (event) => event.data !== undefined && then(JSON.parse(event.data)));
        on("delta", (data) => (texts[data.generation] += data.text));
        on("reset", (data) => (texts[data.generation] = ""));
        on("snapshot", (data) => (texts[data.generation] = data.text));
        for (const end of ["completed", "failed", "cancelled"]) on(end, () => ++ended === ids.length && (source.close(), resolve(texts)));
      }),
    server.url,
    together,
  );
  together.forEach((id, i) => assert.equal(texts[id], simulated(60, seeds[i])));
  assert.equal(server.proxy.connections, 1);

  const apart = await submit();
  server.proxy.most = 0;
  await page.evaluate((url, ids) => ids.forEach((id) => window.read(url, id)), server.url, apart);
  await until(() => page.evaluate((ids) => ids.every((id) => window.look(id).done), apart), "all ends");
  for (const [i, id] of apart.entries()) assert.equal((await look(page, id)).text, simulated(60, seeds[i]));
  t.diagnostic(`${server.proxy.most} connections at most, apart`);
  assert.ok(server.proxy.most <= 6);
  await page.close();
});

test("500 tokens a second into React: fewer than 60 renders a second, no task that keeps the page busy for 50 ms", async (t) => {
  const seconds = 8;
  const id = await server.submit({ tokens: 500 * seconds, seed: 28, tokens_per_second: 500, first_token_ms: 4_000 }); // the page is there before
  const page = await tab(browser);
  await page.tracing.start({ categories: ["toplevel", "disabled-by-default-devtools.timeline", "devtools.timeline"] });
  await page.goto(`${site.url}/react?api=${encodeURIComponent(server.url)}&id=${id}`);
  await until(() => page.evaluate(() => document.querySelector("#status")?.textContent === "completed"), "the end");
  const { traceEvents } = JSON.parse(Buffer.from(await page.tracing.stop()).toString());
  const seen = await page.evaluate(() => window.seen);
  assert.equal(await page.evaluate(() => document.querySelector("#text").textContent), simulated(500 * seconds, 28));
  const rate = (seen.renders * 1000) / (seen.lastAt - seen.firstAt);
  // CPU time and not wall time: a machine that is busy elsewhere makes every task long.
  const names = traceEvents.filter((event) => event.name === "thread_name" && event.args.name === "CrRendererMain");
  const main = names.map((event) => `${event.pid}/${event.tid}`);
  const onMain = traceEvents.filter((event) => main.includes(`${event.pid}/${event.tid}`));
  // Starting the page, which is not what this is about, takes one task of its own.
  const loaded = Math.max(...onMain.filter((event) => event.name === "MarkLoad").map((event) => event.ts));
  const tasks = onMain.filter((event) => /RunTask$/.test(event.name) && event.tdur !== undefined && event.ts > loaded);
  const longest = Math.max(...tasks.map((event) => event.tdur)) / 1000;
  t.diagnostic(
    `${seen.renders} renders in ${((seen.lastAt - seen.firstAt) / 1000).toFixed(1)} s, ${rate.toFixed(1)}/s; longest of ${tasks.length} tasks ` +
      `${longest.toFixed(1)} ms of CPU; long tasks by the clock: ${seen.longTasks.length} (${Math.max(0, ...seen.longTasks)} ms at most)`,
  );
  assert.ok(seen.renders > 20 && rate < 60, `${rate} renders a second`);
  assert.ok(tasks.length > 100 && longest < 50, `${longest} ms`);
  await picture(page, "fast");
  await page.close();
});
