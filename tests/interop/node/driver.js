// The matrix test's hand on this client: a command for each line of standard input, an answer for each on standard
// output, both msgpack in hex.
import { createInterface } from "node:readline"
import { decode, encode } from "@msgpack/msgpack"
import { Dealer } from "zeromq"
import { Client, NoAnswer, Pending, readReply, Refused } from "./kingtask.js"

let client, brokers

const commands = {
  open({ brokers: addresses, timeout_s, keys }) {
    client?.close()
    brokers = addresses
    client = new Client(addresses, { timeout: timeout_s, keys })
  },
  ping: () => client.ping(),
  submit: ({ task }) => client.submit(task),
  submit_many: ({ tasks }) => client.submitMany(tasks),
  pipeline: ({ tasks }) => Promise.all(tasks.map((task) => client.submit(task))),
  get: ({ id }) => client.get(id),
  wait: ({ id, timeout_s }) => client.wait(id, timeout_s),
  cancel: ({ id }) => client.cancel(id),
  read: ({ message }) => readReply(message),
  async exchange({ frames }) {
    const socket = new Dealer({ linger: 0 })
    socket.connect(`tcp://${brokers[0]}`)
    await socket.send(frames)
    const reply = await socket.receive()
    socket.close()
    return reply
  },
}

function failure(error) {
  if (error instanceof Refused) return { kind: "refused", error: { message: error.message, ...error } }
  if (error instanceof Pending) return { kind: "pending", error: error.message }
  if (error instanceof NoAnswer) return { kind: "no_answer", error: error.message }
  if (error instanceof TypeError) return { kind: "usage", error: error.message }
  throw error
}

for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...fields } = decode(Buffer.from(line, "hex"))
  const answer = await (async () => commands[name](fields))().then((ok) => ({ ok }), failure)
  process.stdout.write(`${Buffer.from(encode(answer)).toString("hex")}\n`)
}
