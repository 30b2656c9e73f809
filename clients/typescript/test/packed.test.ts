/** What is published, from the tarball that would be. */
import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { legatoDev } from "./support.js";

const HERE = join(import.meta.dirname, "..");
/** Minified and gzipped, everything that the package exports. */
const MOST_BYTES = 6 * 1024;

const folder = mkdtempSync(join(tmpdir(), "legato-packed-"));
after(() => rmSync(folder, { recursive: true, force: true }));
const [packed] = JSON.parse(execFileSync("npm", ["pack", "--json", "--pack-destination", folder], { cwd: HERE, encoding: "utf8" }));
writeFileSync(join(folder, "package.json"), '{"private": true, "type": "module"}');
execFileSync("npm", ["install", "--offline", "--no-audit", "--no-fund", join(folder, packed.filename)], { cwd: folder });
const installed = join(folder, "node_modules/@legato/client");

test("the tarball holds what it needs and nothing else", () => {
  const files: string[] = packed.files.map((file: { path: string }) => file.path);
  const strange = files.filter((path) => !/^(dist\/\w+\.(js|d\.ts)|package\.json|README\.md|LICENSE)$/.test(path));
  assert.deepEqual(strange, []);
  for (const path of ["dist/index.js", "dist/index.d.ts", "README.md", "LICENSE"]) assert.ok(files.includes(path), path);
  const { dependencies, peerDependencies } = JSON.parse(readFileSync(join(installed, "package.json"), "utf8"));
  assert.deepEqual([dependencies, peerDependencies], [undefined, undefined]);
});

test("all of it is smaller than 6 KB, minified and gzipped, and needs nothing of Node.js", async (t) => {
  const bundle = await build({
    stdin: { contents: 'export * from "@legato/client"', resolveDir: folder },
    bundle: true,
    minify: true,
    format: "esm",
    platform: "browser",
    target: "es2022",
    write: false,
  });
  const [file] = bundle.outputFiles;
  const size = gzipSync(file!.contents, { level: 9 }).length;
  t.diagnostic(`${file!.contents.length} bytes minified, ${size} bytes gzipped`);
  assert.ok(size < MOST_BYTES, `${size} bytes`);
  assert.doesNotMatch(file!.text, /\b(require|process|Buffer)\b/);
});

test("it is imported as a module", () => {
  const script = 'import { Legato, FrameReader } from "@legato/client"; console.log(typeof Legato, typeof FrameReader)';
  assert.equal(execFileSync("node", ["--input-type=module", "-e", script], { cwd: folder, encoding: "utf8" }), "function function\n");
});

/** The TypeScript of a page, each block a module of its own. */
const blocks = (page: string): string[] =>
  [...readFileSync(join(HERE, page), "utf8").matchAll(/^```ts\n(.*?)^```$/gms)].map(([, code]) => code!);

test("the first example of the README runs against the real server, as it stands there", async (t) => {
  const [example] = blocks("README.md");
  const url = await legatoDev(t);
  writeFileSync(join(folder, "example.ts"), example!.replace("http://127.0.0.1:8700", url));
  const tsx = createRequire(import.meta.url).resolve("tsx");
  const { stdout } = await promisify(execFile)("node", ["--import", tsx, "example.ts"], { cwd: folder });
  assert.match(stdout, /\w+ \w+ \w+[^]*\ncompleted\n$/, "text, then how it ended");
});

const PAGES = ["README.md", "../../docs/how-to/web-client.md"];
const compilers = [
  ["TypeScript 7", "typescript", "nodenext", "nodenext"],
  ["TypeScript 5.9", "typescript-5", "esnext", "bundler"],
] as const;
for (const [name, compiler, module, moduleResolution] of compilers) {
  test(`types, and the examples of the documents, hold for ${name} with the resolution ${moduleResolution}, strictly, and say no where they must`, () => {
    mkdirSync(join(folder, "src"), { recursive: true });
    cpSync(join(HERE, "test/packed"), join(folder, "src"), { recursive: true });
    PAGES.flatMap(blocks).forEach((code, i) => writeFileSync(join(folder, `src/documented-${i}.ts`), `${code}\nexport {};\n`));
    const compilerOptions = {
      module, moduleResolution, target: "es2022", lib: ["es2022", "dom", "dom.iterable"], types: [],
      strict: true, exactOptionalPropertyTypes: true, skipLibCheck: false, noEmit: true,
    };
    writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, include: ["src"] }));
    const root = dirname(createRequire(import.meta.url).resolve(`${compiler}/package.json`));
    const { bin } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
    try {
      execFileSync("node", [join(root, bin.tsc), "-p", folder], { encoding: "utf8" });
    } catch (error) {
      assert.fail((error as { stdout: string }).stdout);
    }
  });
}
