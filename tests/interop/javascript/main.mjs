// Learns nothing, and says everything a worker says: `node main.mjs ADDRESS`.
// Prints one line of JSON per step; what is compared here is compared with what this client itself sent.

import { Client } from "./client.mjs";
import { advance, allColumns, anchor } from "./follow.mjs";
import {
  WIRE_VERSION,
  fingerprintDigest,
  largestDifference,
  matrix,
  plus,
  tensorsToBytes,
  times,
  transposed,
} from "./wire.mjs";

const LAYERS = [
  { name: "encoder.query", in_features: 384, out_features: 256 },
  { name: "encoder.value", in_features: 384, out_features: 192 },
];
const FINGERPRINT = { base_model: "0".repeat(64), metric: "delta", wire_version: WIRE_VERSION, layers: LAYERS };
const WORKER = "javascript";

const say = (step, facts = {}) => console.log(JSON.stringify({ step, ...facts }));
const float32Text = ({ data }) => Buffer.from(Float32Array.from(data).buffer).toString("base64");
const numbers = (seed) => (i, j) => Math.fround(Math.sin(1 + seed + 12.9898 * i + 78.233 * j));

/** Tensors of an update against bases with so many factors: pseudo-rank 2, two temporary factors a side. */
function updateTensors(seed, numFactors, headRows) {
  const tensors = { "head.weight": matrix(headRows, 64, numbers(seed)) };
  for (const [l, { name, in_features, out_features }] of LAYERS.entries())
    for (const [side, features] of [["a", in_features], ["b", out_features]]) {
      const from = seed + 7 * l + (side === "a" ? 0 : 3);
      tensors[`${name}.${side}.coefficients`] = matrix(numFactors(name, side), 2, numbers(from));
      tensors[`${name}.${side}.temporary`] = matrix(features, 2, numbers(from + 1));
      tensors[`${name}.${side}.temporary_coefficients`] = matrix(2, 2, numbers(from + 2));
    }
  return tensors;
}

/** dW = F_b F_a' of each layer, with F = V E + T tau. */
function weightChanges(bases, tensors) {
  const factor = (prefix) => {
    const vectors = bases[`${prefix}.vectors`];
    const shared = times(vectors, tensors[`${prefix}.coefficients`]);
    const temporary = tensors[`${prefix}.temporary`];
    return temporary ? plus(shared, times(temporary, tensors[`${prefix}.temporary_coefficients`])) : shared;
  };
  return Object.fromEntries(
    LAYERS.map(({ name }) => [name, times(factor(`${name}.b`), transposed(factor(`${name}.a`)))]),
  );
}

const SIDES = LAYERS.flatMap(({ name }) => [`${name}.a`, `${name}.b`]);
const WITH_TAIL = { with_tail: true, precision: "FLOAT32" };

/** Hold version 1 with its tail, and take what leads from there. */
async function follow(client) {
  const held = anchor(await client.pull("PullSubspace", { version: 1, ...WITH_TAIL }), SIDES);
  const { header, payload } = await client.pull("PullSubspace", {
    ...WITH_TAIL,
    accept_rotation: true,
    held_version: held.version,
    held_digest: held.digest,
    held_chain: held.chain,
  });
  const whole = await client.pull("PullSubspace", { version: header.version, ...WITH_TAIL });
  const reached = payload && advance(held, header, payload);
  say("followed", {
    steps_from: payload ? header.rotated_from_version : null,
    version: header.version,
    step_bytes: header.payload.num_bytes,
    whole_bytes: whole.header.payload.num_bytes,
    difference: reached && Math.max(
      ...SIDES.map((prefix) => largestDifference(reached.columns[prefix], allColumns(whole.tensors, prefix))),
    ),
  });
}

const difference = (left, right) => Math.max(...LAYERS.map(({ name }) => largestDifference(left[name], right[name])));

/** Push what one task learnt against bases, wait for the version with it, and compare what comes back. */
async function learn(client, lease, task, bases, seed, options = {}) {
  const { header, tensors: held } = bases;
  const numFactors = (name, side) => held[`${name}.${side}.vectors`].shape[1];
  const tensors = updateTensors(seed, numFactors, options.headRows ?? 2);
  const fields = {
    update_id: `${WORKER}-${task}`,
    task_id: task,
    worker_id: WORKER,
    lease_epoch: lease.lease_epoch,
    base_version: header.version,
    base_digest: header.digest,
    fingerprint_digest: fingerprintDigest(FINGERPRINT),
    weight: 1,
    num_samples: 100,
    scores: { accuracy: 0.5 },
    head: { task_type: "text-classification", num_labels: 2 },
    wait: "WAIT_MERGED",
  };
  const sent = await client.push(fields, tensorsToBytes(tensors), options.breakAfter);
  const { receipt } = sent;
  say("pushed", { task, ...receipt, first_chunk: sent.header.first_chunk, num_chunks: sent.header.payload.num_chunks });
  const now = await client.pull("PullSubspace", { min_version: receipt.version });
  const back = await client.pull("PullTask", { task_id: task });
  say("came back", {
    task,
    version: back.header.version,
    subspace_version: now.header.version,
    difference: difference(weightChanges(held, tensors), weightChanges(now.tensors, back.tensors)),
    head_difference: largestDifference(tensors["head.weight"], back.tensors["head.weight"]),
  });
  const again = await client.push(fields, tensorsToBytes(tensors));
  say("pushed again", { task, state: again.receipt.state, version: again.receipt.version });
  return now;
}

async function refusal(step, asking) {
  try {
    say(step, { answered: await asking });
  } catch (error) {
    say(step, { status: error.status, name: error.name, message: error.message, facts: error.facts });
  }
}

async function main(address) {
  const client = new Client(address);
  const lease = await client.ask("Register", { worker_id: WORKER, fingerprint: FINGERPRINT });
  say("registered", { lease_epoch: lease.lease_epoch, store_id: lease.store_id });
  await client.ask("Heartbeat", { worker_id: WORKER, lease_epoch: lease.lease_epoch });

  const empty = await client.pull("PullSubspace", { version: 0 });
  const first = await learn(client, lease, "cats", empty, 1, { headRows: 1024, breakAfter: 2 });
  const second = await learn(client, lease, "dogs", first, 50);
  const { version, digest } = second.header;

  const held = await client.pull("PullSubspace", { held_version: version, held_digest: digest });
  say("held", { not_modified: held.header.not_modified });
  const events = await client.watch(0, version);
  say("watched", { versions: events.map((event) => [event.version, event.task_ids, event.digest]), digest });
  const { tasks } = await client.ask("ListTasks");
  say("tasks", { tasks: tasks.map((task) => [task.task_id, task.state, task.merged_version]) });

  await follow(client);
  const { header, tensors } = await client.pull("PullTask", { task_id: process.argv[3] });
  const changes = weightChanges(second.tensors, tensors);
  say("another's task", { version: header.version, changes: LAYERS.map(({ name }) => float32Text(changes[name])) });

  await refusal("unknown task", client.pull("PullTask", { task_id: "dgos" }));
  await refusal("lost lease", client.ask("Heartbeat", { worker_id: WORKER, lease_epoch: 99 }));
  await refusal("another's version", client.pull("PullSubspace", { version: version + 1 }));
  await refusal("another model", client.ask("Register", {
    worker_id: WORKER,
    fingerprint: { ...FINGERPRINT, base_model: "1".repeat(64) },
  }));
  client.close();
}

await main(process.argv[2]);
