import assert from "node:assert/strict";
import { test } from "node:test";
import { micromark } from "micromark";
import { gfm, gfmHtml } from "micromark-extension-gfm";
import { closeMarkdown } from "../src/index.js";

/** What is seen of Markdown: each character that is no space, with how it looks. */
function seen(markdown: string): string[] {
  const html = micromark(markdown, { extensions: [gfm()], htmlExtensions: [gfmHtml()], allowDangerousHtml: true });
  const looks: string[] = [];
  const characters: string[] = [];
  for (const [token, tag] of html.matchAll(/<(\/?(?:strong|em|code|del|pre)\b)[^>]*>|<[^>]*>|&\w+;|[^]/gu)) {
    if (tag?.startsWith("/")) looks.splice(looks.lastIndexOf(tag.slice(1)), 1);
    else if (tag) looks.push(tag);
    else if (!token.startsWith("<") && token.trim()) characters.push(`${token} ${[...looks].sort().join(",")}`);
  }
  return characters;
}

const beginnings = (text: string): string[] => [...text].map((_, i, all) => all.slice(0, i + 1).join(""));

const whole: Record<string, string> = {
  "emphasis": "Plain, *one*, **two**, ***three***, **two with *one* in it**, *one with **two***, and a_snake_case_name.",
  "underscores": "An _em_, a __strong__, `code_with_*stars*` and 2 * 3 * 4 = 24.",
  "code spans": "Use `x`, ``a ` b``, and `**not bold**` here.",
  "fenced code": "Before:\n\n```python\ndef f(a):\n    return a ** 2  # `x`\n\nprint(f(2))\n```\n\nAfter **it**.",
  "a longer fence around a shorter one": "````md\n```js\n1\n```\n````\nDone.",
  "tildes": "~~~\ncode\n~~~\n\nText ~~gone~~ here.",
  "code in a list": "1. First:\n   ```sh\n   ls *.md\n   ```\n2. Second **bold**.\n",
  "links": "See [the *docs*](https://example.com/a_(b)?c=1 \"Title\") and <https://a.example/x>.",
  "images": "An image ![alt **text**](https://example.com/i.png) in text!\n\nNew.",
  "lists": "- one **bold**\n- two\n  - nested *em*\n\n* three\n* four\n\n1. a\n2. b\n",
  "tasks": "- [x] done **well**\n- [ ] open\n",
  "headings": "# One *em*\n\nText.\n\n## Two\n\nMore **text**.\n",
  "quotes": "> Quoted **bold**\n> and more\n\nAfter.",
  "html": "Some <b>bold</b> and <br/> break, 1 < 2.",
  "escapes": "Not \\*em\\*, not \\[link\\], a backslash \\\\ and **yes**.",
  "unicode": "Ein **größerer** Text, *日本* 🦊 und **fett**.",
  "paragraphs": "A * lonely star\n\nB **bold** again.\n\nC `code`.\n",
  "brackets that are no links": "An array[0] and [not a link] and (parens) [x]: no.\n",
};

for (const [name, markdown] of Object.entries(whole)) {
  test(`nothing flickers: every beginning looks like the beginning of the whole: ${name}`, () => {
    const all = seen(markdown);
    for (const beginning of beginnings(markdown)) {
      const closed = closeMarkdown(beginning);
      const now = seen(closed);
      assert.deepEqual(now, all.slice(0, now.length), `${JSON.stringify(beginning)} became ${JSON.stringify(closed)}`);
    }
  });

  test(`whole Markdown comes back as it went in: ${name}`, () => {
    const ended = `${markdown.trimEnd()}\n\n`;
    assert.equal(closeMarkdown(ended), ended);
  });
}

test("a text that has ended is left as it is", () => {
  for (const text of ["Wow!", "half **bold", "1.", "a [", "```"]) assert.equal(closeMarkdown(text, false), text);
});

test("closing twice looks like closing once", () => {
  for (const markdown of Object.values(whole)) {
    for (const beginning of beginnings(markdown)) {
      const closed = closeMarkdown(beginning);
      assert.equal(seen(closeMarkdown(closed)).join(""), seen(closed).join(""), JSON.stringify(beginning));
    }
  }
});

test("what cannot be Markdown is taken as it comes, and nothing takes for ever", () => {
  for (const hostile of ["*".repeat(50_000), "[".repeat(20_000), "`".repeat(50_000), "`a``b```".repeat(3000), "_a ".repeat(20_000), "<".repeat(20_000), "![".repeat(9000)]) {
    const since = performance.now();
    closeMarkdown(hostile);
    assert.ok(performance.now() - since < 2000, `${hostile.slice(0, 8)}… took ${performance.now() - since} ms`);
  }
});
