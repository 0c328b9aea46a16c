// Receive alerts with Node alone: node:https and node:crypto, no package.
//
//     node examples/receiver.mjs CERTIFICATE_FOLDER SECRET_FILE [PORT]
//
// The arguments are those of receiver_python.py. The check is Standard Webhooks 1.0, so a library of that name does
// as well; this shows all that it takes.
import { createHmac, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:https";

const TOLERANCE_SECONDS = 300;
const BODY_BYTES_MAX = 1_048_576;
const IDS_KEPT_MAX = 100_000;

const [folder, secretFile, port = "8443"] = process.argv.slice(2);
const keys = readFileSync(secretFile, "utf8").split(/\s+/).filter(Boolean).map(keyOf);
const seen = new Set();

function keyOf(secret) {
  return secret.startsWith("whsec_") ? Buffer.from(secret.slice(6), "base64") : Buffer.from(secret, "utf8");
}

// The signature covers id, time and body; the body as the octets that came, not as parsed and written again.
function isOurs(headers, body) {
  const id = headers["webhook-id"];
  const timestamp = headers["webhook-timestamp"];
  const signatures = headers["webhook-signature"];
  if (!id || !signatures || !/^\d{1,12}$/.test(timestamp ?? "")) return false;
  if (Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE_SECONDS) return false;
  const signed = Buffer.concat([Buffer.from(`${id}.${timestamp}.`), body]);
  const offered = signatures.split(" ").filter((one) => one.startsWith("v1,"));
  return keys.some((key) => {
    const right = createHmac("sha256", key).update(signed).digest();
    return offered.some((one) => {
      const digest = Buffer.from(one.slice(3), "base64");
      return digest.length === right.length && timingSafeEqual(digest, right);
    });
  });
}

function isNew(id) {
  if (seen.has(id)) return false;
  seen.add(id);
  if (seen.size > IDS_KEPT_MAX) seen.delete(seen.values().next().value);
  return true;
}

function receive(request, response) {
  const pieces = [];
  let size = 0;
  request.on("data", (piece) => {
    size += piece.length;
    if (size > BODY_BYTES_MAX) request.destroy();
    else pieces.push(piece);
  });
  request.on("end", () => {
    const body = Buffer.concat(pieces);
    if (request.method !== "POST" || !isOurs(request.headers, body)) {
      console.log("refused");
      response.writeHead(401).end();
      return;
    }
    // A repeat is answered like the first: what the sender wants to know is that we have it.
    const id = request.headers["webhook-id"];
    if (isNew(id)) console.log(`alert ${id} ${body}`);
    response.writeHead(204).end();
  });
}

const tls = { cert: readFileSync(`${folder}/cert.pem`), key: readFileSync(`${folder}/key.pem`) };
const server = createServer(tls, receive);
server.keepAliveTimeout = 75_000; // a kept connection saves the sender a TLS handshake an alert
server.listen(Number(port), "127.0.0.1", () => {
  console.log(`listening on https://127.0.0.1:${server.address().port}`);
});
