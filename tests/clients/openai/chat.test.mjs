// Chat completions by the official SDK: stream and whole, tools, errors, the same answer again by its key.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import OpenAI from 'openai';

import { PARAMETERS, setUp, sim, SLOW, TURNS } from './suite.mjs';

let it;
before(async () => (it = await setUp()));
after(() => it.stop());

const messages = [{ role: 'user', content: 'Tell me.' }];

test('a completion is the same streamed and whole', async () => {
  const options = sim({ tokens: 50, seed: 5 });
  const whole = await it.client.chat.completions.create({ model: 'sim-1', messages, ...options });
  const stream = it.client.chat.completions.stream({
    model: 'sim-1', messages, stream_options: { include_usage: true }, ...options,
  });
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.content, whole.choices[0].message.content);
  assert.deepEqual(final.usage, whole.usage);
  assert.equal(final.choices[0].finish_reason, 'stop');
});

test('a cut completion is an error, and the same POST with its key gives it again', async () => {
  it.proxy.cuts = [2000];
  const asked = [{ model: 'sim-1', messages, stream: true, ...SLOW }, { headers: { 'Idempotency-Key': 'chat-node' } }];
  const read = async stream => {
    let text = '';
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? '';
    return text;
  };
  await assert.rejects(async () => read(await it.client.chat.completions.create(...asked)));
  const text = await read(await it.client.chat.completions.create(...asked));
  assert.equal(text.split(/\s+/).length, 300);
});

test('the tool runner of the SDK runs them', async () => {
  const asked = [];
  const runner = it.client.chat.completions.runTools({
    model: 'sim-1',
    messages,
    stream: true,
    ...TURNS,
    tools: [
      {
        type: 'function',
        function: {
          name: 'weather',
          parameters: PARAMETERS,
          parse: JSON.parse,
          function: ({ city }) => (asked.push(city), 'rain'),
        },
      },
    ],
  });
  assert.equal(await runner.finalContent(), 'Rain in both.');
  assert.deepEqual(asked, ['Bern', '東京']);
});

test('a failure in mid-stream is raised behind the text so far', async () => {
  const options = sim({ tokens: 9, seed: 5, faults: [{ at_token: 4, kind: 'error' }] }, { max_attempts: 1 });
  const stream = await it.client.chat.completions.create({ model: 'sim-1', messages, stream: true, ...options });
  let text = '';
  await assert.rejects(
    async () => {
      for await (const chunk of stream) text += chunk.choices[0].delta.content ?? '';
    },
    error => error instanceof OpenAI.APIError && error.code === 'upstream_error',
  );
  assert.equal(text.split(' ').length, 4);
  it.requests();
  await assert.rejects(
    it.client.chat.completions.create({ model: 'sim-1', messages, ...options }),
    error => error.status === 502 && error.code === 'upstream_error',
  );
  assert.equal(it.requests().length, 1); // tried again here already, and not by the SDK
});

test('models have the names that work', async () => {
  const names = [];
  for await (const model of it.client.models.list()) names.push(model.id);
  assert.deepEqual(names, ['sim/sim-1']);
});
