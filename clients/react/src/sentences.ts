/**
 * What a screen reader should say of text that grows: whole sentences, each once. Pure.
 *
 * A sentence is whole when something follows it: the full stop of "3.14" and of an abbreviation that a token ends with
 * would else be read as an end.
 */

/** Text without an end of a sentence, such as code, is cut at a space once it is longer than this. */
const MOST_CHARACTERS = 400;

/** The part of `text` from `from` on that may be said now; all of it once `ended`. */
export function sayable(text: string, from: number, ended: boolean): string {
  const rest = text.slice(from);
  if (ended) return rest;
  let end = 0;
  for (const match of rest.matchAll(/[.!?…:]["'”’)\]*_]*\s+(?=\S)|[。！？]|\n+(?=[^\n])/g)) end = match.index + match[0].length;
  if (end === 0 && rest.length > MOST_CHARACTERS) end = rest.lastIndexOf(" ", MOST_CHARACTERS) + 1 || MOST_CHARACTERS;
  return rest.slice(0, end);
}

/** The same without the marks of Markdown, which nobody wants to hear. */
export function spoken(markdown: string): string {
  return markdown
    .replace(/!?\[([^\]]*)\]\([^)]*\)/g, "$1")
    .replace(/^[ \t]*(?:`{3,}.*|~{3,}.*|#{1,6}[ \t]+|>[ \t]?|[-*+][ \t]+)/gm, "")
    .replace(/\*+|`+|~~/g, "")
    .trim();
}
