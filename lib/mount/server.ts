/**
 * A mount from beginning to end, in the process that serves it: open the image, mount, serve, and, when the mount has
 * ended or this process is asked to end, commit and close.
 */

import { statSync } from 'node:fs'
import { basename } from 'node:path'
import type { Image } from '../image/image.js'
import { type OpenOptions, openImage } from '../image/open.js'
import { openOverlay, temporaryFolder } from '../image/overlay.js'
import { type PartitionTable, readPartitionTable } from '../partitions/table.js'
import { holdSignals } from '../util/signals.js'
import { Attachment } from './attachment.js'
import { LiveMount } from './life.js'
import { prepareMountpoint, refuseHiding } from './mountpoint.js'
import { thisProcess } from './processes.js'
import { claim, type MountOptions, makePrivate, type RegistryEntry, remove, removePrivate } from './registry.js'
import { findTransport, type MountTransport } from './transports.js'
import { treeSettings } from './tree.js'

/** Loop devices count in these. */
const SECTOR = 512

export interface ServerConfig {
  /** Absolute. */
  readonly image: string
  /** As the user wrote it, made absolute. Undefined: `attach`, a private folder and a loop device over what is in it. */
  readonly mountpoint: string | undefined
  readonly options: MountOptions
  /** The passphrase of an encrypted image, in base64. It is told on standard input only, and shown nowhere. */
  readonly secret?: string | undefined
  /** Where standard error goes; none in the foreground. */
  readonly log: string | undefined
}

/** Who is told how it goes; one line each. */
export interface Listener {
  /** The image can be mounted, but the user should know this. */
  warning(text: string): void
  /** The files can be used. Throws where nobody wants them any more: the mount ends then. */
  ready(entry: RegistryEntry): void
  /** Something went wrong later. */
  problem(text: string): void
  /** A line that was asked for. */
  report(text: string): void
}

/**
 * Mounts an image and serves it until that ends.
 * @returns when the image is committed and closed.
 * @throws VdiskError where it could not be mounted (nothing is left of it then), or not be committed at the end (which
 * `umount` reports then).
 */
export async function runServer(config: ServerConfig, listener: Listener): Promise<void> {
  const transport = await findTransport(config.options.transport)
  const mountpoint =
    config.mountpoint === undefined
      ? undefined
      : await prepareMountpoint(config.mountpoint, transport, listener.warning)
  const mount = await begin(config, mountpoint, transport, listener)
  await mount.live()
}

/**
 * Everything up to the first request. What was done is undone where a part of it fails.
 * @param given where to mount; undefined: in a folder of its own
 */
async function begin(
  config: ServerConfig,
  given: string | undefined,
  transport: MountTransport,
  listener: Listener,
): Promise<LiveMount> {
  const { options } = config
  const image = open(config.image, options, {
    readOnly: options.readOnly,
    format: options.format,
    snapshot: options.snapshot,
    backingDirs: options.backingDirs,
    threads: transport.threads(options),
    ...(config.secret === undefined ? {} : { secret: Buffer.from(config.secret, 'base64') }),
    warn: listener.warning,
    ...(options.cacheSize === undefined ? {} : { cacheSize: options.cacheSize }),
  })
  let entry: RegistryEntry | undefined
  const attached = given === undefined
  let made: string | undefined
  // Opening may take long, and a signal ends it at once; from here on there is something that must not be left behind.
  const release = holdSignals()
  try {
    if (attached) made = makePrivate(config.image)
    const mountpoint = given ?? made!
    // A temporary overlay has no name any more that could be hidden.
    const named = options.temporary ? image.layers.slice(1) : image.layers
    refuseHiding(
      mountpoint,
      named.map((layer) => layer.path),
    )
    const table = attached || options.partitions ? partitionTable(image, attached, listener) : undefined
    if (attached) warnOfRest(image, listener)
    const own = { ...newEntry(config, mountpoint, image), partitions: table?.partitions }
    claim(own)
    entry = own
    const { readOnly } = options
    const attachment = attached ? new Attachment({ mountpoint, readOnly, table: table! }) : undefined
    const mount = new LiveMount(own, image, transport, listener, attachment)
    const shown = options.partitions ? table?.partitions : undefined
    await mount.begin(treeSettings(options, statSync(config.image), shown))
    return mount
  } catch (error) {
    image.close()
    if (entry) remove(entry)
    if (made !== undefined) removePrivate(made)
    throw error
  } finally {
    release()
  }
}

function open(path: string, { overlay, temporary }: MountOptions, options: OpenOptions): Image {
  if (overlay === undefined && !temporary) return openImage(path, options)
  const image = openOverlay(path, overlay, options)
  if (temporary)
    options.warn?.(`what is written goes to an unnamed file in ${temporaryFolder()}, and is gone at the unmounting`)
  return image
}

/** Of a loop device's file, what is behind the last whole sector cannot be reached. */
function warnOfRest({ path, size }: Image, listener: Listener): void {
  const rest = size % SECTOR
  if (rest === 0) return
  const text = `its size is no multiple of ${SECTOR}, so its last ${rest} bytes cannot be reached through the device`
  listener.warning(`${basename(path)}: ${text}`)
}

/** What is wrong with the table is for the user to know. `attached`: a disk without one is nothing to speak of. */
function partitionTable(image: Image, attached: boolean, listener: Listener): PartitionTable {
  const table = readPartitionTable(image, image.sectorSize)
  const name = basename(image.path)
  for (const text of table.warnings) listener.warning(`${name}: ${text}`)
  if (table.label === 'none' && !attached) listener.warning(`${name}: there is no partition table on this disk`)
  return table
}

function newEntry({ image: path, options, log }: ServerConfig, mountpoint: string, image: Image): RegistryEntry {
  const { size } = image
  // Of the image that was named, whatever lies over it.
  const { format } = image.layers[options.overlay !== undefined || options.temporary ? 1 : 0]!
  return { mountpoint, image: path, format, size, ...thisProcess(), options, log, statistics: true, phase: 'starting' }
}
