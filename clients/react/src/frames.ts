/** When to render: at most once a frame, and no more often than a reader can tell. */

/** Calls `flush` later, once; the returned function takes that back. */
export type Schedule = (flush: () => void) => () => void;

/** Text that grows faster than this looks the same, and on a screen of 120 Hz costs twice. */
const LEAST_MS = 24;
/** A hidden page has no frames. */
const HIDDEN_MS = 250;

/** A schedule of the page's frames. */
export function byFrames(): Schedule {
  let last = -Infinity;
  return (flush) => {
    if (typeof requestAnimationFrame !== "function" || globalThis.document?.visibilityState === "hidden") {
      const timer = setTimeout(flush, HIDDEN_MS);
      return () => clearTimeout(timer);
    }
    const frame = (now: number): void => {
      if (now - last < LEAST_MS) {
        asked = requestAnimationFrame(frame);
        return;
      }
      last = now;
      flush();
    };
    let asked = requestAnimationFrame(frame);
    return () => cancelAnimationFrame(asked);
  };
}
