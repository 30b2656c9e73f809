import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// In development the page and the API have one origin: Vite passes /api/legato on to `legato dev`.
const proxy = {
  "/api/legato": {
    target: process.env["LEGATO_URL"] ?? "http://127.0.0.1:8700",
    rewrite: (path: string) => path.replace(/^\/api\/legato/, ""),
  },
};

export default defineConfig({
  plugins: [react()],
  // The packages are linked from this repository: all of them must have the React of this app.
  resolve: { dedupe: ["react", "react-dom", "@legato/client"] },
  server: { proxy },
  preview: { proxy },
});
