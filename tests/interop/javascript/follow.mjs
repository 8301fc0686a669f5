// From one version to the next by steps: [V Q] U, checked by the chain of digests and by probes.

import { beside, largestDifference, matrix, sha256, tensorsFromBytes, times, transposed } from "./wire.mjs";

const NUM_PROBES = 2;
const TOLERANCE = 1e-5;

const little = (value, size) => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes.subarray(0, size);
};

/** The vectors that a version is probed with, one column each. */
export function probeVectors(version, features) {
  const column = (j) => {
    const blocks = Array.from({ length: Math.ceil(features / 8) }, (_, i) =>
      sha256("share-dist probe", little(version, 8), little(j, 4), little(i, 4)),
    );
    return Buffer.concat(blocks);
  };
  const columns = Array.from({ length: NUM_PROBES }, (_, j) => column(j));
  return matrix(features, NUM_PROBES, (i, j) => columns[j].readUInt32LE(4 * i) / 2 ** 31 - 1);
}

/** The payloads of consecutive steps. */
export function stepsFromBytes(payload) {
  const number = (i) => Number(payload.readBigUInt64LE(8 * i));
  let at = 8 * (number(0) + 1);
  return Array.from({ length: number(0) }, (_, i) => {
    const step = payload.subarray(at, at + number(i + 1));
    at += step.length;
    return step;
  });
}

/** All columns of a side: its factors, and its tail where it has one. */
export const allColumns = (tensors, prefix) =>
  tensors[`${prefix}.tail`] ? beside(tensors[`${prefix}.vectors`], tensors[`${prefix}.tail`]) : tensors[`${prefix}.vectors`];

const digestOf = (header) => header.payload.sha256;

/** What a payload with its tail begins: columns by side, and the chain. */
export const anchor = ({ header, tensors }, prefixes) => ({
  version: header.version,
  digest: header.digest,
  chain: digestOf(header),
  columns: Object.fromEntries(prefixes.map((prefix) => [prefix, allColumns(tensors, prefix)])),
});

/** Follow the payload of a header that says `rotated_from_version`; throws where a check fails. */
export function advance(held, header, payload) {
  let { version, chain, columns } = held;
  if (header.rotated_from_version !== version) throw new Error("the steps begin at another version");
  for (const step of stepsFromBytes(payload)) {
    version += 1;
    chain = sha256(chain, sha256(step));
    const tensors = tensorsFromBytes(step);
    columns = Object.fromEntries(
      Object.entries(columns).map(([prefix, old]) => [prefix, nextColumns(old, tensors, prefix, version)]),
    );
  }
  if (version !== header.version || !chain.equals(header.chain)) throw new Error("the steps lead elsewhere");
  return { version, digest: header.digest, chain, columns };
}

function nextColumns(old, tensors, prefix, version) {
  const tail = tensors[`${prefix}.rotation_tail`];
  const leading = tensors[`${prefix}.rotation`];
  const turned = times(beside(old, tensors[`${prefix}.directions`]), tail ? beside(leading, tail) : leading);
  const found = times(transposed(turned), probeVectors(version, turned.shape[0]));
  const off = largestDifference(found, tensors[`${prefix}.probes`]);
  if (!(off <= TOLERANCE)) throw new Error(`${prefix} is ${off} away from where the coordinator is`);
  return turned;
}
