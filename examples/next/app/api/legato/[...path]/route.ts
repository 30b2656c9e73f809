/**
 * Passes the API on, so that the page needs no address and no key of Legato's: who may ask what is decided here.
 *
 * A cut must stay a cut: the answer's body is passed on as it comes, and where Legato's connection breaks, so does this one
 * (docs/protocol.md, section 8). The page's own leaving ends the request to Legato by the signal.
 */
export const dynamic = "force-dynamic";

const LEGATO = process.env.LEGATO_URL ?? "http://127.0.0.1:8700";
/** Nothing else goes through in either direction. */
const ASKED = ["accept", "content-type", "idempotency-key", "last-event-id"];
const ANSWERED = ["cache-control", "content-type", "idempotent-replayed", "retry-after", "x-accel-buffering"];

const only = (headers: Headers, names: string[]): Headers => new Headers([...headers].filter(([name]) => names.includes(name)));

async function pass(request: Request, { params }: { params: Promise<{ path: string[] }> }): Promise<Response> {
  const { path } = await params;
  if (path[0] !== "v1") return new Response(null, { status: 404 });
  const headers = only(request.headers, ASKED);
  if (process.env.LEGATO_KEY) headers.set("authorization", `Bearer ${process.env.LEGATO_KEY}`);
  const url = `${LEGATO}/${path.map(encodeURIComponent).join("/")}${new URL(request.url).search}`;
  try {
    const body = request.method === "GET" || request.method === "HEAD" ? undefined : await request.arrayBuffer();
    const answer = await fetch(url, { method: request.method, headers, body, signal: request.signal, redirect: "manual", cache: "no-store" });
    return new Response(answer.body, { status: answer.status, headers: only(answer.headers, ANSWERED) });
  } catch {
    return new Response(null, { status: 503, headers: { "Retry-After": "1" } });
  }
}

export { pass as GET, pass as POST, pass as DELETE };
