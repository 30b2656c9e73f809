import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { NextConfig } from "next";

const here = dirname(fileURLToPath(import.meta.url));

// The packages are linked from this repository, which is above this folder.
const config: NextConfig = {
  transpilePackages: ["@legato/client", "@legato/react"],
  turbopack: { root: join(here, "../..") },
  outputFileTracingRoot: join(here, "../.."),
};

export default config;
