// The JavaScript of docs/how-to/use-openai-sdk.md, taken from the page and run, through cuts.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';

import { setUp } from './suite.mjs';

const page = await readFile(new URL('../../../docs/how-to/use-openai-sdk.md', import.meta.url), 'utf8');
const script = new URL('.how-to.mjs', import.meta.url);

let it;
before(async () => (it = await setUp()));
after(async () => {
  await it.stop();
  await rm(script, { force: true });
});

test('the script of the page prints the answer', async () => {
  const [code, ...more] = [...page.matchAll(/```js\n(.*?)```/gs)].map(found => found[1]);
  assert.equal(more.length, 0);
  await writeFile(script, code.replaceAll('http://127.0.0.1:8700', it.proxy.url));
  it.proxy.cuts = [3000, 1500];
  const { stdout } = await promisify(execFile)(process.execPath, [script.pathname]);
  assert.match(stdout, /^completed \S/);
  assert.equal(stdout.trim().split(/\s+/).length, 65);
  assert.equal(it.proxy.cuts.length, 0);
});
