// Runs the emulator on one loopback port: `serve.mjs PORT`, or `serve.mjs --version`.
import { readFileSync } from "node:fs";

if (process.argv[2] === "--version") {
  const path = new URL("node_modules/@firestore-emulator/server/package.json", import.meta.url);
  console.log(JSON.parse(readFileSync(path, "utf8")).version);
  process.exit(0);
}

const { ServerCredentials } = await import("@grpc/grpc-js");
const { FirestoreServer } = await import("@firestore-emulator/server");

// Its own `start` listens on all addresses.
const { server } = new FirestoreServer();
server.bindAsync(`127.0.0.1:${process.argv[2]}`, ServerCredentials.createInsecure(), (error, port) => {
  if (error) {
    console.error(String(error));
    process.exit(1);
  }
  console.log(`listening on ${port}`);
});

for (const signal of ["SIGTERM", "SIGINT"]) {
  process.on(signal, () => {
    server.forceShutdown();
    process.exit(0);
  });
}
