// A server behind TLS that speaks HTTP/1.1 and HTTP/2 and tells how often it was asked, over how many connections.
import { readFileSync } from "node:fs";
import { createSecureServer } from "node:http2";

const [key, cert] = process.argv.slice(2).map((path) => readFileSync(path));
let requests = 0;
let connections = 0;

const server = createSecureServer({ key, cert, allowHTTP1: true }, (request, response) => {
  requests += 1;
  let length = 0;
  request.on("data", (piece) => {
    length += piece.length;
  });
  request.on("end", () => {
    response.setHeader("x-requests", requests);
    response.setHeader("x-connections", connections);
    response.setHeader("x-protocol", request.httpVersion);
    response.setHeader("x-received", length);
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
