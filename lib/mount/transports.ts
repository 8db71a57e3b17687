/**
 * What the life of a mount needs of a transport, and the table of transports. `lib/transports/` speaks protocols;
 * the modules named here bring one of them together with an image.
 */

import type { Image } from '../image/image.js'
import type { RequestSummary } from '../transports/statistics.js'
import type { UnmountOptions } from '../transports/unmount.js'
import { VdiskError } from '../util/errors.js'
import { makeTrace } from '../util/trace.js'
import type { MountOptions } from './registry.js'
import type { TreeSettings } from './tree.js'

const trace = makeTrace('mount')

export interface ServeRequest {
  /** Of the calling thread. */
  readonly image: Image
  readonly tree: TreeSettings
  readonly mountpoint: string
  readonly options: MountOptions
  /** A thread ended that should not have; nothing runs under its number any more. */
  workerDied(thread: number, reason: Error): void
}

/** Files that are being shown. */
export interface Serving {
  /**
   * Settles when the mount has ended, whoever ended it, and no thread works on the image any more. Rejects where it
   * ended for another reason than being unmounted.
   */
  readonly ended: Promise<void>
  /** `major:minor` of the mount. */
  readonly device?: string | undefined
  /** What was asked so far, and how many threads serve now. */
  requests(): { readonly workers: number; readonly requests: readonly RequestSummary[] }
  /** The name of the transport, where another one was chosen than was asked for. */
  readonly transport?: string | undefined
  /** What the user should know. */
  readonly notice?: string | undefined
}

export interface MountTransport {
  /** The threads that the image must have room for, the calling one included. */
  threads(options: MountOptions): number
  /** Mounts and serves. Resolves when the files can be used. @throws VdiskError; nothing is mounted then. */
  serve(request: ServeRequest): Promise<Serving>
  /**
   * Takes a mount away; a busy one is tried again for a moment, as a loop device that was just detached lets go of its
   * file a little later. `force` ends the connection, so that what is busy gets errors; `lazy` hides the mount at once
   * and ends it when nobody uses it any more. `device`: nothing happens where something else is on top there.
   * @throws VdiskError, IN_USE where it is busy, or something else on top; NOT_FOUND where nothing is mounted
   */
  unmount(mountpoint: string, how?: UnmountOptions): Promise<void>
}

/** What a transport can do, beside reading, writing and flushing; what it cannot, programs are told (EOPNOTSUPP). */
export type Ability = 'fallocate' | 'seek' | 'workers'

export interface TransportEntry {
  /** One line of help. */
  readonly help: string
  readonly abilities: readonly Ability[]
  load(): Promise<{ readonly transport: MountTransport }>
}

export const TRANSPORTS: Readonly<Record<string, TransportEntry>> = {
  kernel: {
    help: 'FUSE spoken with the kernel directly, by several threads',
    abilities: ['fallocate', 'seek', 'workers'],
    load: () => import('./kernel.js'),
  },
  'fuse-native': {
    help: 'through libfuse 2 and the npm package fuse-native, by one thread; no discard, no holes',
    abilities: [],
    load: () => import('./fuse-native.js'),
  },
}

export const TRANSPORT_NAMES: readonly string[] = Object.keys(TRANSPORTS)
/** The first of the table that works here. */
export const DEFAULT_TRANSPORT = 'auto'

/** The transport of a name, or `auto`. @throws USAGE; UNSUPPORTED where it cannot be used here, saying why */
export async function findTransport(name: string): Promise<MountTransport> {
  if (name === DEFAULT_TRANSPORT) return firstOf(TRANSPORTS)
  const entry = Object.hasOwn(TRANSPORTS, name) ? TRANSPORTS[name] : undefined
  if (!entry) throw new VdiskError('USAGE', `no transport is called ${name}; there is: ${TRANSPORT_NAMES.join(', ')}`)
  return (await entry.load()).transport
}

/**
 * A transport that mounts by the first of some; by the next one where that cannot work on this machine (UNSUPPORTED).
 * Where none can, the first one's reason is thrown.
 */
export async function firstOf(table: Readonly<Record<string, TransportEntry>>): Promise<MountTransport> {
  const [[first, entry], ...others] = Object.entries(table) as [[string, TransportEntry], ...[string, TransportEntry][]]
  let { transport } = await entry.load()
  return {
    threads: (options) => transport.threads(options),
    unmount: (mountpoint, how) => transport.unmount(mountpoint, how),
    async serve(request) {
      try {
        return { ...(await transport.serve(request)), transport: first }
      } catch (error) {
        if (!(error instanceof VdiskError) || error.code !== 'UNSUPPORTED') throw error
        for (const [name, other] of others) {
          try {
            const candidate = (await other.load()).transport
            const serving = await candidate.serve(request)
            transport = candidate
            return { ...serving, transport: name, notice: `mounted through ${name}, as ${error.message}` }
          } catch (why) {
            trace('%s cannot be used either: %O', name, why)
          }
        }
        throw error
      }
    },
  }
}
