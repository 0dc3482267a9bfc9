#!/usr/bin/env node
// As task.sh. CommonJS, since nothing beside the file says otherwise where it is put.
const { readFileSync } = require("node:fs")

for (const argument of process.argv.slice(2)) process.stdout.write(`<${argument}>\n`)
process.stdout.write(`${readFileSync(0).length}\n${process.env.TASK_WORD}\n`)
process.exitCode = Number(process.env.TASK_STATUS ?? 0)
