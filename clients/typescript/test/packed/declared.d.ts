// What the examples of the documents take as given.
declare module "react-native" {
  export const AppState: { addEventListener(type: "change", on: (state: string) => void): { remove(): void } };
}
declare const legato: import("@legato/client").Legato;
declare const id: string;
