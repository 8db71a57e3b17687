/** Makes an image of another one, in any format: the disk's content is copied, and nothing else. */

import { realpathSync } from 'node:fs'
import { dirname } from 'node:path'
import { fromSystem, VdiskError } from '../../util/errors.js'
import { formatSize } from '../../util/sizes.js'
import { imageFile } from '../chain.js'
import { createImage } from '../create.js'
import type { Image } from '../image.js'
import { openImage, type Secret } from '../open.js'
import type { CopySettings } from './job.js'
import { type CopyProgress, Crew, MAX_WORKERS, runCopy, workersFor, workersForFile } from './run.js'
import { isDevice, NewFile, refuseSame } from './target.js'
import { MAX_GRANULE } from './zeros.js'

/** qemu-img's. */
const DEFAULT_SPARSE = 4096
const SPARSE_UNIT = 512
/** Threads that can be asked for. */
export const MAX_THREADS = 64

export interface ConvertOptions {
  /** The source's format; default: found by looking at the content. */
  readonly sourceFormat?: string | undefined
  /** The target's format; default `raw`. */
  readonly format?: string | undefined
  /** `name=value`, as the format declares them. */
  readonly options?: readonly string[]
  /** A snapshot in the source, by name or id, instead of its newest state. */
  readonly snapshot?: string | undefined
  /** Makes the target over this parent, which must hold what the source's parents hold; only the rest is copied. */
  readonly backing?: string | undefined
  readonly backingFormat?: string | undefined
  /** The target's data is compressed, where its format can do that. */
  readonly compress?: boolean
  /** Zeros are left out where at least so many bytes of them are together, a multiple of 512; 0: none are. Default 4096. */
  readonly sparse?: number
  /** The target exists, and is written into; it is not made, and not removed where something fails. */
  readonly existing?: boolean
  /** False: the source is read without a lock, although somebody may be writing it. */
  readonly lock?: boolean
  readonly backingDirs?: readonly string[]
  /** Threads that copy; default: one for each processor where that pays. */
  readonly threads?: number | undefined
  /** Aborting it stops the copy, and what was made is removed. */
  readonly signal?: AbortSignal | undefined
  /** Called before the target is made or changed: up to then, ending the process leaves nothing behind. */
  readonly onTarget?: (() => void) | undefined
  readonly onProgress?: ((progress: CopyProgress) => void) | undefined
  /** The passphrase of the source, and of a new target unless `targetSecret` is. */
  readonly secret?: Secret | undefined
  readonly targetSecret?: Secret | undefined
  readonly warn?: ((message: string) => void) | undefined
}

/**
 * Copies the disk that one image shows into another image, sparsely, and makes that durable. The source is opened
 * read-only and locked so. A target that exists is replaced at the end, when the new one is complete; one that is not
 * completed is removed.
 * @throws VdiskError: USAGE where source and target are one file, and what opening, creating, reading and writing throw
 */
export async function convert(source: string, target: string, options: ConvertOptions = {}): Promise<void> {
  const sparse = checkSparse(options.sparse ?? DEFAULT_SPARSE)
  const { threads: wanted = 1 } = options
  if (!Number.isInteger(wanted) || wanted < 1 || wanted > MAX_THREADS)
    throw new VdiskError('USAGE', `${wanted} threads: expected 1 to ${MAX_THREADS}`)
  if (options.existing && (options.options?.length ?? 0) > 0)
    throw new VdiskError('USAGE', 'options are for a new image, and the target is there already', { path: target })
  if (options.backingFormat !== undefined && options.backing === undefined)
    throw new VdiskError('USAGE', `the format ${options.backingFormat} of a parent is given, and no parent`, {
      path: target,
    })
  const { backingDirs = [], warn, snapshot, secret, lock } = options
  const opening = {
    readOnly: true,
    lock,
    format: options.sourceFormat,
    snapshot,
    backingDirs,
    secret,
    ...(warn && { warn }),
  }
  const threads = options.threads ?? 1 + MAX_WORKERS
  const crew = new Crew()
  crew.grow(options.threads ? threads - 1 : workersForFile(source))
  let from: Image | undefined
  try {
    from = openImage(source, { ...opening, threads })
    refuseSame(target, from.paths)
    const settings = {
      size: from.size,
      ownLayer: options.backing !== undefined,
      compress: options.compress ?? false,
      sparse,
    }
    if (!options.threads) crew.grow(workersFor(from.allocated()))
    if (options.existing || isDevice(target)) await intoExisting(from, target, settings, crew, options)
    else await intoNew(from, target, settings, crew, options)
  } finally {
    await crew.dismiss()
    from?.close()
  }
}

