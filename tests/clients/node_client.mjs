// A critique and a comparison for a program in another language, from the .proto files alone.
//
// usage: node node_client.mjs PROTOS_FOLDER CRITIC_ADDRESS JUDGE_ADDRESS CONSTITUTION < case.json
import { readFileSync } from "node:fs";
import { promisify } from "node:util";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [protos, criticAddress, judgeAddress, constitution] = process.argv.slice(2);
const asked = JSON.parse(readFileSync(0, "utf8"));
const { v1 } = grpc.loadPackageDefinition(
  protoLoader.loadSync(["solon/v1/critic.proto", "solon/v1/judge.proto"], {
    includeDirs: [protos],
    keepCase: true,
    enums: String,
  }),
).solon;

async function call(Service, address, method, request) {
  const client = new Service(address, grpc.credentials.createInsecure());
  try {
    return await promisify(client[method]).call(client, request);
  } finally {
    client.close();
  }
}

const shared = {
  conversation: { messages: [{ role: "ROLE_USER", content: asked.prompt }] },
  constitution: { name: constitution },
};
const critique = await call(v1.CriticService, criticAddress, "Critique", {
  ...shared,
  response: asked.response_a,
  principles: { ids: { ids: [asked.principle] } },
  sampling: { seed: 7 },
});
const verdict = await call(v1.JudgeService, judgeAddress, "Compare", {
  ...shared,
  response_a: asked.response_a,
  response_b: asked.response_b,
});
console.log(
  JSON.stringify({
    critique: critique.critique.text,
    digests: [critique.constitution_digest, verdict.constitution_digest],
    weight_versions: [critique.weight_version, verdict.weight_version],
    probability_a: verdict.probability_a,
    by_principle: Object.fromEntries(
      verdict.principles.map((one) => [one.principle_id, one.probability_a]),
    ),
  }),
);
