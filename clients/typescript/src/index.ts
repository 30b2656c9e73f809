export { FrameReader, type Frame } from "./sse.js";
