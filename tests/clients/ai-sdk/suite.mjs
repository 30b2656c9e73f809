// What an application does with `Chat` and `useChat`, in whichever version: text identical, nothing doubled, no hang, no hot
// loop, whatever is cut on the way.

import assert from 'node:assert/strict';
import { after, before, beforeEach, test } from 'node:test';

import { pause, startLegato, startProxy, until } from './legato.mjs';
import { openPage } from './page.mjs';

const TOOL = { type: 'function', function: { name: 'weather', parameters: { type: 'object' } } };

export function suite({ ai, react, query = '', ownChat = false }) {
  const { DefaultChatTransport, lastAssistantMessageIsCompleteWithToolCalls } = ai;
  const { Chat, useChat } = react;
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
    id = `chat-${++number}`;
    proxy.cuts = [];
    proxy.requests = [];
  });

  const transport = (options, extra = {}) =>
    new DefaultChatTransport({ api: `${proxy.url}/ai-sdk/chat${query}`, body: { provider_options: options, ...extra } });
  const chatOf = (options, extra = {}, more = {}) => new Chat({ id, transport: transport(options, extra), ...more });
  const textOf = message => message.parts.filter(part => part.type === 'text').map(part => part.text).join('');
  const stored = async () => {
    const list = await (await fetch(`${legato.url}/v1/generations?thread=ai-sdk:${id}`)).json();
    return (await fetch(`${legato.url}/v1/generations/${list.data[0].id}`)).json();
  };

  /** Sends, and resumes as often as the connection breaks, as an application does that shows "reconnecting". */
  async function sendThrough(chat, message) {
    await chat.sendMessage(message);
    for (let round = 0; chat.status === 'error' && round < 50; round++) await chat.resumeStream();
  }

  test('an answer that is cut again and again arrives whole, once', async () => {
    proxy.cuts = [900, 1500, 700, 2000, 1200, 400, 2200]; // less than the answer is when it comes at once
    const chat = chatOf({ tokens: 300, seed: 7, tokens_per_second: 150 });
    await sendThrough(chat, { text: 'hi' });
    assert.equal(chat.status, 'ready');
    assert.deepEqual(chat.messages.map(message => message.role), ['user', 'assistant']);
    assert.equal(textOf(chat.messages[1]), (await stored()).text);
    assert.equal(chat.messages[1].parts.filter(part => part.type === 'text').length, 1);
    assert.equal(proxy.requests.length, 8, proxy.requests.join());
  });

  test('a client that comes back just behind the end gets the end', async () => {
    const chat = chatOf({ tokens: 50, seed: 8 });
    proxy.cuts = [600];
    await chat.sendMessage({ text: 'hi' });
    assert.equal(chat.status, 'error');
    await until(async () => (await stored()).status === 'completed', 'the answer has ended');
    await chat.resumeStream();
    assert.equal(chat.status, 'ready');
    assert.equal(textOf(chat.messages[1]), (await stored()).text);
    assert.equal(chat.messages.length, 2);
  });

  test('an attempt that is lost in mid-answer leaves the text of the next one', async () => {
    const faults = [{ at_token: 30, kind: 'error', attempt: 1 }];
    const chat = chatOf({ tokens: 80, seed: 9, tokens_per_second: 100, faults });
    await sendThrough(chat, { text: 'hi' });
    assert.equal(chat.status, 'ready');
    const whole = await stored();
    assert.equal(whole.attempt, 2);
    assert.equal(textOf(chat.messages[1]), whole.text);
    assert.equal(chat.messages.length, 2);
  });

  test('with nothing to resume a chat stays as it is', async () => {
    const chat = chatOf({ tokens: 5 });
    await chat.resumeStream();
    assert.equal(chat.status, 'ready');
    assert.deepEqual(chat.messages, []);
    assert.equal(proxy.requests.length, 1);
  });

  test('stop ends the answer on the server, and what was shown stays', async () => {
    const chat = chatOf({ tokens: 5000, seed: 10, tokens_per_second: 50 });
    const sending = chat.sendMessage({ text: 'hi' });
    await until(() => chat.lastMessage?.role === 'assistant' && textOf(chat.lastMessage).length > 20, 'some text');
    const stopping = fetch(`${proxy.url}/ai-sdk/chat/${id}/stop`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ assistantMessage: chat.lastMessage }),
    });
    await chat.stop();
    await sending;
    assert.deepEqual((await (await stopping).json()).success, true);
    assert.equal(chat.status, 'ready');
    await until(async () => (await stored()).status === 'cancelled', 'it is cancelled');
    await chat.resumeStream(); // a reload within the grace
    assert.equal(chat.status, 'ready');
    assert.equal(textOf(chat.lastMessage), (await stored()).text);
    assert.equal(chat.messages.length, 2);
  });

  test('leaving is not stopping: the rest is there for who comes back', async () => {
    const chat = chatOf({ tokens: 100, seed: 11, tokens_per_second: 100 });
    const sending = chat.sendMessage({ text: 'hi' });
    await until(() => chat.lastMessage?.role === 'assistant' && textOf(chat.lastMessage).length > 20, 'some text');
    await chat.stop();
    await sending;
    await chat.resumeStream();
    assert.equal(textOf(chat.lastMessage), (await stored()).text);
    assert.equal((await stored()).status, 'completed');
  });

  test('regenerate replaces the answer', async () => {
    const chat = chatOf({ text: 'First.' });
    await chat.sendMessage({ text: 'hi' });
    const first = chat.messages[1].id;
    await chat.regenerate();
    assert.equal(chat.messages.length, 2);
    assert.notEqual(chat.messages[1].id, first);
    assert.equal(textOf(chat.messages[1]), 'First.');
  });

  test('what the provider says of its failure is what the chat shows', async () => {
    const chat = chatOf({ tokens: 20, faults: [{ at_token: 5, kind: 'truncate' }] }, { max_attempts: 1 });
    await chat.sendMessage({ text: 'hi' });
    assert.equal(chat.status, 'error');
    const { error } = await stored();
    assert.equal(chat.error.message, error.message);
  });

  test('what is wrong with a request is what the chat shows', async () => {
    const chat = chatOf({ text: 'x' }, { temprature: 1 });
    await chat.sendMessage({ text: 'hi' });
    assert.equal(chat.status, 'error');
    assert.match(chat.error.message, /temprature: there is no such field/);
    chat.clearError();
    const audio = { type: 'file', mediaType: 'audio/mpeg', url: 'data:audio/mpeg;base64,AAAA' };
    const plain = chatOf({ text: 'x' });
    await plain.sendMessage({ parts: [audio] });
    assert.match(plain.error.message, /only images are supported/);
  });

  test('tools of the client: call, output, and the answer goes on in the same message', async () => {
    const turns = [{ text: 'I look. ', tool_calls: [{ name: 'weather', arguments: { city: 'Rome' } }] }];
    let options = { turns };
    const ran = [];
    const chat = new Chat({
      id,
      transport: new DefaultChatTransport({
        api: `${proxy.url}/ai-sdk/chat${query}`,
        body: () => ({ provider_options: options, tools: [TOOL] }),
      }),
      sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
      onToolCall({ toolCall }) {
        ran.push(toolCall.toolCallId);
        options = { text: 'Clear in Rome, and it stays so for the whole of the day.', tokens_per_second: 30 };
        void chat.addToolOutput({ tool: 'weather', toolCallId: toolCall.toolCallId, output: { sky: 'clear' } });
      },
    });
    await chat.sendMessage({ text: 'hi' });
    await until(() => chat.status === 'ready' && textOf(chat.lastMessage).includes('day.'), 'the second answer');
    assert.equal(ran.length, 1);
    assert.deepEqual(chat.messages.map(message => message.role), ['user', 'assistant']);
    assert.equal(textOf(chat.lastMessage), 'I look. Clear in Rome, and it stays so for the whole of the day.');
    const before = structuredClone(chat.lastMessage);

    // A reload: the message is built anew from the replay, and nothing is run again.
    await chat.resumeStream();
    assert.equal(ran.length, 1);
    assert.equal(chat.messages.length, 2);
    assert.equal(textOf(chat.lastMessage), textOf(before));
    assert.deepEqual(
      chat.lastMessage.parts.map(part => [part.type, part.state, part.output]),
      before.parts.map(part => [part.type, part.state, part.output]),
    );
    assert.equal(chat.lastMessage.id, before.id);
  });

  test('useChat: a page that is reloaded in mid-answer shows the whole of it, once', async () => {
    const page = await openPage();
    try {
      const first = page.mount(() => useChat({ id, transport: transport({ tokens: 150, seed: 12, tokens_per_second: 60 }) }));
      await until(() => first.current, 'the first page is there');
      void first.current.sendMessage({ text: 'hi' });
      await until(() => textOf(first.current?.messages[1] ?? { parts: [] }).length > 30, 'some text');
      const saved = structuredClone(first.current.messages.slice(0, 1)); // what the application had saved
      await page.unmount();

      const second = page.mount(() => useChat({ id, messages: saved, resume: true, transport: transport({}) }));
      await until(() => second.current?.status === 'ready' && second.current.messages.length === 2, 'the whole answer');
      assert.equal(textOf(second.current.messages[1]), (await stored()).text);
      await page.unmount();

      const third = page.mount(() => useChat({ id, messages: second.current.messages, resume: true, transport: transport({}) }));
      await until(() => proxy.requests.length >= 3 && third.current?.status === 'ready', 'the third page is ready');
      assert.equal(third.current.messages.length, 2);
      assert.equal(textOf(third.current.messages[1]), (await stored()).text);
      await page.unmount();
      await pause(300);
      assert.equal(proxy.requests.length, 3, proxy.requests.join());
    } finally {
      await page.close();
    }
  });

  test('useChat: a broken connection is resumed when the page is shown again', async () => {
    // Node says "terminated" where browsers say "network error"; the SDK knows the browsers' words only.
    const asBrowser = async (...asked) => {
      const answer = await fetch(...asked);
      const body = answer.body?.pipeThrough(new TransformStream());
      const readable = body && new ReadableStream({
        start(controller) {
          const reader = body.getReader();
          const pull = () => reader.read().then(
            ({ done, value }) => (done ? controller.close() : (controller.enqueue(value), pull())),
            () => controller.error(new TypeError('network error')),
          );
          void pull();
        },
      });
      return new Response(answer.status === 204 ? null : readable, { status: answer.status, headers: answer.headers });
    };
    const page = await openPage();
    try {
      const options = {
        api: `${proxy.url}/ai-sdk/chat${query}`,
        body: { provider_options: { tokens: 100, seed: 13, tokens_per_second: 100 } },
        fetch: asBrowser,
      };
      const transport = new DefaultChatTransport(options);
      const own = ownChat ? { chat: new Chat({ id, transport }) } : { id, transport };
      const chat = page.mount(() => useChat({ resume: true, ...own }));
      await until(() => proxy.requests.length === 1 && chat.current?.status === 'ready', 'nothing to resume');
      proxy.cuts = [1000];
      void chat.current.sendMessage({ text: 'hi' });
      await until(() => chat.current.status === 'error', 'the connection is cut');
      page.show();
      await until(() => chat.current.status === 'ready' && chat.current.messages.length === 2, 'it is resumed');
      assert.equal(textOf(chat.current.messages[1]), (await stored()).text);
    } finally {
      await page.close();
    }
  });
}
