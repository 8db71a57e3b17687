/** What `info` tells of a QCOW2 image, with qemu-img's names. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { Facts } from '../driver.js'
import { ExtensionType, extensionText } from './extensions.js'
import { Autoclear, COMPRESSION_NAMES, Compatible, Incompatible } from './header.js'
import type { Qcow2Layout } from './layout.js'
import { readSnapshots } from './snapshots.js'

export function qcow2Facts(layout: Qcow2Layout, storage: Storage): Facts {
  const { header, clusterSize, refcountOrder, compressionType, encryption } = layout
  const { incompatible, compatible, autoclear, extensions } = header
  const dataFile = extensionText(extensions, ExtensionType.DATA_FILE)
  return {
    compat: header.version === 2 ? '0.10' : '1.1',
    'cluster-size': clusterSize,
    'compression-type': COMPRESSION_NAMES[compressionType] ?? compressionType,
    'refcount-bits': 2 ** refcountOrder,
    ...(header.version > 2 && {
      'lazy-refcounts': compatible.includes(Compatible.LAZY_REFCOUNTS),
      corrupt: incompatible.includes(Incompatible.CORRUPT),
      'dirty-flag': incompatible.includes(Incompatible.DIRTY),
      'extended-l2': layout.extendedL2,
    }),
    ...(incompatible.includes(Incompatible.DATA_FILE) && {
      'data-file': dataFile ?? null,
      'data-file-raw': autoclear.includes(Autoclear.RAW_DATA_FILE),
    }),
    ...(encryption && { encrypt: encryption.facts }),
    ...snapshotFacts(layout, storage),
  }
}

/** As many as can be read: an image with a damaged table of snapshots is still an image. */
function snapshotFacts({ header }: Qcow2Layout, storage: Storage): Facts {
  if (header.nbSnapshots === 0) return {}
  const snapshots: Facts[] = []
  try {
    for (const snapshot of readSnapshots(storage, header))
      snapshots.push({
        id: snapshot.id,
        name: snapshot.name,
        'vm-state-size': snapshot.vmStateSize,
        'date-sec': snapshot.dateSeconds,
        'date-nsec': snapshot.dateNanoseconds,
        'vm-clock-sec': Math.floor(snapshot.vmClockNanoseconds / 1e9),
        'vm-clock-nsec': snapshot.vmClockNanoseconds % 1e9,
      })
    return { snapshots }
  } catch (error) {
    if (!(error instanceof VdiskError)) throw error
    return { snapshots, 'snapshots-error': error.message }
  }
}
