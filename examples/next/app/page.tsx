import { Legato } from "@legato/client";
import { Answer } from "./Answer";

/** `/?id=gen_…` renders that answer on the server as far as it is, and the page goes on from there. */
export default async function Page({ searchParams }: { searchParams: Promise<{ id?: string }> }) {
  const { id } = await searchParams;
  const legato = new Legato({ url: process.env.LEGATO_URL ?? "http://127.0.0.1:8700" });
  const initial = id ? await legato.get(id, { giveUpMs: 0 }).catch(() => undefined) : undefined;
  return <Answer initial={initial} />;
}
