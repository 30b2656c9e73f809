"use client";
import { createElement, useEffect, useRef, useState, type CSSProperties, type ReactElement } from "react";
import { sayable, spoken } from "./sentences.js";
import type { UseGeneration } from "./useGeneration.js";

export interface Words {
  readonly reconnecting: string;
  readonly failed: string;
  readonly cancelled: string;
  /** What was said so far does not count any more. */
  readonly restarted: string;
}

const ENGLISH: Words = {
  reconnecting: "Connection lost. Reconnecting.",
  failed: "The answer failed.",
  cancelled: "The answer was stopped.",
  restarted: "The answer starts over.",
};

/** Between two announcements: a screen reader that is given more at once falls behind. */
const PAUSE_MS = 1000;
/** Older ones leave the page; they were said. */
const KEPT = 4;

const HIDDEN: CSSProperties = {
  position: "absolute",
  width: 1,
  height: 1,
  margin: -1,
  padding: 0,
  border: 0,
  overflow: "hidden",
  clipPath: "inset(50%)",
  whiteSpace: "nowrap",
};

/**
 * Reads an answer out while it is written, politely: in whole sentences, at most once a second, and never word by word. Show
 * the text itself outside of any live region.
 */
export function LiveRegion(props: {
  readonly generation: Pick<UseGeneration, "id" | "text" | "status" | "reconnecting" | "running">;
  readonly words?: Partial<Words>;
  readonly pauseMs?: number;
}): ReactElement {
  const { generation, pauseMs = PAUSE_MS } = props;
  const latest = useRef({ generation, words: ENGLISH });
  useEffect(() => {
    latest.current = { generation, words: { ...ENGLISH, ...props.words } };
  });
  // What is there already when this is mounted was there before, and is not read out.
  const said = useRef({ id: generation.id, text: generation.text, status: generation.status, lost: false, count: 0 });
  const [lines, setLines] = useState<readonly { key: number; line: string }[]>([]);

  useEffect(() => {
    const say = (line: string): void => {
      const key = ++said.current.count;
      const words = spoken(line);
      if (words) setLines((before) => [...before.slice(1 - KEPT), { key, line: words }]);
    };
    const look = (): void => {
      const { words } = latest.current;
      const { id, text, status, reconnecting, running } = latest.current.generation;
      const before = said.current;
      if (id !== before.id) said.current = { ...before, id, text: "", status: "idle", lost: false };
      else if (!text.startsWith(before.text)) {
        said.current = { ...before, text: "" };
        say(words.restarted);
      }
      const next = sayable(text, said.current.text.length, !running);
      said.current.text += next;
      say(next);
      if (reconnecting && !said.current.lost) say(words.reconnecting);
      said.current.lost = reconnecting;
      if (status !== said.current.status && (status === "failed" || status === "cancelled")) say(words[status]);
      said.current.status = status;
    };
    const timer = setInterval(look, pauseMs);
    return () => clearInterval(timer);
  }, [pauseMs]);

  return createElement(
    "div",
    { role: "log", "aria-live": "polite", "aria-relevant": "additions", style: HIDDEN },
    lines.map(({ key, line }) => createElement("p", { key }, line)),
  );
}
