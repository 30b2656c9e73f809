/** Debian's Firefox over the real server. */
import { after, before, test } from "node:test";
import { clientThroughCuts, eventSourceOfTheReadme, reloadInMidStream } from "./suite.mjs";
import { deployment, launch, pages, tab } from "./support.mjs";

let server, site, browser;
before(async () => {
  [server, site, browser] = await Promise.all([deployment(), pages(), launch("firefox")]);
});
after(async () => {
  await browser?.close();
  site?.close();
  await server?.close();
});

test("the browser's EventSource, as the README has it, through cuts", async (t) => {
  const page = await tab(browser);
  await page.goto(`${site.url}/plain`);
  t.diagnostic(`${await eventSourceOfTheReadme(page, server)} cuts`);
  await page.close();
});

test("the client, through cuts", async (t) => {
  const page = await tab(browser);
  await page.goto(`${site.url}/client`);
  await page.waitForFunction("window.ready");
  t.diagnostic(`${await clientThroughCuts(page, server)} cuts`);
  await page.close();
});

test("a reload in mid-stream shows the text at once, and goes on behind it", async () => {
  const page = await tab(browser);
  await reloadInMidStream(page, site.url, server);
  await page.close();
});
