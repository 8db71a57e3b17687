/**
 * The process that attaches or detaches loop devices on behalf of a server, started by `attachment.ts`: reads what to do
 * from standard input, and tells on standard output, in the messages of `report.ts`, how it went.
 */

import { readFileSync, writeSync } from 'node:fs'
import { attachLoop, detachLoop, type LoopRequest, loopsOn } from './loop.js'
import { encodeMessage, errorMessage, type Message } from './report.js'

const STDIN = 0
const STDOUT = 1

export type LoopTask =
  | { readonly task: 'attach'; readonly request: LoopRequest }
  /** Detaches all devices over files of a mount. */
  | { readonly task: 'detach'; readonly mountpoint: string; readonly force: boolean }

const tell = (message: Message) => void writeSync(STDOUT, encodeMessage(message))

try {
  const work = JSON.parse(readFileSync(STDIN, 'utf8')) as LoopTask
  if (work.task === 'attach')
    tell({ type: 'attached', device: attachLoop(work.request, (text) => tell({ type: 'warning', text })) })
  else for (const device of loopsOn(work.mountpoint)) await detachLoop(device, work.mountpoint, work.force)
} catch (error) {
  tell(errorMessage(error))
  process.exitCode = 1
}
