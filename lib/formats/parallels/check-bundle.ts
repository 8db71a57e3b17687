/**
 * Checks a bundle: whether its descriptor describes disks that can be opened, of every snapshot, and then every image. What
 * is wrong with one image keeps nobody from looking at the others.
 */

import type { Storage } from '../../storage/storage.js'
import { type ErrorCode, VdiskError } from '../../util/errors.js'
import { NIL_GUID } from '../../util/guid.js'
import type { CheckContext, CheckTotals } from '../driver.js'
import { braced, lacksImage, openPartFile, PLAIN_PARENT, whereIs } from './bundle.js'
import { checkImage } from './check.js'
import { type DescribedImage, type DescribedStorage, type Descriptor, readDescriptor } from './descriptor.js'
import { geometryOf, readHeader } from './header.js'

type Broken = (what: string, message: string) => void

/** Errors that say something of a part; others say that nobody can look at it now. */
const OF_THE_PART: ReadonlySet<ErrorCode> = new Set(['NOT_FOUND', 'FORMAT', 'CORRUPT', 'UNSUPPORTED', 'USAGE'])

/** @throws CORRUPT, UNSUPPORTED for the descriptor; GATE, IN_USE, ACCESS, IO for parts */
export function checkBundle(context: CheckContext): CheckTotals {
  const descriptor = readDescriptor(context.storage)
  const broken: Broken = (what, message) =>
    context.found({ severity: 'corruption', what, message, repairable: false, repaired: false })
  checkShots(descriptor, broken)
  checkStorages(descriptor, broken)
  let totals: CheckTotals = { imageEnd: 0, clusters: 0, allocated: 0, fragmented: 0, compressed: 0 }
  for (const storage of descriptor.storages)
    for (const image of storage.images) {
      const found = checkPart(image, storage, context, broken)
      if (found) totals = sum(totals, found)
    }
  return totals
}

/** Every snapshot lies over others up to one that lies over nothing. */
function checkShots({ parents, top }: Descriptor, broken: Broken): void {
  if (!parents.has(top)) broken('snapshots', `its top snapshot ${braced(top)} is not in its list of snapshots`)
  const known = new Set<string>()
  for (const guid of parents.keys()) {
    const walked = new Set<string>()
    let at = guid
    while (parents.has(at) && !known.has(at) && !walked.has(at)) {
      walked.add(at)
      at = parents.get(at)!
    }
    if (walked.has(at)) broken('snapshots', `snapshot ${braced(at)} lies over itself: its list of snapshots has a loop`)
    for (const one of walked) known.add(one)
  }
  for (const [guid, parent] of parents)
    if (parent !== NIL_GUID && !parents.has(parent))
      broken('snapshots', `the parent ${braced(parent)} of snapshot ${braced(guid)} is not in its list of snapshots`)
}

/** Every snapshot has an image in every storage, the first of them at most a plain one. */
function checkStorages({ storages, parents, top }: Descriptor, broken: Broken): void {
  // The top first, because that is what matters most: of each storage one is named.
  const wanted = parents.has(top) ? [top, ...parents.keys()] : [...parents.keys()]
  for (const storage of storages) {
    const there = new Set(storage.images.map(({ guid }) => guid))
    const lacking = wanted.find((guid) => !there.has(guid))
    if (lacking !== undefined) broken('snapshots', lacksImage(storage, lacking))
    for (const { guid, plain, file } of storage.images)
      if (plain && (parents.get(guid) ?? NIL_GUID) !== NIL_GUID) broken('part', `${file}: ${PLAIN_PARENT}`)
  }
}

function checkPart(
  image: DescribedImage,
  described: DescribedStorage,
  context: CheckContext,
  broken: Broken,
): CheckTotals | undefined {
  const { file, plain } = image
  const length = described.end - described.start
  try {
    const { storage } = openPartFile(image, context)
    const totals = plain ? undefined : checkExpanding(storage, file, context)
    const size = plain ? storage.size() : geometryOf(readHeader(storage)).size
    const what = plain ? 'it' : 'its disk'
    if (size < length)
      broken('part', `${file}: ${what} has ${size} bytes, expected ${length} for ${whereIs(described)}`)
    return totals
  } catch (error) {
    if (!(error instanceof VdiskError) || !OF_THE_PART.has(error.code)) throw error
    broken('part', `${file}: ${error.code === 'NOT_FOUND' ? 'it is missing' : withoutPath(error)}`)
    return undefined
  }
}

function checkExpanding(storage: Storage, file: string, context: CheckContext): CheckTotals {
  return checkImage(storage, {
    repair: context.repair,
    found: (finding) => context.found({ ...finding, path: storage.path, message: `${file}: ${finding.message}` }),
  })
}

function withoutPath({ message, path }: VdiskError): string {
  return message.startsWith(`${path}: `) ? message.slice(`${path}: `.length) : message
}

function sum(a: CheckTotals, b: CheckTotals): CheckTotals {
  return {
    imageEnd: a.imageEnd + b.imageEnd,
    clusters: a.clusters + b.clusters,
    allocated: a.allocated + b.allocated,
    fragmented: a.fragmented + b.fragmented,
    compressed: 0,
  }
}
