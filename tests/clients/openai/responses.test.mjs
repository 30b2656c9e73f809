// The Responses API by the official SDK: background, stream, retrieve, cancel, tools, errors; whole through every cut.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import OpenAI from 'openai';

import { PARAMETERS, setUp, sim, SLOW, TURNS } from './suite.mjs';

let it;
before(async () => (it = await setUp()));
after(() => it.stop());

const END = /^response\.(completed|failed|incomplete)$/;

test('a background stream is whole however often it is cut, with one request for each cut', async () => {
  it.requests();
  it.proxy.cuts = [2000, 0, 1, 700, 3000, 5000, 900, 4000, 2500];
  const cuts = it.proxy.cuts.length;
  const numbers = [];
  let id;
  let status;
  let text = '';
  let stream = await it.client.responses.create({ model: 'sim-1', input: 'Hello', background: true, stream: true, ...SLOW });
  while (!status) {
    try {
      for await (const event of stream) {
        numbers.push(event.sequence_number);
        if (event.type === 'response.created') id = event.response.id;
        if (event.type === 'response.output_text.delta') text += event.delta;
        if (END.test(event.type)) status = event.response.status;
      }
    } catch (error) {
      assert.ok(!(error instanceof OpenAI.APIError) || error instanceof OpenAI.APIConnectionError, error);
    }
    if (!status) stream = await it.client.responses.retrieve(id, { stream: true, starting_after: numbers.at(-1) });
  }
  assert.equal(status, 'completed');
  assert.deepEqual(numbers, numbers.map((_, at) => at));
  const kept = await it.direct.responses.retrieve(id);
  assert.equal(kept.output_text, text);
  assert.equal(text.split(/\s+/).length, 300);
  assert.equal(it.proxy.cuts.length, 0);
  assert.equal(it.requests().length, cuts + 1);
});

test('the stream helper makes the final response, and again by id', async () => {
  const stream = it.client.responses.stream({ model: 'sim-1', input: 'Hello', ...SLOW });
  const numbers = [];
  stream.on('event', event => numbers.push(event.sequence_number));
  const final = await stream.finalResponse();
  assert.equal(final.status, 'completed');
  assert.equal(final.output_text.split(/\s+/).length, 300);

  const rest = [];
  const again = it.client.responses.stream({ response_id: final.id, starting_after: numbers[50] });
  again.on('event', event => rest.push(event.sequence_number));
  assert.deepEqual((await again.finalResponse()).output, final.output);
  assert.deepEqual(rest, numbers.slice(51));
});

test('a helper that was cut is followed by one that goes on by id', async () => {
  it.proxy.cuts = [8000]; // behind the first words: the events before them hold whole responses
  const first = it.client.responses.stream({ model: 'sim-1', input: 'Hello', background: true, ...SLOW });
  let id;
  let last;
  let text = '';
  const take = event => {
    last = event.sequence_number;
    if (event.type === 'response.created') id = event.response.id;
    if (event.type === 'response.output_text.delta') text += event.delta;
  };
  first.on('event', take);
  await assert.rejects(first.finalResponse());
  assert.ok(text.length > 0);
  const second = it.client.responses.stream({ response_id: id, starting_after: last });
  second.on('event', take);
  assert.equal((await second.finalResponse()).output_text, text);
});

test('tools are called and answered', async () => {
  const tools = [{ type: 'function', name: 'weather', parameters: PARAMETERS, strict: false }];
  const input = [{ role: 'user', content: 'Weather?' }];
  const first = await it.client.responses.stream({ model: 'sim-1', input, tools, ...TURNS }).finalResponse();
  const calls = first.output.filter(item => item.type === 'function_call');
  assert.deepEqual(calls.map(call => JSON.parse(call.arguments).city), ['Bern', '東京']);
  input.push(...first.output);
  input.push(...calls.map(call => ({ type: 'function_call_output', call_id: call.call_id, output: 'rain' })));
  const second = await it.client.responses.create({ model: 'sim-1', input, tools, ...TURNS });
  assert.equal(second.output_text, 'Rain in both.');
  const items = [];
  for await (const item of it.client.responses.inputItems.list(second.id, { order: 'asc', limit: 2 })) items.push(item.type);
  assert.deepEqual(items.slice(-2), ['function_call_output', 'function_call_output']);
});

test('a response goes on from the one before', async () => {
  const tools = [{ type: 'function', name: 'weather', parameters: PARAMETERS, strict: false }];
  const first = await it.client.responses.create({ model: 'sim-1', input: 'Weather?', tools, ...TURNS });
  const calls = first.output.filter(item => item.type === 'function_call');
  const input = calls.map(call => ({ type: 'function_call_output', call_id: call.call_id, output: 'rain' }));
  const second = await it.client.responses.create({
    model: 'sim-1', input, tools, previous_response_id: first.id, ...TURNS,
  });
  assert.equal(second.output_text, 'Rain in both.');
  assert.equal(second.previous_response_id, first.id);
});

test('a cancel ends the stream with its status, and stays', async () => {
  const stream = it.client.responses.stream({
    model: 'sim-1', input: 'Hello', background: true, ...sim({ tokens: 5000, tokens_per_second: 100 }),
  });
  let id;
  let cancelled;
  stream.on('event', event => {
    if (event.type === 'response.created') id = event.response.id;
    if (event.type === 'response.output_text.delta') cancelled ??= it.client.responses.cancel(id);
  });
  const final = await stream.finalResponse();
  assert.equal(final.status, 'cancelled');
  assert.equal((await cancelled).status, 'cancelled');
  const found = await it.client.responses.cancel(final.id);
  assert.equal(found.status, 'cancelled');
  assert.equal(found.output[0].content[0].text, final.output_text);
  await it.client.responses.delete(final.id);
  await assert.rejects(it.client.responses.retrieve(final.id), OpenAI.NotFoundError);
});

test('a failed answer says why', async () => {
  const options = sim({ tokens: 9, faults: [{ at_token: 4, kind: 'error' }] }, { max_attempts: 1 });
  const final = await it.client.responses.stream({ model: 'sim-1', input: 'Hello', ...options }).finalResponse();
  assert.equal(final.status, 'failed');
  assert.match(final.error.message, /^upstream_error: /);
});

test('a reset ends an open stream, and what was before it is refused once', async () => {
  const faults = [{ at_token: 40, kind: 'error', attempt: 1 }];
  const options = sim({ tokens: 80, seed: 5, tokens_per_second: 25, faults });
  const stream = await it.client.responses.create({ model: 'sim-1', input: 'x', background: true, stream: true, ...options });
  let id;
  let last;
  await assert.rejects(async () => {
    for await (const event of stream) {
      last = event.sequence_number;
      if (event.type === 'response.created') id = event.response.id;
    }
  });
  it.requests();
  await assert.rejects(
    it.client.responses.retrieve(id, { stream: true, starting_after: last }),
    error => error instanceof OpenAI.ConflictError && error.code === 'stream_reset',
  );
  assert.equal(it.requests().length, 1);
  const final = await it.client.responses.stream({ response_id: id }).finalResponse();
  assert.equal(final.output_text.split(/\s+/).length, 80);
});

test('what is wrong is named', async () => {
  await assert.rejects(
    it.client.responses.create({ model: 'sim-1', input: 'x', conversation: 'conv_1', temperature: 7 }),
    error => error instanceof OpenAI.BadRequestError && error.param === 'conversation'
      && /temperature/.test(error.message) && /^req_/.test(error.requestID),
  );
});
