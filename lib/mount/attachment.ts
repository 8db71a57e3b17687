/** The loop device of a mount that `attach` made, as the server has to do with it. */

import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import type { PartitionTable } from '../partitions/table.js'
import { entryPoint } from '../util/entry.js'
import { VdiskError } from '../util/errors.js'
import { makeTrace } from '../util/trace.js'
import { isOn } from './loop.js'
import type { LoopTask } from './loop-main.js'
import { decodeMessages, type Message } from './report.js'
import { DISK_NAME } from './tree.js'

const trace = makeTrace('mount')

const HELPER = fileURLToPath(entryPoint('mount/loop-main.js'))

export interface AttachmentOptions {
  readonly mountpoint: string
  readonly readOnly: boolean
  readonly table: PartitionTable
}

export class Attachment {
  readonly #options: AttachmentOptions
  #device: string | undefined

  constructor(options: AttachmentOptions) {
    this.#options = options
  }

  /**
   * Attaches a device. Where that fails, half done or killed, nothing stays attached.
   * @returns `/dev/loopN`
   * @throws VdiskError
   */
  async attach(warn: (text: string) => void): Promise<string> {
    const { mountpoint, readOnly, table } = this.#options
    const { sectorSize, partitions } = table
    try {
      const request = { file: join(mountpoint, DISK_NAME), readOnly, sectorSize, partitions }
      for (const message of await runHelper({ task: 'attach', request })) {
        if (message.type === 'warning') warn(message.text)
        else if (message.type === 'attached') this.#device = message.device
      }
      if (this.#device === undefined) throw new VdiskError('INTERNAL', 'no loop device was named')
      return this.#device
    } catch (error) {
      await this.detach(true)
      throw error
    }
  }

  /** Detaches what is attached to the mount. `force`: also what is used. @throws IN_USE */
  async detach(force: boolean): Promise<void> {
    await runHelper({ task: 'detach', mountpoint: this.#options.mountpoint, force })
  }

  /** True where somebody else has detached the device: nobody can use the mount any more then. */
  get isGone(): boolean {
    return this.#device !== undefined && !isOn(this.#device, this.#options.mountpoint)
  }
}

/** In a process group of its own: Ctrl-C at a server in the foreground is not for this. @throws VdiskError */
async function runHelper(task: LoopTask): Promise<Message[]> {
  const child = spawn(process.execPath, [HELPER], {
    argv0: 'vdiskfs',
    detached: true,
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const ended = new Promise<string | undefined>((resolve, reject) => {
    child.on('error', reject)
    child.on('exit', (code, signal) => resolve(signal ?? (code === 0 ? undefined : `exit code ${code}`)))
  })
  child.stdin.on('error', (error) => trace('the helper did not read its task: %O', error))
  child.stdin.end(JSON.stringify(task))
  const [words, failure] = await Promise.all([text(child.stdout), ended])
  const messages = decodeMessages(words)
  trace('%s: %o, %s', task.task, messages, failure ?? 'done')
  for (const message of messages) if (message.type === 'error') throw new VdiskError(message.code, message.text)
  if (failure)
    throw new VdiskError('INTERNAL', `the helper that should ${task.task} a loop device ended with ${failure}`)
  return messages
}
