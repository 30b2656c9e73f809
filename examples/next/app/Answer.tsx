"use client";

import { Legato, type Generation } from "@legato/client";
import { LiveRegion, useGeneration } from "@legato/react";

const legato = new Legato({ url: "/api/legato" });

export function Answer({ initial }: { initial: Generation | undefined }) {
  const answer = useGeneration(legato, { initial });
  const ask = async () => {
    const id = await answer.submit({
      provider: "sim",
      model: "sim",
      messages: [{ role: "user", content: "Say something." }],
      provider_options: { tokens: 300, tokens_per_second: 25 },
    });
    if (id) history.replaceState(null, "", `/?id=${id}`); // a reload, or another device, goes on with it
  };
  return (
    <main>
      <button onClick={ask} disabled={answer.running}>Ask</button>{" "}
      <button onClick={() => void answer.stop()} disabled={!answer.running}>Stop</button>{" "}
      <span>{answer.reconnecting ? "reconnecting …" : answer.status}</span>
      {answer.problem && <button onClick={answer.retry}>{answer.problem.message}: try again</button>}
      <p style={{ whiteSpace: "pre-wrap" }}>{answer.loading ? "…" : answer.text}</p>
      <LiveRegion generation={answer} />
    </main>
  );
}
