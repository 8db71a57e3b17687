/** Ending a mount from outside: `vdiskfs umount`. */

import { setTimeout as sleep } from 'node:timers/promises'
import { VdiskError } from '../util/errors.js'
import { describeHolders } from './holders.js'
import { isOurType, type MountEntry, mountAt, mounts, resolveMountpoint } from './mounts.js'
import { describePlaces, otherPlaces, placeOf } from './places.js'
import { isAlive } from './processes.js'
import { find, type RegistryEntry, remove, stateOf } from './registry.js'
import { DEFAULT_TRANSPORT, findTransport, type MountTransport } from './transports.js'

const WAIT_INTERVAL = 10
/** After so long the user is told what it is waiting for. */
const PATIENCE = 5_000

/**
 * Takes a mount away.
 * @param device its `major:minor`; undefined: whatever is mounted there
 * @throws IN_USE where it stays busy, saying who holds it, and nothing has changed
 */
export async function unmountOrSay(mountpoint: string, transport: MountTransport, device?: string): Promise<void> {
  const [other, ...more] = device === undefined ? [] : otherPlaces(device, mountpoint)
  if (other !== undefined)
    throw new VdiskError('IN_USE', `${mountpoint} is busy: it is mounted at ${[other, ...more].join(', ')} too`)
  try {
    await transport.unmount(mountpoint, { device })
  } catch (error) {
    if (!(error instanceof VdiskError)) throw error
    const place = device === undefined ? undefined : placeOf(device, mountpoint)
    // Somebody else was faster: the server itself, when it ends.
    if (error.code === 'NOT_FOUND' && place === undefined) return
    if (error.code !== 'IN_USE') throw error
    throw new VdiskError('IN_USE', `${mountpoint} is busy: ${describeHolders(mountpoint)}`, { cause: error })
  }
}

/**
 * Ends a mount, and returns when its image is committed and closed and its server is gone.
 * @param notice is told what the user should know
 * @throws NOT_FOUND where nothing of ours is mounted there; IN_USE where it is busy (nothing has changed then), or was
 * unmounted and goes on in another mount namespace; IO where the server could not commit or was not there any more.
 */
export async function endMount(path: string, notice: (message: string) => void): Promise<void> {
  const mountpoint = resolveMountpoint(path)
  const entry = find(mountpoint)
  const top = mountAt(mountpoint)
  if (!entry && !top) throw new VdiskError('NOT_FOUND', `${path} is not mounted`)
  if (!entry && !isOurType(top!.type))
    throw new VdiskError('NOT_FOUND', `${path} is a mount of type ${top!.type}, not of vdiskfs`)
  // Asked before: a quick server is gone by the time the unmounting program has ended.
  const wasAlive = entry !== undefined && isAlive(entry)
  const mount = mountOf(entry, mountpoint)
  const place = mount && placeOf(mount.device, mountpoint)
  if (place !== undefined) {
    const transport = await findTransport(entry?.options.transport ?? DEFAULT_TRANSPORT)
    await unmountOrSay(place, transport, mount!.device)
  }
  if (entry) await awaitServer(entry, { mount, wasAlive }, notice)
  else notice(`${mountpoint} is unmounted; its server is not in the registry of this user, so it was not waited for`)
}

/** Whatever is mounted over it; also where it was moved to. */
function mountOf(entry: RegistryEntry | undefined, mountpoint: string): MountEntry | undefined {
  const ours = mounts().filter(({ type }) => isOurType(type))
  const moved = entry && isAlive(entry) && ours.find(({ device }) => device === entry.device)
  return moved || mountAt(mountpoint, ours)
}

interface Ending {
  /** What was mounted. */
  readonly mount: MountEntry | undefined
  readonly wasAlive: boolean
}

async function awaitServer(entry: RegistryEntry, { mount, wasAlive }: Ending, notice: (message: string) => void) {
  let next = Date.now() + PATIENCE
  let told = false
  while (isAlive(entry)) {
    await sleep(WAIT_INTERVAL)
    if (Date.now() < next) continue
    next = Date.now() + PATIENCE
    refuseHeld(entry, mount)
    if (!told) notice(`waiting for the server (pid ${entry.pid}) to write ${entry.image}`)
    told = true
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

/** Its file system may be shown where unmounting does not reach, for as long as somebody likes. @throws IN_USE */
function refuseHeld(entry: RegistryEntry, mount: MountEntry | undefined): void {
  const { mountpoint, pid } = entry
  const device = mount?.device ?? entry.device
  const sources = mount ? [mount.source] : [entry.image, entry.options.overlay]
  const who = device === undefined ? undefined : describePlaces(device, sources)
  if (who === undefined) return
  throw new VdiskError('IN_USE', `${mountpoint} is unmounted, and its server (pid ${pid}) goes on: ${who}`)
}
