// `WorkflowChatTransport` counts the chunks it was sent, asks for the rest by that number, and does not stop before `finish`.

import assert from 'node:assert/strict';
import { after, before, beforeEach, test } from 'node:test';

import { WorkflowChatTransport } from '@ai-sdk/workflow/client';
import { Chat } from 'react-7';

import { startLegato, startProxy, until } from './legato.mjs';

let legato;
let proxy;
let number = 0;
let id;

before(async () => {
  legato = await startLegato();
  proxy = await startProxy(legato.url);
});
after(async () => {
  await proxy.stop();
  await legato.stop();
});
beforeEach(() => {
  id = `workflow-${++number}`;
  proxy.cuts = [];
  proxy.requests = [];
});

const textOf = message => message.parts.filter(part => part.type === 'text').map(part => part.text).join('');
const runOf = async run => (await fetch(`${legato.url}/v1/generations/${run}`)).json();

/** A chat, and the id of the generation that answers it. `named` says the chat's id, so that a reload can resume it. */
function chatOf(options, { named = false, messages = [], ...more } = {}) {
  const seen = { run: undefined };
  const transport = new WorkflowChatTransport({
    api: `${proxy.url}/ai-sdk/chat`,
    onChatSendMessage: response => {
      seen.run = response.headers.get('x-workflow-run-id');
    },
    prepareSendMessagesRequest: ({ id, messages }) => ({
      body: { messages, provider_options: options, ...(named ? { id } : {}) },
    }),
    ...more,
  });
  return { chat: new Chat({ id, transport, messages }), seen };
}

test('an answer that is cut goes on at the next chunk', async () => {
  for (const [at, cuts] of [[700, 1200], [900, 2048], [1111, 800], [4000, 1777]].entries()) {
    proxy.cuts = cuts;
    proxy.requests = [];
    id = `workflow-cut-${at}`;
    const { chat, seen } = chatOf({ tokens: 200, seed: at, tokens_per_second: 400 });
    await chat.sendMessage({ text: 'hi' });
    assert.equal(chat.status, 'ready', chat.error?.message);
    assert.equal(textOf(chat.lastMessage), (await runOf(seen.run)).text);
    assert.equal(chat.messages.length, 2);
    assert.equal(chat.lastMessage.parts.filter(part => part.type === 'text').length, 1);
    assert.equal(proxy.requests.length, 3, proxy.requests.join());
  }
});

test('three replays in a row that are cut are too many for this client, and it says so', async () => {
  proxy.cuts = [900, 900, 900, 900];
  const { chat } = chatOf({ tokens: 200, seed: 1, tokens_per_second: 100 });
  await chat.sendMessage({ text: 'hi' });
  assert.equal(chat.status, 'error');
  assert.match(chat.error.message, /Failed to reconnect after 3/);
  assert.equal(proxy.requests.length, 4);
});

test('an attempt that is lost in mid-answer leaves the text of the next one, also behind a cut', async () => {
  proxy.cuts = [1500];
  const faults = [{ at_token: 40, kind: 'error', attempt: 1 }];
  const { chat, seen } = chatOf({ tokens: 80, seed: 3, tokens_per_second: 200, faults });
  await chat.sendMessage({ text: 'hi' });
  assert.equal(chat.status, 'ready', chat.error?.message);
  const whole = await runOf(seen.run);
  assert.equal(whole.attempt, 2);
  assert.equal(textOf(chat.lastMessage), whole.text);
});

test('a reload resumes the chat from its beginning, or from its tail', async () => {
  const first = chatOf({ tokens: 120, seed: 4, tokens_per_second: 60 }, { named: true });
  const sending = first.chat.sendMessage({ text: 'hi' });
  await until(() => first.chat.lastMessage?.role === 'assistant' && textOf(first.chat.lastMessage).length > 30, 'some text');
  const saved = structuredClone(first.chat.messages.slice(0, 1));

  const reloaded = chatOf({}, { messages: structuredClone(saved) });
  await reloaded.chat.resumeStream();
  await sending;
  const whole = await runOf(first.seen.run);
  assert.equal(whole.status, 'completed');
  assert.equal(textOf(reloaded.chat.lastMessage), whole.text);
  assert.equal(textOf(first.chat.lastMessage), whole.text);

  proxy.cuts = [900];
  const tail = chatOf({}, { messages: structuredClone(saved), initialStartIndex: -20 });
  await tail.chat.resumeStream();
  assert.equal(tail.chat.status, 'ready', tail.chat.error?.message);
});

test('an answer that was stopped or failed ends, and nobody asks again', async () => {
  const { chat, seen } = chatOf({ tokens: 5000, tokens_per_second: 50 }, { named: true });
  const sending = chat.sendMessage({ text: 'hi' });
  await until(() => chat.lastMessage?.role === 'assistant' && textOf(chat.lastMessage).length > 20, 'some text');
  await fetch(`${proxy.url}/ai-sdk/chat/${id}/stop`, { method: 'POST' });
  await sending;
  assert.equal(chat.status, 'ready', chat.error?.message);
  assert.equal((await runOf(seen.run)).status, 'cancelled');
  assert.equal(proxy.requests.length, 2, proxy.requests.join());

  id = 'workflow-failed';
  const failing = chatOf({ tokens: 20, faults: [{ at_token: 5, kind: 'truncate' }] });
  await failing.chat.sendMessage({ text: 'hi' });
  assert.equal(failing.chat.status, 'error');
});

test('with nothing to resume a chat stays as it is', async () => {
  const { chat } = chatOf({});
  await chat.resumeStream();
  assert.equal(chat.status, 'ready', chat.error?.message);
  assert.deepEqual(chat.messages, []);
  assert.equal(proxy.requests.length, 1);
});
