/** A page with the hook: what it shows, how often it renders, and what keeps the page busy. */
import { Legato } from "@legato/client";
import { closeMarkdown, LiveRegion, useGeneration } from "@legato/react";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";

const query = new URLSearchParams(location.search);
const legato = new Legato({ url: query.get("api")! });
const seen = { renders: 0, firstAt: 0, lastAt: 0, longTasks: [] as number[], texts: [] as string[] };
Object.assign(window, { seen });
new PerformanceObserver((list) => seen.longTasks.push(...list.getEntries().map((entry) => entry.duration))).observe({ type: "longtask" });

function Answer() {
  const id = query.get("id");
  const answer = useGeneration(legato, { ...(id && { id }), storage: sessionStorage, storageKey: "answer" });
  seen.renders++;
  if (answer.text) seen.firstAt ||= performance.now();
  seen.lastAt = performance.now();
  if (seen.texts.length < 3) seen.texts.push(answer.text);
  return (
    <main style={{ font: "16px/1.5 system-ui, sans-serif", maxWidth: 720, margin: "24px auto", padding: "0 16px" }}>
      <header style={{ display: "flex", gap: 12, alignItems: "center", borderBottom: "1px solid #ccc", paddingBottom: 8 }}>
        <strong>Answer</strong>
        <span id="status">{answer.status}</span>
        {answer.reconnecting && <em id="reconnecting">Reconnecting …</em>}
        {answer.running && <button onClick={answer.stop}>Stop</button>}
        {answer.problem && <button onClick={answer.retry}>Try again</button>}
      </header>
      {answer.loading ? <p>…</p> : <p id="text" style={{ whiteSpace: "pre-wrap" }}>{closeMarkdown(answer.text, answer.running)}</p>}
      <LiveRegion generation={answer} />
    </main>
  );
}

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <Answer />
  </StrictMode>,
);
