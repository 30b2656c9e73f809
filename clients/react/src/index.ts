export { byFrames, type Schedule } from "./frames.js";
export { LiveRegion, type Words } from "./LiveRegion.js";
export { closeMarkdown } from "./markdown.js";
export { sayable } from "./sentences.js";
export { GenerationStore, type StoreOptions, type View } from "./store.js";
export { useGeneration, useThread, type UseGeneration } from "./useGeneration.js";
