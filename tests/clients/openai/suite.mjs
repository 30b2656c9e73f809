// What the tests of this folder share: one Legato, a proxy that cuts in front of it, and the SDK behind that.

import OpenAI from 'openai';

import { startLegato, startProxy } from '../ai-sdk/legato.mjs';

/** `client` goes through `proxy`, `direct` does not; `requests()` are those that came since it was last asked. */
export async function setUp() {
  const legato = await startLegato();
  const proxy = await startProxy(legato.url);
  const made = (url, options = {}) => new OpenAI({ baseURL: `${url}/openai/v1`, apiKey: 'anything', ...options });
  return {
    legato,
    proxy,
    client: made(proxy.url),
    direct: made(legato.url),
    requests: () => proxy.requests.splice(0),
    async stop() {
      await proxy.stop();
      await legato.stop();
    },
  };
}

/** What the simulated provider shall do. */
export const sim = (options, more = {}) => ({ legato: { provider_options: options, ...more } });

/** Enough text for many cuts: an event for each token, however slow the worker is. */
export const SLOW = sim({ tokens: 300, seed: 5, tokens_per_second: 200 }, { delivery: { max_chars: 100 } });

/** Two calls at once, then an answer. */
export const TURNS = sim({
  turns: [
    {
      text: 'Let me look. ',
      tool_calls: [
        { name: 'weather', arguments: { city: 'Bern' } },
        { name: 'weather', arguments: { city: '東京' } },
      ],
    },
    { text: 'Rain in both.' },
  ],
});

export const PARAMETERS = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };
