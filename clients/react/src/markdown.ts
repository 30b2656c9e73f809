/**
 * Half-written Markdown, made renderable: what is open is closed, and what is not yet clear (half a link, a marker at the very
 * end) is left out until it is. So nothing flickers: what is rendered of a beginning is the beginning of what will be
 * rendered of the whole. Pure, and linear in the length of the text.
 *
 * It knows fenced code, code spans, emphasis, strike-through, links, images, autolinks, HTML tags and the underlines of
 * headings. What cannot be known stays open: an address that is defined further down, a star that nothing will close.
 *
 * With `running` false the text is whole and comes back as it is.
 */
export function closeMarkdown(text: string, running = true): string {
  if (!running) return text;
  const open = openFence(text);
  if (open) return closeFence(text, open);
  const start = lastBlock(text);
  return text.slice(0, start) + closeInline(closeLine(text.slice(start)));
}

interface Fence {
  /** What stands before the fence: indentation, list markers, quotes. */
  readonly prefix: string;
  readonly marker: string;
  /** Where the code begins. */
  readonly from: number;
}

const OPENING = /^((?:[ \t]{0,3}(?:>|[-*+]|\d{1,9}[.)])[ \t]?)*[ \t]*)(`{3,}(?=[^`]*$)|~{3,})/;

function openFence(text: string): Fence | undefined {
  let fence: Fence | undefined;
  let at = 0;
  for (const line of text.split("\n")) {
    const next = at + line.length + 1;
    if (fence) {
      const bare = line.replace(/^[ \t>]*/, "").trimEnd();
      const { marker } = fence;
      if (bare.length >= marker.length && bare === marker[0]!.repeat(bare.length)) fence = undefined;
    } else {
      const match = OPENING.exec(line);
      if (match) fence = { prefix: match[1]!, marker: match[2]!, from: next };
    }
    at = next;
  }
  return fence;
}

function closeFence(text: string, { prefix, marker, from }: Fence): string {
  const within = prefix.replace(/[-*+]|\d{1,9}[.)]/g, (list) => " ".repeat(list.length));
  if (from > text.length) return `${text}\n${within}${marker}`; // in the line of the fence itself
  // The last line may be the beginning of the closing fence.
  const line = text.lastIndexOf("\n") + 1;
  const bare = text.slice(line).replace(/^[ \t>]*/, "");
  const closing = bare !== "" && bare.length <= marker.length && bare === marker[0]!.repeat(bare.length);
  const code = closing ? text.slice(0, line) : text.endsWith("\n") ? text : `${text}\n`;
  return `${code}${within}${marker}`;
}

/** Where the last paragraph, item or heading begins: nothing inline is open beyond it. */
function lastBlock(text: string): number {
  let start = 0;
  for (const match of text.matchAll(/\n[ \t>]*(?=\n)|\n(?=[ \t>]*(?:[-*+][ \t]|\d{1,9}[.)][ \t]|#{1,6}[ \t]|>))/g)) {
    start = match.index + match[0].length;
  }
  return start;
}

/** A last line of which it is not clear yet what it is: an underline, a rule, a fence, a marker of a list. */
function closeLine(block: string): string {
  const line = block.lastIndexOf("\n") + 1;
  const last = block.slice(line);
  const unclear = /^[ \t>]*(?:[-=]+|[*_]{1,2}|`{1,2}|~{1,2}|#{1,6}|(?:[-*+]|\d{1,9}[.)]?)(?:[ \t]+\[[ xX]?\]?)?)[ \t]*$/;
  return unclear.test(last) ? block.slice(0, line) : block;
}

/** Characters that may be held back until it is clear whether they are a link. */
const MOST_HELD = 100;
/** Emphasis in emphasis, at most; what is open for longer is not closed. */
const MOST_OPEN = 50;

const WORD = /[\p{L}\p{N}]/u;
const PUNCTUATION = /[\p{P}\p{S}]/u;

interface Open {
  readonly marker: string;
  readonly at: number;
}

/** Close code spans and emphasis of one block; drop what is half there at its end. */
function closeInline(block: string): string {
  const open: Open[] = []; // emphasis
  const brackets: number[] = [];
  let at = 0;
  while (at < block.length) {
    const c = block[at]!;
    if (c === "\\") {
      if (at + 1 === block.length) return close(block, at, open);
      at += 2;
    } else if (c === "`") {
      const run = runOf(block, at);
      const end = closingRun(block, at + run, run);
      if (end < 0) return close(closeCode(block, at, run), undefined, open);
      at = end;
    } else if (c === "*" || c === "_" || c === "~") {
      const run = runOf(block, at);
      emphasis(block, at, run, open);
      at += run;
    } else if (c === "[") {
      brackets.push(at++);
    } else if (c === "]" && brackets.length > 0) {
      const from = brackets.pop()!;
      const end = afterLink(block, at + 1);
      if (end === undefined) return withoutLink(block, from, at, open);
      at = end;
    } else if (c === "<") {
      if (/^<(?:[a-zA-Z/!?][^<>]*)?$/.test(block.slice(at))) return close(block, at, open); // half a tag
      at++;
    } else at++;
  }
  if (brackets.length > 0) return withoutLink(block, brackets[0]!, undefined, open);
  if (block.endsWith("!")) return close(block, block.length - 1, open); // maybe an image
  return close(block, undefined, open);
}

/** Of a code span that is open: its end, without a closing run that is half there. */
function closeCode(block: string, at: number, run: number): string {
  const from = at + run;
  let end = block.length;
  while (end > from && block[end - 1] === "`") end--;
  const rest = block.slice(from, end);
  if (!rest.trim()) return block.slice(0, at);
  // A backtick that belongs to the code must not touch the closing run.
  const within = rest.trimEnd().endsWith("`") ? `${rest.trimEnd()} ` : rest;
  return block.slice(0, from) + within + "`".repeat(run);
}

/** Behind `](…)` or `][…]`: where it ends, or undefined as long as that is not there. `at` is behind the bracket. */
function afterLink(block: string, at: number): number | undefined {
  if (at === block.length) return undefined; // `(` or `[` may come
  const [opening, closing] = block[at] === "(" ? "()" : block[at] === "[" ? "[]" : "";
  if (!opening) return at;
  let depth = 0;
  for (let i = at; i < block.length && i - at < MOST_HELD * 40; i++) {
    if (block[i] === "\\") i++;
    else if (block[i] === opening) depth++;
    else if (block[i] === closing && --depth === 0) return i + 1;
  }
  return block.length - at < MOST_HELD * 40 ? undefined : at;
}

/**
 * A link that is half there. Of one whose address is coming the text stays, as plain text; before that it is not sure that
 * it is a link at all, and it is held back, but never for long. Of an image nothing stays.
 */
function withoutLink(block: string, from: number, to: number | undefined, open: Open[]): string {
  const image = block[from - 1] === "!";
  const start = image ? from - 1 : from;
  const before = open.filter((it) => it.at < start);
  if (to !== undefined && to + 1 < block.length && block[to + 1] === "(") {
    return image ? close(block, start, before) : closeInline(block.slice(0, start) + block.slice(from + 1, to));
  }
  return block.length - from > MOST_HELD ? close(block, undefined, open) : close(block, start, before);
}

function runOf(block: string, at: number): number {
  let end = at;
  while (block[end] === block[at]) end++;
  return end - at;
}

/** Where the code span that is closed by a run of exactly this length ends, or -1. */
function closingRun(block: string, from: number, run: number): number {
  for (let at = block.indexOf("`", from); at >= 0; at = block.indexOf("`", at)) {
    const length = runOf(block, at);
    at += length;
    if (length === run) return at;
  }
  return -1;
}

/** Opens or closes emphasis, by what stands on both sides of the run (CommonMark's flanking). */
function emphasis(block: string, at: number, run: number, open: Open[]): void {
  const c = block[at]!;
  const before = block[at - 1] ?? " ";
  const after = block[at + run] ?? " ";
  const left = !/\s/.test(after) && (!PUNCTUATION.test(after) || /\s/.test(before) || PUNCTUATION.test(before));
  const right = !/\s/.test(before) && (!PUNCTUATION.test(before) || /\s/.test(after) || PUNCTUATION.test(after));
  const within = WORD.test(before) && WORD.test(after);
  const mayOpen = left && !(c === "_" && within);
  const mayClose = right && !(c === "_" && within);
  if (c === "~" && run > 2) return;
  let rest = run;
  while (mayClose && rest > 0) {
    const index = open.findLastIndex((it) => it.marker[0] === c);
    const opener = open[index];
    if (!opener) break;
    const used = Math.min(rest, opener.marker.length);
    if (c === "~" && used !== opener.marker.length) break;
    open.length = index;
    if (opener.marker.length > used) open.push({ marker: opener.marker.slice(used), at: opener.at });
    rest -= used;
  }
  if (open.length > MOST_OPEN) open.shift();
  if (mayOpen && rest > 0) open.push({ marker: c.repeat(rest), at });
  // At the very end a run opens nothing yet, and is no text either.
  else if (at + run === block.length && rest > 0 && !mayClose) open.push({ marker: c.repeat(rest), at });
}

/** The block up to `end`, with what is open closed, the innermost first. */
function close(block: string, end: number | undefined, open: readonly Open[]): string {
  let text = block.slice(0, end);
  const closers: string[] = [];
  for (const { marker, at } of [...open].reverse()) {
    if (at >= text.length) continue;
    const rest = text.slice(at + marker.length);
    if (rest.trim() === "") text = text.slice(0, at); // nothing in it yet
    else closers.push(marker);
  }
  if (closers.length === 0) return text;
  text = text.trimEnd();
  // The first of two closing tildes: unlike a star it says nothing alone.
  if (closers[0] === "~~" && text.endsWith("~") && !text.endsWith("~~")) text = text.slice(0, -1).trimEnd();
  return text + closers.join("");
}
