// The reference server of the Durable Streams protocol, in memory, without compression of what is tiny.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.env.BENCH_MODULES}/`);
const { DurableStreamTestServer } = await import(pathToFileURL(require.resolve("@durable-streams/server")));

const server = new DurableStreamTestServer({ port: Number(process.env.BENCH_PORT), host: "127.0.0.1", compression: false });
await server.start();
