// Payloads, chunks and digests, as protos/README.md describes them. Numbers are row-major arrays
// with a shape; arithmetic is in double precision, what is sent is float32.

import { createHash } from "node:crypto";

export const WIRE_VERSION = 1;
const MIN_CHUNK_BYTES = 64 * 1024;

export const sha256 = (...parts) =>
  parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest();

/** A matrix whose entries a function of row and column gives. */
export function matrix(rows, columns, entry) {
  const data = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++)
    for (let j = 0; j < columns; j++) data[i * columns + j] = entry(i, j);
  return { dtype: "F32", shape: [rows, columns], data };
}

/** left @ right */
export function times(left, right) {
  const [rows, inner] = left.shape;
  const columns = right.shape[1];
  return matrix(rows, columns, (i, j) => {
    let sum = 0;
    for (let l = 0; l < inner; l++) sum += left.data[i * inner + l] * right.data[l * columns + j];
    return sum;
  });
}

export const transposed = ({ shape: [rows, columns], data }) =>
  matrix(columns, rows, (i, j) => data[j * columns + i]);

export const plus = (left, right) => ({ ...left, data: left.data.map((x, i) => x + right.data[i]) });

/** Columns of the left, then columns of the right. */
export function beside(left, right) {
  const [rows, l] = left.shape;
  const r = right.shape[1];
  return matrix(rows, l + r, (i, j) => (j < l ? left.data[i * l + j] : right.data[i * r + j - l]));
}

export const largestDifference = (left, right) =>
  left.data.reduce((most, x, i) => Math.max(most, Math.abs(x - right.data[i])), 0);

// --- safetensors ---------------------------------------------------------------------------------

const ITEMS = {
  F64: [8, (view, at) => view.getFloat64(at, true), (view, at, x) => view.setFloat64(at, x, true)],
  F32: [4, (view, at) => view.getFloat32(at, true), (view, at, x) => view.setFloat32(at, x, true)],
};

export function tensorsToBytes(tensors) {
  const header = {};
  let end = 0;
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    const begin = end;
    end += ITEMS[dtype][0] * data.length;
    header[name] = { dtype, shape, data_offsets: [begin, end] };
  }
  const json = Buffer.from(JSON.stringify(header));
  const start = 8 + Math.ceil(json.length / 8) * 8;
  const bytes = Buffer.alloc(start + end);
  bytes.writeBigUInt64LE(BigInt(start - 8), 0);
  bytes.fill(" ", 8, start);
  json.copy(bytes, 8);
  const view = new DataView(bytes.buffer, bytes.byteOffset + start, end);
  for (const [name, { dtype, data }] of Object.entries(tensors)) {
    const [size, , write] = ITEMS[dtype];
    data.forEach((x, i) => write(view, header[name].data_offsets[0] + i * size, x));
  }
  return bytes;
}

export function tensorsFromBytes(bytes) {
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, start).toString());
  const view = new DataView(bytes.buffer, bytes.byteOffset + start, bytes.length - start);
  return Object.fromEntries(
    Object.entries(header).map(([name, { dtype, shape, data_offsets: [begin, end] }]) => {
      const [size, read] = ITEMS[dtype];
      const data = Float64Array.from({ length: (end - begin) / size }, (_, i) => read(view, begin + i * size));
      return [name, { dtype, shape, data }];
    }),
  );
}

// --- chunks --------------------------------------------------------------------------------------

export function chunksOf(payload, chunkBytes = MIN_CHUNK_BYTES) {
  const running = createHash("sha256");
  return Array.from({ length: Math.ceil(payload.length / chunkBytes) }, (_, index) => {
    const data = payload.subarray(index * chunkBytes, (index + 1) * chunkBytes);
    running.update(data);
    return { index, data, prefix_sha256: running.copy().digest() };
  });
}

export const payloadHeader = (payload, chunks) => ({
  wire_version: WIRE_VERSION,
  num_bytes: payload.length,
  num_chunks: chunks.length,
  sha256: sha256(payload),
});

/** Join chunks; throws when they are not what the header announced. */
export function joinChunks(header, chunks) {
  const running = createHash("sha256");
  chunks.forEach((chunk, index) => {
    running.update(chunk.data);
    if (chunk.index !== index) throw new Error(`chunk ${chunk.index} came where ${index} was due`);
    const said = chunk.prefix_sha256;
    if (said.length && !said.equals(running.copy().digest())) throw new Error(`chunk ${index} was damaged`);
  });
  const payload = Buffer.concat(chunks.map((chunk) => chunk.data));
  if (header.wire_version !== WIRE_VERSION) throw new Error(`wire version ${header.wire_version}`);
  if (chunks.length !== header.num_chunks || payload.length !== Number(header.num_bytes))
    throw new Error("the payload has another length than was announced");
  if (!running.digest().equals(header.sha256)) throw new Error("the payload has another digest than was announced");
  return payload;
}

// --- fingerprint ---------------------------------------------------------------------------------

const escaped = (text) =>
  JSON.stringify(text).replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

export function fingerprintDigest({ base_model, metric, wire_version, layers }) {
  const sorted = [...layers].sort((a, b) => Buffer.compare(Buffer.from(a.name), Buffer.from(b.name)));
  const listed = sorted.map((l) => `[${escaped(l.name)},${l.in_features},${l.out_features}]`).join(",");
  const json =
    `{"base_model":${escaped(base_model)},"layers":[${listed}],` +
    `"metric":${escaped(metric)},"wire_version":${wire_version}}`;
  return sha256(json).toString("hex");
}
