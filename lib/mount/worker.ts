/** What a worker thread of the kernel transport runs: its own view of the image, shown as files, served until the end. */

import { parentPort, workerData } from 'node:worker_threads'
import { attachImage } from '../image/attach.js'
import type { ImageHandle } from '../image/stack.js'
import { serve, type WorkerContext } from '../transports/kernel/device.js'
import { ImageTree, type TreeSettings } from './tree.js'

/** What every worker of a mount gets. */
export interface WorkerSetup {
  readonly image: ImageHandle
  readonly tree: TreeSettings
}

const { image: handle, tree, transport } = workerData as WorkerSetup & { readonly transport: WorkerContext }
const image = await attachImage(handle, transport.thread)
// The only thing that it ever asks the main thread for.
image.delegateWriteBack(() => parentPort?.postMessage('write back'))
serve(transport, new ImageTree(image, tree))
