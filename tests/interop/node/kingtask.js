/**
 * A client for version 1 of the kingtask protocol.
 *
 * Any number of calls may be under way: they share one connection to one broker. When it is lost, or an answer does not
 * come, what is unanswered is sent again, unchanged, to the next broker. Whatever is sent twice has one effect, because
 * every task gets its id here.
 */
import { randomUUID } from "node:crypto"
import { setTimeout as sleep } from "node:timers/promises"
import { decode, encode } from "@msgpack/msgpack"
import { Dealer } from "zeromq"

const PATIENCE_MS = 3_000 // without an answer, then the broker counts as lost
const PAGE_S = 60 // of one wait request; longer ones are asked again
const UNDER_WAY = 500 // requests; a broker drops the replies that nobody reads

export class KingtaskError extends Error {
  name = this.constructor.name
}

/** No broker answered in time. A submit may have been stored: send it again with the same id. */
export class NoAnswer extends KingtaskError {}

/** The task had not ended within the time given. It goes on; `task` is its record as it stands. */
export class Pending extends KingtaskError {
  constructor(task) {
    super(`task ${task.id} has not ended yet`)
    this.task = task
  }
}

/** A broker's error reply: `code`, `retryable`, `stored` ("no" or "unknown"), perhaps `field` and `retry_after_s`. */
export class Refused extends KingtaskError {
  constructor(error) {
    super(error.message)
    Object.assign(this, error)
  }
}

/** The fields of a reply. Throws Refused for an error reply. */
export function readReply(message) {
  const reply = decode(message)
  if (!reply.ok) throw new Refused(reply.error)
  return reply
}

/** One connection to one broker; it is used until it fails, and never again. */
class Link {
  failed = null
  #pending = new Map()
  #lastRid = 0
  #socket

  constructor(address, curve) {
    this.#socket = new Dealer({
      linger: 0,
      heartbeatInterval: 1_000,
      heartbeatTimeout: PATIENCE_MS,
      heartbeatTimeToLive: PATIENCE_MS,
      ...curve,
    })
    this.#watch()
    this.#socket.connect(address)
    this.#read()
  }

  /** Send a request; resolves with the reply's bytes, rejects when the link has failed. */
  ask(op, fields, mayTakeMs) {
    const rid = ++this.#lastRid
    const request = encode({ v: 1, rid, op, ...fields }, { ignoreUndefined: true })
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.fail(new NoAnswer("the broker is silent")), mayTakeMs + PATIENCE_MS)
      this.#pending.set(rid, { resolve, reject, timer })
      this.#socket.send(request).catch((error) => this.fail(error))
    })
  }

  fail(cause) {
    if (this.failed) return
    this.failed = cause
    this.#socket.close()
    for (const { reject, timer } of this.#pending.values()) {
      clearTimeout(timer)
      reject(cause)
    }
    this.#pending.clear()
  }

  async #read() {
    try {
      for await (const [message] of this.#socket) {
        const { rid } = decode(message)
        const waiting = this.#pending.get(rid)
        if (!waiting) continue
        this.#pending.delete(rid)
        clearTimeout(waiting.timer)
        waiting.resolve(message)
      }
    } catch (error) {
      this.fail(error)
    }
  }

  /** libzmq would connect again by itself, to the same broker, and what is unanswered would stay so. */
  async #watch() {
    for await (const { type } of this.#socket.events) {
      if (type === "disconnect" || type === "connect:retry") this.fail(new NoAnswer("the connection is lost"))
      if (type === "end") return
    }
  }
}

export class Client {
  #brokers
  #timeoutMs
  #curve = {}
  #current = 0
  #link = null
  #free = UNDER_WAY
  #queue = []

  /**
   * `brokers` such as ["127.0.0.1:9595"]; `timeout` is seconds that a call may take in all. For brokers that ask for
   * keys, `keys` is `{server, public, secret}`: theirs and your own pair, in Z85.
   */
  constructor(brokers = (process.env.KINGTASK_BROKER ?? "127.0.0.1:9595").split(","), { timeout = 10, keys } = {}) {
    this.#brokers = brokers.map((broker) => (broker.includes("://") ? broker : `tcp://${broker}`))
    this.#timeoutMs = timeout * 1_000
    if (!keys) return
    this.#curve = { curveServerKey: keys.server, curvePublicKey: keys.public, curveSecretKey: keys.secret }
    try {
      new Dealer(this.#curve).close()
    } catch (cause) {
      throw new TypeError("keys: expected server, public and secret, 40 characters (Z85) each", { cause })
    }
  }

  close() {
    this.#link?.fail(new KingtaskError("the client was closed"))
    this.#link = null
  }

  ping() {
    return this.#call("ping", {})
  }

  /** Resolves with `{id, outcome, ack}` when the task is stored; its fields are those of the protocol. */
  submit(task) {
    return this.#call("submit", { task: { id: randomUUID(), ...task } })
  }

  /** Up to 1,000 tasks at once: an outcome each, in order. A bad one does not hinder the others. */
  async submitMany(tasks) {
    return (await this.#call("submit", { tasks: tasks.map((task) => ({ id: randomUUID(), ...task })) })).outcomes
  }

  async get(id) {
    return (await this.#call("get", { id })).task
  }

  /** Resolves with the record when the task has ended, however it did. Throws Pending after `timeout` seconds. */
  async wait(id, timeout = Infinity) {
    const deadline = Date.now() + timeout * 1_000
    for (;;) {
      const timeout_s = Math.max(0, Math.min(PAGE_S, (deadline - Date.now()) / 1_000))
      const { task, pending } = await this.#call("wait", { id, timeout_s }, timeout_s * 1_000)
      if (!pending) return task
      if (Date.now() >= deadline) throw new Pending(task)
    }
  }

  /** Resolves with "cancelled", or "cancelling" while the task runs. */
  async cancel(id) {
    return (await this.#call("cancel", { id })).outcome
  }

  /** Ask until a broker answers for good; `mayTakeMs` is how long that may take if all is well. */
  async #call(op, fields, mayTakeMs = 0) {
    const deadline = Date.now() + this.#timeoutMs + mayTakeMs
    await this.#enter()
    try {
      for (let pauseMs = 100; ; pauseMs = Math.min(2 * pauseMs, 2_000)) {
        try {
          return readReply(await this.#ask(op, fields, mayTakeMs))
        } catch (error) {
          if (error instanceof Refused && !error.retryable) throw error
          const restMs = Math.max(pauseMs * (0.5 + Math.random()), 1_000 * (error.retry_after_s ?? 0))
          if (Date.now() + restMs >= deadline) throw error
          await sleep(restMs)
        }
      }
    } finally {
      this.#leave()
    }
  }

  /** Ask the current broker once, and choose the next one if nothing comes. */
  async #ask(op, fields, mayTakeMs) {
    if (!this.#link || this.#link.failed) {
      this.#link = new Link(this.#brokers[this.#current % this.#brokers.length], this.#curve)
    }
    const link = this.#link
    try {
      return await link.ask(op, fields, mayTakeMs)
    } catch (error) {
      if (this.#link === link) {
        this.#link = null
        this.#current++
      }
      throw error instanceof KingtaskError ? error : new NoAnswer(error.message, { cause: error })
    }
  }

  async #enter() {
    if (this.#free > 0) this.#free--
    else await new Promise((resolve) => this.#queue.push(resolve))
  }

  #leave() {
    const next = this.#queue.shift()
    if (next) next()
    else this.#free++
  }
}
