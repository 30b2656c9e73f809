import { Legato } from "@legato/client";
import { closeMarkdown, LiveRegion, useGeneration } from "@legato/react";
import { useState, type FormEvent } from "react";
import Markdown from "react-markdown";

const legato = new Legato({ url: new URLSearchParams(location.search).get("api") ?? "/api/legato" });

/** What the simulated provider says: it needs no key. */
const TEXT = `# Nothing twice, nothing missing

A stream may be **cut** at any byte. The reader comes back with the *last id* it has, and gets exactly what is behind it:

\`\`\`http
GET /v1/generations/gen_…/events HTTP/1.1
Last-Event-ID: 42-1
\`\`\`

1. Reload this page while the answer is written.
2. Put the browser offline, and online again.
3. Stop the server, and start it again.

What you read is the same text, as [the protocol](https://example.com/protocol) promises.
`;

export function Chat() {
  const [question, setQuestion] = useState("What is a resumable stream?");
  const answer = useGeneration(legato, { storage: sessionStorage, storageKey: "answer" });

  const ask = (event: FormEvent) => {
    event.preventDefault();
    void answer.submit({
      provider: "sim",
      model: "sim",
      messages: [{ role: "user", content: question }],
      provider_options: { text: TEXT, chunk_chars: 3, tokens_per_second: 40 },
    });
  };

  return (
    <main>
      <h1>Legato and React</h1>
      <form onSubmit={ask}>
        <label>
          Question <input value={question} onChange={(event) => setQuestion(event.target.value)} />
        </label>
        <button disabled={answer.running}>Ask</button>
        <button type="button" disabled={!answer.running} onClick={() => void answer.stop()}>
          Stop
        </button>
      </form>
      <p className="status">
        {answer.reconnecting ? "reconnecting …" : answer.status}
        {answer.problem && (
          <>
            {": "}
            {answer.problem.message} <button onClick={answer.retry}>Try again</button>
          </>
        )}
      </p>
      <article aria-busy={answer.running}>
        {answer.loading ? <p>…</p> : <Markdown>{closeMarkdown(answer.text, answer.running)}</Markdown>}
      </article>
      <LiveRegion generation={answer} />
    </main>
  );
}
