/** Ending a mount from outside: `vdiskfs umount`. */

import { setTimeout as sleep } from 'node:timers/promises'
import { VdiskError } from '../util/errors.js'
import { describeHolders } from './holders.js'
import { isOurType, mountAt, resolveMountpoint } from './mounts.js'
import { isAlive } from './processes.js'
import { find, type RegistryEntry, remove, stateOf } from './registry.js'
import { DEFAULT_TRANSPORT, findTransport, type MountTransport } from './transports.js'

const WAIT_INTERVAL = 10
/** After so long the user is told what it is waiting for. */
const PATIENCE = 5_000

/** Takes a mount away. @throws IN_USE where it stays busy, saying who holds it */
export async function unmountOrSay(mountpoint: string, transport: MountTransport): Promise<void> {
  try {
    await transport.unmount(mountpoint)
  } catch (error) {
    // Somebody else was faster: the server itself, when it ends.
    if (error instanceof VdiskError && error.code === 'NOT_FOUND') return
    if (!(error instanceof VdiskError) || error.code !== 'IN_USE') throw error
    throw new VdiskError('IN_USE', `${mountpoint} is busy: ${describeHolders(mountpoint)}`, { cause: error })
  }
}

/**
 * Ends a mount, and returns when its image is committed and closed and its server is gone.
 * @param notice is told what the user should know
 * @throws NOT_FOUND where nothing of ours is mounted there, IN_USE where it is busy (nothing has changed then), IO where
 * the server could not commit or was not there any more.
 */
export async function endMount(path: string, notice: (message: string) => void): Promise<void> {
  const mountpoint = resolveMountpoint(path)
  const entry = find(mountpoint)
  const mount = mountAt(mountpoint)
  if (!entry && !mount) throw new VdiskError('NOT_FOUND', `${path} is not mounted`)
  const ours = mount !== undefined && isOurType(mount.type)
  if (!entry && !ours) throw new VdiskError('NOT_FOUND', `${path} is a mount of type ${mount?.type}, not of vdiskfs`)
  // Asked before: a quick server is gone by the time the unmounting program has ended.
  const wasAlive = entry !== undefined && isAlive(entry)
  if (ours) {
    const transport = await findTransport(entry?.options.transport ?? DEFAULT_TRANSPORT)
    await unmountOrSay(mountpoint, transport)
  }
  if (entry) await awaitServer(entry, wasAlive, notice)
  else notice(`${mountpoint} is unmounted; its server is not in the registry of this user, so it was not waited for`)
}

async function awaitServer(entry: RegistryEntry, wasAlive: boolean, notice: (message: string) => void): Promise<void> {
  const start = Date.now()
  let told = false
  while (isAlive(entry)) {
    await sleep(WAIT_INTERVAL)
    if (told || Date.now() - start < PATIENCE) continue
    told = true
    notice(`waiting for the server (pid ${entry.pid}) to write ${entry.image}`)
  }
  // Of one that was dead already, `list` may have taken the entry away meanwhile.
  const left = wasAlive ? find(entry.mountpoint) : entry
  // Nothing left: it ended well. Another pid: so it did, and the next mount is there already.
  if (!left || left.pid !== entry.pid || left.startTime !== entry.startTime) return
  const state = stateOf(left)
  remove(left)
  if (state === 'failed') throw new VdiskError('IO', `${left.image} was not closed well: ${left.error}`)
  const when = wasAlive ? 'ended before it had closed the image' : 'had been killed'
  throw new VdiskError('IO', `the server of ${left.image} ${when}; what was not flushed is lost`)
}
