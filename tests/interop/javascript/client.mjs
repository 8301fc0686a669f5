// The calls of a coordinator, made from the .proto files when the program starts.

import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import { chunksOf, joinChunks, payloadHeader, sha256, tensorsFromBytes } from "./wire.mjs";

const PROTOS = fileURLToPath(new URL("../../../protos/", import.meta.url));
const ERROR_KEY = "share-dist-error-bin";
const DEADLINE_SECONDS = 30;
const KEEPALIVE = {
  "grpc.keepalive_time_ms": 10_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.keepalive_permit_without_calls": 1,
};

const definitions = loader.loadSync(["share_dist/pb/coordinator.proto", "share_dist/pb/error.proto"], {
  includeDirs: [PROTOS],
  keepCase: true,
  enums: String,
  longs: Number,
  defaults: true,
  oneofs: true,
});
const { Coordinator } = grpc.loadPackageDefinition(definitions).share_dist.pb;

/** What went wrong: the status, and the coordinator's own class, sentence and facts. */
export class Refused extends Error {
  constructor(error) {
    const [bytes] = error.metadata?.get(ERROR_KEY) ?? [];
    const said = bytes && definitions["share_dist.pb.ErrorDetail"].deserialize(bytes);
    super(said?.message ?? error.details);
    this.status = grpc.status[error.code];
    this.name = said?.name ?? "";
    this.facts = Object.fromEntries(
      Object.entries(said?.fields ?? {}).map(([name, fact]) => [name, fact[fact.value]]),
    );
  }

  /** How long to wait before the same call, at least; Infinity where it is no use. */
  get retryAfterSeconds() {
    if (this.status === "UNAVAILABLE") return 0;
    return this.name === "Overloaded" ? this.facts.retry_after_seconds : Infinity;
  }
}

export class Client {
  #stub;

  constructor(address, subspace = "") {
    this.#stub = new Coordinator(address, grpc.credentials.createInsecure(), KEEPALIVE);
    this.subspace = subspace;
  }

  close() {
    this.#stub.close();
  }

  /** A call with one request and one response. */
  ask(rpc, request = {}) {
    return this.#again(
      (options) =>
        new Promise((resolve, reject) =>
          this.#stub[rpc]({ ...request, subspace: this.subspace }, options, (error, response) =>
            error ? reject(new Refused(error)) : resolve(response),
          ),
        ),
    );
  }

  /** PullSubspace or PullTask: the header and the tensors, or the payload where it is steps. */
  pull(rpc, request = {}) {
    return this.#again(async (options) => {
      const [first, ...rest] = await this.#read(rpc, request, options);
      const { header } = first;
      const chunks = rest.map(({ chunk }) => chunk);
      if (header.not_modified) return { header, tensors: {} };
      const payload = joinChunks(header.payload, chunks);
      const isSteps = "rotated_from_version" in header && header._rotated_from_version;
      return isSteps ? { header, payload } : { header, tensors: tensorsFromBytes(payload) };
    });
  }

  /** The first `count` versions after one. */
  watch(afterVersion, count) {
    return this.#again((options) => this.#read("WatchVersions", { after_version: afterVersion }, options, count));
  }

  /**
   * PushUpdate, from the first chunk that the coordinator does not have.
   * `breakAfter`: end the first attempt after so many chunks, as a network might.
   */
  async push(fields, payload, breakAfter) {
    const chunks = chunksOf(payload);
    const header = { ...fields, payload: payloadHeader(payload, chunks), subspace: this.subspace };
    if (breakAfter) await this.#break(header, payload, chunks.slice(0, breakAfter));
    return this.#again(async (options) => {
      header.first_chunk = await this.#kept(header, payload);
      return { receipt: await this.#send(header, chunks.slice(header.first_chunk), options), header };
    });
  }

  /** How many chunks need not be sent again. */
  async #kept({ update_id, payload: { sha256: digest } }, payload) {
    const kept = await this.ask("GetUpload", { update_id, sha256: digest }).catch((error) => {
      if (error.status === "UNIMPLEMENTED") return { num_chunks: 0, num_bytes: 0 };
      throw error;
    });
    const isOurs = kept.num_chunks && sha256(payload.subarray(0, kept.num_bytes)).equals(kept.prefix_sha256);
    return isOurs ? kept.num_chunks : 0;
  }

  #send(header, chunks, options) {
    return new Promise((resolve, reject) => {
      const call = this.#stub.PushUpdate(options, (error, receipt) =>
        error ? reject(new Refused(error)) : resolve(receipt),
      );
      call.write({ header });
      chunks.forEach((chunk) => call.write({ chunk }));
      call.end();
    });
  }

  async #break(header, payload, chunks) {
    const call = this.#stub.PushUpdate(this.#options(), () => {});
    call.write({ header });
    chunks.forEach((chunk) => call.write({ chunk }));
    const { deadline } = this.#options();
    while ((await this.#kept(header, payload)) < chunks.length && Date.now() < deadline) await sleep(10);
    call.cancel();
  }

  #read(rpc, request, options, count = Infinity) {
    return new Promise((resolve, reject) => {
      const call = this.#stub[rpc]({ ...request, subspace: this.subspace }, options);
      const messages = [];
      call.on("data", (message) => {
        messages.push(message);
        if (messages.length === count) call.cancel();
      });
      call.on("error", (error) => (messages.length === count ? resolve(messages) : reject(new Refused(error))));
      call.on("end", () => resolve(messages));
    });
  }

  #options(deadline = Date.now() + 1000 * DEADLINE_SECONDS) {
    return { deadline };
  }

  /** Try until it succeeds, until trying again is no use, or until the time is up. */
  async #again(attempt) {
    const options = this.#options();
    for (let wait = 0.2; ; wait = Math.min(2 * wait, 5)) {
      try {
        return await attempt(options);
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        const seconds = Math.max(error.retryAfterSeconds, wait * (0.5 + Math.random() / 2));
        if (Date.now() + 1000 * seconds > options.deadline) throw error;
        await sleep(1000 * seconds);
      }
    }
  }
}
