/** What is published, from the tarball that would be, and the example of the README against it. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const HERE = join(import.meta.dirname, "..");
const MODULES = join(HERE, "../node_modules");

const folder = mkdtempSync(join(tmpdir(), "legato-packed-"));
after(() => rmSync(folder, { recursive: true, force: true }));
for (const [name, source] of [["react", HERE], ["client", join(HERE, "../typescript")]] as const) {
  const [packed] = JSON.parse(execFileSync("npm", ["pack", "--json", "--pack-destination", folder], { cwd: source, encoding: "utf8" }));
  const target = join(folder, "node_modules/@legato", name);
  mkdirSync(target, { recursive: true });
  execFileSync("tar", ["-xzf", join(folder, packed.filename), "-C", target, "--strip-components=1"]);
}
for (const name of ["react", "react-dom", "react-markdown", "@types"]) symlinkSync(join(MODULES, name), join(folder, "node_modules", name));

test("the tarball brings no copy of React or of the client, and its hooks are marked for the page", async (t) => {
  const { dependencies, peerDependencies } = JSON.parse(readFileSync(join(folder, "node_modules/@legato/react/package.json"), "utf8"));
  assert.deepEqual([dependencies, Object.keys(peerDependencies)], [undefined, ["@legato/client", "react"]]);
  for (const module of ["useGeneration", "LiveRegion"]) {
    assert.match(readFileSync(join(folder, `node_modules/@legato/react/dist/${module}.js`), "utf8"), /^"use client"/, module);
  }
  const bundle = await build({
    stdin: { contents: 'export * from "@legato/react"', resolveDir: folder },
    bundle: true, minify: true, format: "esm", target: "es2022", write: false,
    external: ["react", "@legato/client"],
  });
  const size = gzipSync(bundle.outputFiles[0]!.contents, { level: 9 }).length;
  t.diagnostic(`${size} bytes minified and gzipped, without React and @legato/client`);
  assert.ok(size < 6 * 1024, `${size} bytes`);
});

test("the example of the README holds for its types, strictly", () => {
  const [, example] = /^```tsx\n([^]*?)^```$/m.exec(readFileSync(join(HERE, "README.md"), "utf8"))!;
  writeFileSync(join(folder, "example.tsx"), example!);
  writeFileSync(join(folder, "package.json"), '{"type": "module"}');
  const compilerOptions = {
    module: "esnext", moduleResolution: "bundler", target: "es2022", lib: ["es2022", "dom", "dom.iterable"], jsx: "react-jsx",
    strict: true, exactOptionalPropertyTypes: true, skipLibCheck: false, noEmit: true, types: [],
  };
  writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, files: ["example.tsx"] }));
  const root = dirname(createRequire(import.meta.url).resolve("typescript/package.json"));
  try {
    execFileSync("node", [join(root, "bin/tsc"), "-p", folder], { encoding: "utf8" });
  } catch (error) {
    assert.fail((error as { stdout: string }).stdout);
  }
});
