/**
 * Moments at which a connection may be dead without anybody having said so: the page is seen again, comes back from the
 * cache of the browser, or the network is there again. And the moments to put things away.
 */

/** `online`: the network changed, so whatever was open is not. `visible`: it may be. `hidden`: the page may never come back. */
export type Wake = "online" | "visible" | "hidden";

/** Calls `notify` until the returned function is called. */
export type WakeSource = (notify: (wake: Wake) => void) => () => void;

/** What a browser's page, or a worker, tells. Elsewhere it tells nothing. */
export const pageWakes: WakeSource = (notify) => {
  const page = globalThis as Partial<Window & typeof globalThis>;
  const online = () => notify("online");
  const shown = () => notify("visible");
  const hidden = () => notify("hidden");
  const changed = () => notify(page.document?.visibilityState === "hidden" ? "hidden" : "visible");
  const listen: [EventTarget | undefined, string, () => void][] = [
    [page.document, "visibilitychange", changed],
    [page.document, "resume", shown], // a frozen tab thaws
    [page as EventTarget, "pageshow", shown],
    [page as EventTarget, "pagehide", hidden],
    [page as EventTarget, "online", online],
  ];
  for (const [target, name, on] of listen) target?.addEventListener?.(name, on);
  return () => {
    for (const [target, name, on] of listen) target?.removeEventListener?.(name, on);
  };
};
