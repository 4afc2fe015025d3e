// A server behind TLS that speaks HTTP/1.1 and HTTP/2 and tells how often it was asked, over how many connections, and
// for what name. With a third argument, an authority, it asks clients for a certificate and tells whose came.
import { readFileSync } from "node:fs";
import { createSecureServer } from "node:http2";

const [key, cert, ca] = process.argv.slice(2).map((path) => readFileSync(path));
const clients = ca && { ca, requestCert: true, rejectUnauthorized: false };
let requests = 0;
let connections = 0;

const server = createSecureServer({ key, cert, ...clients, allowHTTP1: true }, (request, response) => {
  requests += 1;
  const { authorized, servername } = request.socket;
  let length = 0;
  request.on("data", (piece) => {
    length += piece.length;
  });
  request.on("end", () => {
    response.setHeader("x-requests", requests);
    response.setHeader("x-connections", connections);
    response.setHeader("x-protocol", request.httpVersion);
    response.setHeader("x-received", length);
    response.setHeader("x-server-name", servername || "none");
    response.setHeader("x-client", authorized ? request.socket.getPeerCertificate().subject.CN : "none");
    const status = Number(new URL(request.url, "http://a").searchParams.get("status") ?? 200);
    if (status === 204 || status === 304) {
      response.writeHead(status).end();
      return;
    }
    response.setHeader("content-type", "text/up");
    response.writeHead(status);
    if (request.method === "HEAD") {
      response.end();
      return;
    }
    response.write("from the ");
    response.addTrailers({ "x-trailer": "at the end" });
    response.end("upstream");
  });
});
server.on("secureConnection", () => {
  connections += 1;
});
server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: server.address().port })));
