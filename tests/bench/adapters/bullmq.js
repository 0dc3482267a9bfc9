// BullMQ: the sections of sections.py, asked for as serve.py says; `node bullmq.js client` or `node bullmq.js worker`.
"use strict";
const { execFile } = require("node:child_process");
const fs = require("node:fs");
const path = require("node:path");
const readline = require("node:readline");
const { Queue, QueueEvents, Worker } = require("bullmq");

const SLOTS = 4;
const BATCH = 1000;
const SILENCE_S = 60;
const NAME = "bench";
const server = new URL(process.env.BENCH_REDIS);
const connection = { host: server.hostname, port: Number(server.port), maxRetriesPerRequest: null };
const argv = [process.env.BENCH_PROBE, "12", "45"];

const wall = () => (performance.timeOrigin + performance.now()) / 1000;
const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, Math.max(0, 1000 * seconds)));
const started = (stdout) => Number(stdout) / 1e9;

function work() {
  const run = (job) =>
    new Promise((resolve, reject) => {
      const [program, ...rest] = job.data.argv;
      execFile(program, rest, (error, stdout) => (error ? reject(error) : resolve(stdout)));
    });
  new Worker(NAME, run, { connection, concurrency: SLOTS });
}

function version(name) {
  const file = path.join(process.env.NODE_PATH, name, "package.json");
  return JSON.parse(fs.readFileSync(file)).version;
}

async function serve() {
  let queue, events;
  let planned = [];
  const submit = (options) => queue.add("run", { argv }, options);
  const wait = (job) => job.waitUntilFinished(events, 60000);
  const many = (n, delay) =>
    queue.addBulk(Array.from({ length: n }, () => ({ name: "run", data: { argv }, opts: delay ? { delay } : {} })));

  const sections = {
    async open() {
      queue = new Queue(NAME, { connection });
      events = new QueueEvents(NAME, { connection });
      await Promise.all([queue.waitUntilReady(), events.waitUntilReady()]);
      return {};
    },

    async warm({ n }) {
      for (let i = 0; i < n; i++) await wait(await submit());
      return {};
    },

    async submit({ n, limit_s }) {
      const start = wall();
      let done = 0;
      for (; done < n && wall() - start < limit_s; done++) await submit();
      return { n: done, seconds: wall() - start };
    },

    async submit_many({ n, limit_s }) {
      const start = wall();
      let done = 0;
      for (; done < n && wall() - start < limit_s; done += BATCH) await many(BATCH);
      return { n: done, seconds: wall() - start };
    },

    async execute({ n, bulk }) {
      const before = await queue.getCompletedCount();
      const start = wall();
      for (let i = 0; i < n; ) {
        const part = bulk ? Math.min(BATCH, n - i) : 1;
        await (bulk ? many(part) : submit());
        i += part;
      }
      const submitted_s = wall() - start;
      let done = 0;
      let heard = wall();
      for (;;) {
        const now = (await queue.getCompletedCount()) - before;
        if (now >= n) return { n, seconds: wall() - start, submitted_s };
        if (now > done) [done, heard] = [now, wall()];
        else if (wall() - heard > SILENCE_S) throw new Error(`only ${done} of ${n} tasks ended`);
        await pause(0.01);
      }
    },

    async latency({ n }) {
      const sent = [];
      for (let i = 0; i < n; i++) {
        const at = wall();
        sent.push([at, await submit()]);
        await pause(0.02 + 0.02 * Math.random());
      }
      const samples = [];
      for (const [at, job] of sent) samples.push(started(await wait(job)) - at);
      return { samples };
    },

    async round_trip({ n, limit_s }) {
      const begin = wall();
      const samples = [];
      while (samples.length < n && wall() - begin < limit_s) {
        const start = wall();
        await wait(await submit());
        samples.push(wall() - start);
        await pause(0.02 * Math.random());
      }
      return { samples };
    },

    async plan({ n, span_s, ahead_s }) {
      const first = wall() + ahead_s;
      const instants = Array.from({ length: n }, (_, i) => first + (span_s * i) / n);
      for (let i = n - 1; i > 0; i--) {
        const j = Math.floor(Math.random() * (i + 1));
        [instants[i], instants[j]] = [instants[j], instants[i]];
      }
      planned = [];
      for (const at of instants) planned.push([at, await submit({ delay: Math.max(0, Math.round(1000 * (at - wall()))) })]);
      return {};
    },

    async late() {
      await pause(Math.max(...planned.map(([at]) => at)) - wall());
      const at = planned.map(([instant]) => instant);
      const samples = [];
      for (const [instant, job] of planned) samples.push(started(await wait(job)) - instant);
      return { at, samples };
    },

    async schedule({ n, limit_s, ahead_s = 3600 }) {
      const start = wall();
      let done = 0;
      while (done < n && wall() - start < limit_s) {
        const part = Math.min(BATCH, n - done);
        await many(part, Math.round(1000 * ahead_s));
        done += part;
      }
      return { n: done, seconds: wall() - start };
    },

    async flow({ rate, seconds }) {
      const start = wall();
      let n = 0;
      while (wall() - start < seconds) {
        for (; n < (wall() - start) * rate; n++) await submit();
        await pause(0.001);
      }
      return { n };
    },
  };

  const say = (answer) => process.stdout.write(JSON.stringify(answer) + "\n");
  say({
    config: `one process, concurrency ${SLOTS}; in bulk: addBulk`,
    versions: { bullmq: version("bullmq"), ioredis: version("ioredis"), node: process.versions.node },
    servers: [],
    workers: [["node", __filename, "worker"]],
    sections: Object.keys(sections),
    bulk: true,
  });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { section, args } = JSON.parse(line);
    try {
      say(await sections[section](args));
    } catch (error) {
      say({ error: String(error.stack).slice(-2000) });
    }
  }
  process.exit(0);
}

if (process.argv[2] === "worker") work();
else serve();
