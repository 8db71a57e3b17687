/** What a worker thread of a conversion runs. */

import { parentPort } from 'node:worker_threads'
import { VdiskError } from '../../util/errors.js'
import { attachImage } from '../attach.js'
import type { ImageHandle } from '../stack.js'
import { CopyControl, CopyJob, type CopySettings } from './job.js'

/** What a worker gets. */
export interface CopySetup {
  readonly source: ImageHandle
  readonly target: ImageHandle
  readonly settings: CopySettings
  readonly control: SharedArrayBuffer
  /** Its number, in both images and among the threads of the copy. */
  readonly thread: number
}

/** What a worker says when it ends because something failed. */
export interface CopyFailure {
  readonly code: VdiskError['code'] | undefined
  readonly message: string
}

async function work({ source, target, settings, control, thread }: CopySetup): Promise<void> {
  const images = [await attachImage(source, thread), await attachImage(target, thread)] as const
  const job = new CopyJob(...images, settings, new CopyControl(control), thread)
  while (job.step());
}

// It ends after the one message that it gets.
parentPort!.once('message', async (setup: CopySetup) => {
  try {
    await work(setup)
  } catch (error) {
    const code = error instanceof VdiskError ? error.code : undefined
    const message = error instanceof Error ? error.message : String(error)
    parentPort!.postMessage({ code, message } satisfies CopyFailure)
  }
})