/** @throws USAGE */
function checkSparse(sparse: number): number {
  const right = Number.isSafeInteger(sparse) && sparse >= 0 && sparse % SPARSE_UNIT === 0
  if (right) return Math.min(sparse, MAX_GRANULE)
  throw new VdiskError('USAGE', `sparse size ${sparse}: expected 0, or a multiple of ${SPARSE_UNIT}`)
}

type Settings = Omit<CopySettings, 'blank'>

/** @throws USAGE */
function checkCompression(to: Image, { compress }: Settings): void {
  if (compress && !to.encodes)
    throw new VdiskError('USAGE', `format ${to.format} cannot be compressed, or not with these options`, {
      path: to.path,
    })
}

/** @throws NOT_FOUND, ACCESS */
function realPath(path: string): string {
  try {
    return realpathSync(path)
  } catch (error) {
    throw fromSystem(error, path, 'open')
  }
}

/** What is not copied has to be there already. @throws USAGE */
function checkParent(to: Image, backing: string): void {
  const parent = to.layers[1]?.path
  if (parent !== undefined && realPath(parent) === realPath(imageFile(backing))) return
  const found = parent === undefined ? 'no parent' : `the parent ${parent}`
  throw new VdiskError('USAGE', `it has ${found}: expected ${backing}`, { path: to.path })
}

async function intoNew(
  from: Image,
  target: string,
  settings: Settings,
  crew: Crew,
  options: ConvertOptions,
): Promise<void> {
  const file = new NewFile(target)
  let to: Image | undefined
  let others: readonly string[] = []
  try {
    const format = options.format ?? 'raw'
    const { backing, backingFormat, backingDirs = [], options: given = [] } = options
    const secret = options.targetSecret ?? options.secret
    const { size } = from
    const { mode } = file
    const made = { format, size, options: given, backing, backingFormat, backingDirs, secret, durable: false, mode }
    others = createImage(file.path, { ...made, onMaking: options.onTarget }).others
    file.made()
    // The user has said where its further files are to be.
    const folders = [...backingDirs, ...others.map(dirname)]
    to = openImage(file.path, {
      format,
      backingDirs: folders,
      secret,
      threads: 1 + crew.size,
      syncAtClose: true,
    })
    checkCompression(to, settings)
    await runCopy(from, to, { ...settings, blank: !settings.ownLayer }, crew, options)
    to.close()
    file.complete()
  } catch (error) {
    file.remove(others)
    to?.abandon()
    throw error
  }
}

async function intoExisting(
  from: Image,
  target: string,
  settings: Settings,
  crew: Crew,
  options: ConvertOptions,
): Promise<void> {
  const { backingDirs = [], format = 'raw' } = options
  if (!options.existing && format !== 'raw')
    throw new VdiskError('USAGE', `a new image of format ${format} cannot be made on a block device`, { path: target })
  const secret = options.targetSecret ?? options.secret
  const to = openImage(target, { format, backingDirs, secret, threads: 1 + crew.size })
  options.onTarget?.()
  try {
    if (to.size < from.size)
      throw new VdiskError('USAGE', `it has ${formatSize(to.size)}, and the source ${formatSize(from.size)}`, {
        path: target,
      })
    checkCompression(to, settings)
    if (options.backing !== undefined) checkParent(to, options.backing)
    await runCopy(from, to, { ...settings, blank: false }, crew, options)
  } finally {
    to.close()
  }
}
