// A Legato of its own for the tests of a file, and a proxy in front of it that cuts connections.

import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const COMMAND = process.env.LEGATO ?? fileURLToPath(new URL('../../../.venv/bin/legato', import.meta.url));

/** Starts `legato dev`; `url` once it says where it is. A chunk for each token, however slow it is: tests cut at bytes. */
export async function startLegato(environment = {}) {
  const directory = await mkdtemp(join(tmpdir(), 'legato-ai-sdk-'));
  const child = spawn(COMMAND, ['dev', '--port', '0', '--data', directory], {
    env: {
      ...process.env,
      LEGATO_AI_SDK_DEFAULTS: JSON.stringify({ provider: 'sim', model: 'sim-1', delivery: { max_chars: 100 } }),
      LEGATO_RETRY_BASE_SECONDS: '0.05',
      ...environment,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let said = '';
  const url = await new Promise((resolve, reject) => {
    const hear = data => {
      said += data;
      const found = /http:\/\/127\.0\.0\.1:\d+/.exec(said);
      if (found) resolve(found[0]);
    };
    child.stdout.on('data', hear);
    child.stderr.on('data', hear);
    child.on('exit', () => reject(new Error(`legato ended:\n${said}`)));
  });
  while (!(await fetch(`${url}/readyz`).then(answer => answer.ok, () => false))) await pause(50);
  return {
    url,
    async stop() {
      const gone = new Promise(resolve => child.on('exit', resolve));
      child.kill('SIGTERM');
      await gone;
      await rm(directory, { recursive: true, force: true });
    },
  };
}

/**
 * A proxy that resets connections: `cuts` are bytes of answer after which the next streams are cut, one each; when they
 * are used up nothing is cut any more. `requests` are the heads of all that came.
 */
export async function startProxy(target) {
  const upstream = new URL(target);
  const proxy = { cuts: [], requests: [], url: '' };
  const sockets = new Set();
  const server = createServer(near => {
    const far = connect(Number(upstream.port), upstream.hostname);
    for (const [one, other] of [[near, far], [far, near]]) {
      sockets.add(one);
      one.on('error', () => other.destroy());
      one.on('close', () => (sockets.delete(one), other.destroy()));
    }
    let left = Infinity;
    near.on('data', data => {
      const head = /^(GET|POST) (\S+) HTTP/.exec(data.toString('latin1'));
      if (head) {
        proxy.requests.push(`${head[1]} ${head[2]}`);
        if (!head[2].endsWith('/stop')) left = proxy.cuts.shift() ?? Infinity;
      }
      far.write(data);
    });
    far.on('data', data => {
      near.write(data.subarray(0, left));
      left -= data.length;
      if (left <= 0) near.resetAndDestroy();
    });
  });
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
  proxy.url = `http://127.0.0.1:${server.address().port}`;
  proxy.stop = async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise(resolve => server.close(resolve));
  };
  return proxy;
}

export const pause = ms => new Promise(resolve => setTimeout(resolve, ms));

/** Waits until `look` returns something true, for as long as a slow machine may need. */
export async function until(look, what, seconds = 60) {
  const deadline = Date.now() + 1000 * seconds;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`not within ${seconds} s: ${what}`);
    await pause(20);
  }
}
