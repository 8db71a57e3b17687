/** A mount over the kernel transport: the device mounted, and a pool of worker threads over the image. */

import { closeSync } from 'node:fs'
import type { Image } from '../image/image.js'
import type { KernelMount } from '../transports/kernel/mounting.js'
import type { CachePolicy } from '../transports/kernel/opens.js'
import { WorkerPool } from '../transports/kernel/pool.js'
import { mount as mountKernel } from '../transports/kernel/user-mounting.js'
import { unmount } from '../transports/unmount.js'
import { entryPoint } from '../util/entry.js'
import type { MountOptions } from './registry.js'
import type { MountTransport, ServeRequest, Serving } from './transports.js'
import type { WorkerSetup } from './worker.js'

/** A disk that makes its readers wait wants many requests under way at once; the pool starts few and grows. */
const DEFAULT_WORKERS = 16
const INITIAL_WORKERS = 2

const ENTRY = entryPoint('mount/worker.js')

async function serve(request: ServeRequest): Promise<Serving> {
  const { image, mountpoint, options } = request
  const mount = mountKernel({
    mountpoint,
    source: image.path,
    readOnly: options.readOnly,
    allowOther: options.allowOther,
    systemOptions: options.systemOptions,
  })
  const { device } = mount
  const pool = startPool(mount, request)
  const ended = pool.ended
    .catch(async (error: unknown) => {
      // No worker is left, so nobody would ever be answered.
      await unmount(mountpoint, { force: true, lazy: true, device })
      throw error
    })
    .finally(() => closeSync(mount.fd))
  try {
    await pool.start()
  } catch (error) {
    await unmount(mountpoint, { force: true, lazy: true, device }).catch(() => {})
    await ended.catch(() => {})
    throw error
  }
  return { ended, device, requests: () => ({ workers: pool.size, requests: pool.requests() }) }
}

function startPool(mount: KernelMount, { image, tree, options, workerDied }: ServeRequest): WorkerPool {
  const setup: WorkerSetup = { image: image.handle(), tree }
  const max = options.workers ?? DEFAULT_WORKERS
  return new WorkerPool({
    entry: ENTRY,
    data: () => setup,
    fd: mount.fd,
    negotiated: mount.negotiated,
    cachePolicy: cachePolicyOf(options),
    initial: Math.min(INITIAL_WORKERS, max),
    max,
    onDeath: workerDied,
    onMessage: writeBackOf(image),
  })
}

/** A function that has what was written brought to the disk; one that is called meanwhile has it done once more. */
function writeBackOf(image: Image): () => void {
  let running = false
  let again = false
  return async function begin() {
    again = running
    if (running) return
    running = true
    try {
      await image.writeBack()
    } finally {
      running = false
    }
    if (again) await begin()
  }
}

/**
 * `disk.raw` and `partitions/N.raw` are the same bytes under two names, for which the kernel would keep two copies of
 * each page: so it is to keep none.
 */
function cachePolicyOf({ partitions }: MountOptions): CachePolicy {
  return partitions ? 'direct' : 'cached'
}

export const transport: MountTransport = {
  threads: (options) => 1 + (options.workers ?? DEFAULT_WORKERS),
  serve,
  unmount,
}
