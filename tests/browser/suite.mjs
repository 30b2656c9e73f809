/** What holds in every browser. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { simulated, until } from "./support.mjs";

/** The script of the README that reads with nothing but the browser, as it stands there. */
export const readme = () => {
  const text = readFileSync(new URL("../../README.md", import.meta.url), "utf8");
  const [, script] = /^```js\n(let text = [^]*?)^```$/m.exec(text);
  return script;
};

/** Cut all connections, again and again, until `over` says so; how often something was cut. */
export async function cutting(proxy, over) {
  let cuts = 0;
  await until(async () => {
    cuts += proxy.cut() > 0 ? 1 : 0;
    return over();
  }, "the end");
  return cuts;
}

export async function eventSourceOfTheReadme(page, server) {
  const tokens = 120;
  const id = await server.submit({ tokens, seed: 21, tokens_per_second: 10 });
  await page.evaluate(`(() => {
    const id = ${JSON.stringify(id)};
    window.ends = [];
    const console = { log: (...line) => window.ends.push(line[0]) };
    window.reader = (${"async"} () => { ${readme().replace("http://127.0.0.1:8700", server.url)} window.source = source; })();
  })()`);
  const text = () => page.evaluate(() => document.body.textContent);
  let cuts = 0;
  let before = "";
  await until(async () => {
    const now = await text();
    if (now !== before && now.length > before.length + 40) {
      before = now;
      cuts += server.proxy.cut() > 0 ? 1 : 0;
    }
    return page.evaluate(() => window.ends.includes("completed"));
  }, "the end of the generation");
  assert.equal(await text(), simulated(tokens, 21));
  assert.ok(cuts >= 2, `${cuts} cuts`);
  assert.equal(await page.evaluate(() => window.source.readyState), 2, "closed");
  return cuts;
}

export async function clientThroughCuts(page, server) {
  const tokens = 300;
  const id = await server.submit({ tokens, seed: 22, tokens_per_second: 20 });
  await page.evaluate((url, id) => window.read(url, id), server.url, id);
  const look = () => page.evaluate((id) => window.look(id), id);
  let cuts = 0;
  let at = 0;
  const end = await until(async () => {
    const now = await look();
    if (now.connection === "open" && now.text.length > at + 100) {
      at = now.text.length;
      cuts += server.proxy.cut() > 0 ? 1 : 0;
    }
    return now.done && now;
  }, "the end of the stream");
  assert.deepEqual([end.text, end.status, end.error], [simulated(tokens, 22), "completed", undefined]);
  const positions = end.events.map(([, position]) => position).filter(Boolean);
  assert.equal(new Set(positions).size, positions.length, "no event twice");
  assert.ok(cuts >= 2, `${cuts} cuts`);
  return cuts;
}

export async function reloadInMidStream(page, base, server) {
  const tokens = 150;
  const id = await server.submit({ tokens, seed: 23, tokens_per_second: 15 });
  const shown = () => page.evaluate(() => document.querySelector("#text")?.textContent ?? "");
  await page.goto(`${base}/react?api=${encodeURIComponent(server.url)}&id=${id}`);
  await until(async () => (await shown()).length > 60, "some text");
  await page.reload();
  await until(async () => (await shown()).length > 0, "text again");
  const first = await page.evaluate(() => window.seen.texts.find((text) => text) ?? "");
  const whole = simulated(tokens, 23);
  assert.ok(first.length > 20 && whole.startsWith(first.replace(/\S*$/, "")), `the first text was ${JSON.stringify(first)}`);
  await until(() => page.evaluate(() => document.querySelector("#status")?.textContent === "completed"), "the end");
  assert.equal(await shown(), whole);
}
