// The code of docs/how-to/use-ai-sdk.md, taken from the page and run.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';

import { transform } from 'esbuild';

import { startLegato, until } from './legato.mjs';
import { openPage } from './page.mjs';

const page = await readFile(new URL('../../../docs/how-to/use-ai-sdk.md', import.meta.url), 'utf8');
const here = new URL('.how-to/', import.meta.url);

/** The one block of the page that holds `text`, with this project's names of the packages, as a module of its own. */
async function written(language, text) {
  const blocks = [...page.matchAll(new RegExp('```' + language + '\\n(.*?)```', 'gs'))].map(found => found[1]);
  const [block, ...more] = blocks.filter(code => code.includes(text));
  assert.ok(block && more.length === 0, `one block of ${language} with ${text}`);
  const { code } = await transform(block, { loader: language === 'js' ? 'js' : 'tsx', format: 'esm', jsx: 'automatic' });
  const name = new URL(`${language}-${text.length}.mjs`, here);
  await mkdir(here, { recursive: true });
  await writeFile(name, code.replaceAll(/(["'])ai\1/g, '"ai-7"').replaceAll(/(["'])@ai-sdk\/react\1/g, '"react-7"'));
  return name;
}

let legato;
before(async () => {
  const sim = { provider: 'sim', model: 'sim-1', provider_options: { tokens: 300, seed: 5, tokens_per_second: 40 } };
  legato = await startLegato({ LEGATO_AI_SDK_DEFAULTS: JSON.stringify(sim) });
});
after(async () => {
  await legato.stop();
  await rm(here, { recursive: true, force: true });
});

test('the script of the page prints the answer', async () => {
  const script = await written('js', "id: 'a-chat'");
  const { stdout } = await promisify(execFile)(process.execPath, [script.pathname], {
    env: { ...process.env, LEGATO_URL: legato.url },
  });
  const list = await (await fetch(`${legato.url}/v1/generations?thread=ai-sdk:a-chat`)).json();
  const { text } = await (await fetch(`${legato.url}/v1/generations/${list.data[0].id}`)).json();
  assert.ok(text);
  assert.equal(stdout, `${text}\n`);
});

test('the component of the page sends, streams, stops, and resumes after a reload', async () => {
  const shown = await openPage();
  const { createElement } = await import('react');
  const real = globalThis.fetch;
  globalThis.fetch = (path, ...rest) => real(new URL(path, legato.url), ...rest); // a page asks its own origin
  try {
    const { ChatPage } = await import(await written('tsx', 'export function ChatPage'));
    const answer = () => shown.find('.assistant')?.textContent ?? '';
    shown.render(createElement(ChatPage, { id: 'a-page', saved: [] }));
    (await until(() => shown.button('Send'), 'the page is there')).click();
    await until(() => answer().length > 20, 'some text');
    const saved = [{ id: 'u', role: 'user', parts: [{ type: 'text', text: 'Tell me something.' }] }];
    await shown.unmount();

    shown.render(createElement(ChatPage, { id: 'a-page', saved }));
    (await until(() => shown.button('Stop'), 'the answer streams again')).click();
    const list = await (await real(`${legato.url}/v1/generations?thread=ai-sdk:a-page`)).json();
    const stored = async () => (await real(`${legato.url}/v1/generations/${list.data[0].id}`)).json();
    await until(async () => (await stored()).status === 'cancelled', 'it is cancelled');
    const { text } = await stored();
    assert.ok(answer().length > 0 && text.startsWith(answer()), answer());
    await shown.unmount();

    shown.render(createElement(ChatPage, { id: 'a-page', saved }));
    await until(() => answer() === text, 'the whole of what was said');
  } finally {
    await shown.close();
    globalThis.fetch = real;
  }
});
