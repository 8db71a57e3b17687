/**
 * The server process in the background, started by `start.ts`: reads its configuration from standard input, tells on
 * descriptor 3 how the start goes, and has its log as standard output and error.
 */

import { closeSync, readFileSync, writeSync } from 'node:fs'
import { makeTrace } from '../util/trace.js'
import { encodeMessage, errorMessage, type Message } from './report.js'
import { runServer, type ServerConfig } from './server.js'

const STDIN = 0
const STDERR = 2
const REPORT = 3
const trace = makeTrace('mount')

let started = false
// What traces and warnings of Node go to.
process.stderr.on('error', () => {})

function tell(message: Message): void {
  writeSync(REPORT, encodeMessage(message))
}

/** A log that takes nothing any more, because its file system is full, must not keep the server from its work. */
function log(text: string): void {
  try {
    writeSync(STDERR, `${new Date().toISOString()} ${text}\n`)
  } catch (error) {
    trace('not logged: %s: %O', text, error)
  }
}

async function run(): Promise<void> {
  const config = JSON.parse(readFileSync(STDIN, 'utf8')) as ServerConfig
  await runServer(config, {
    warning: (text) => tell({ type: 'warning', text }),
    ready: (entry) => {
      started = true
      tell({ type: 'ready', entry })
      closeSync(REPORT)
    },
    problem: log,
    report: log,
  })
}

try {
  await run()
} catch (error) {
  trace('%O', error)
  if (started) log(error instanceof Error ? error.message : String(error))
  else tell(errorMessage(error))
  process.exitCode = 1
}
