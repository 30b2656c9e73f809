// A page in this process, with React in it.

import { JSDOM } from 'jsdom';

import { pause } from './legato.mjs';

/** Makes the page; what looks for a window finds it until `close`. */
export async function openPage() {
  const dom = new JSDOM('<!doctype html><div id="root"></div>', { pretendToBeVisual: true, url: 'http://localhost/' });
  const { document } = dom.window;
  const names = ['window', 'document', 'navigator', 'HTMLElement', 'Node'];
  const before = names.map(name => Object.getOwnPropertyDescriptor(globalThis, name));
  for (const name of names) {
    Object.defineProperty(globalThis, name, { value: name === 'window' ? dom.window : dom.window[name], configurable: true });
  }
  const { createElement } = await import('react');
  const { createRoot } = await import('react-dom/client');
  let root;
  const page = {
    /** Renders something in place of what is there. */
    render(element) {
      root = createRoot(document.getElementById('root'));
      root.render(element);
    },
    /** Renders a component that only calls `hook`; `current` is what it gave last. */
    mount(hook) {
      const shown = { current: undefined };
      const Page = () => {
        shown.current = hook();
        return null;
      };
      page.render(createElement(Page));
      return shown;
    },
    find: selector => document.querySelector(selector),
    button: label => [...document.querySelectorAll('button')].find(button => button.textContent === label),
    show: () => document.dispatchEvent(new dom.window.Event('visibilitychange')),
    async unmount() {
      root.unmount();
      await pause(20);
    },
    async close() {
      root?.unmount();
      await pause(50); // what React still does then looks at the window
      dom.window.close();
      names.forEach((name, at) => (before[at] ? Object.defineProperty(globalThis, name, before[at]) : delete globalThis[name]));
    },
  };
  return page;
}
