// Runs the executable "example" with two numbers in two seconds, retried twice if it fails, and prints its output.
import { Client } from "./kingtask.js"

const client = new Client()
const { id } = await client.submit({ name: "example", args: ["12", "45"], delay_s: 2, retry: [5, 8] })
const task = await client.wait(id, 30)
process.stdout.write(`${task.state}: ${Buffer.from(task.stdout ?? "")}`)
client.close()
