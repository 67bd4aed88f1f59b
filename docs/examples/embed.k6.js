// Load on Ferry's embeddings with k6 (https://k6.io), over HTTP and over gRPC.
//
//   k6 run docs/examples/embed.k6.js
//   k6 run -e FERRY=https://ferry.example:8000 -e FERRY_API_KEY=… -e RATE=200 docs/examples/embed.k6.js
//
// Open loop: requests come at RATE a second whether or not the last ones are answered, so that waiting
// shows in the latencies.

import { check } from "k6";
import http from "k6/http";
import grpc from "k6/net/grpc";

const url = __ENV.FERRY || "http://localhost:8000";
const address = __ENV.FERRY_GRPC || "localhost:8001";
const model = __ENV.MODEL || "minilm";
const rate = Number(__ENV.RATE || 50);
const key = __ENV.FERRY_API_KEY;
const texts = [
  "A ferry crosses the river.",
  "The bond market fell for the third day in a row.",
  "How long does a batch wait before it leaves?",
];

const arrivals = { executor: "constant-arrival-rate", rate, timeUnit: "1s", duration: "30s", preAllocatedVUs: 64 };
export const options = {
  scenarios: {
    http: { ...arrivals, exec: "overHttp" },
    grpc: { ...arrivals, exec: "overGrpc", startTime: "35s" },
  },
  thresholds: { http_req_failed: ["rate<0.001"], grpc_req_duration: ["p(99)<1000"] },
};

export function overHttp() {
  const input = texts[__ITER % texts.length];
  const headers = { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const answer = http.post(`${url}/v1/embeddings`, JSON.stringify({ model, input }), { headers });
  check(answer, { "200": ({ status }) => status === 200 });
}

const client = new grpc.Client();
let connected = false;

export function overGrpc() {
  if (!connected) {
    // By reflection: no proto files are needed.
    client.connect(address, { plaintext: true, reflect: true });
    connected = true;
  }
  const metadata = key ? { authorization: `Bearer ${key}` } : {};
  const request = { options: { model }, texts: [texts[__ITER % texts.length]] };
  const answer = client.invoke("ferry.v1.Inference/Embed", request, { metadata });
  check(answer, { OK: ({ status }) => status === grpc.StatusOK });
}
