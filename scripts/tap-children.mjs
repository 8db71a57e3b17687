// Loaded into every test process behind tap's own hooks: lets the processes and threads that a test starts be as they
// are without tap. It would otherwise put its loader into each worker, each `vdiskfs` and each server, which doubles the
// time that they take to start, and makes those of other users fail, who cannot write tap's notes.

import { syncBuiltinESMExports } from 'node:module'
import threads from 'node:worker_threads'

const isTaps = (word) => word.includes('/@tapjs/')

/** Where process-on-spawn keeps what it wrapped, so that every child gets tap's loader. */
globalThis[Symbol.for('process-on-spawn@*:singletonId')]?.unwrap()

const others = (process.env.NODE_OPTIONS ?? '').split(' ').filter((word) => !isTaps(word))
if (others.join('') === '') delete process.env.NODE_OPTIONS
else process.env.NODE_OPTIONS = others.join(' ')

/** Threads inherit what their process was started with, unless they are told otherwise. */
const execArgv = process.execArgv.filter((word) => !word.startsWith('--import'))
threads.Worker = class Worker extends threads.Worker {
  constructor(file, options) {
    super(file, { execArgv, ...options })
  }
}
syncBuiltinESMExports()
