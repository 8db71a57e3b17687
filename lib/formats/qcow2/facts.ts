/** What `info` tells of a QCOW2 image, with qemu-img's names. */

import type { Storage } from '../../storage/storage.js'
import { VdiskError } from '../../util/errors.js'
import type { Facts } from '../driver.js'
import { bitmapsConsistent } from './bitmap-directory.js'
import { listBitmaps } from './bitmap-tools.js'
import { ExtensionType, extensionText } from './extensions.js'
import { Autoclear, COMPRESSION_NAMES, Compatible, Incompatible } from './header.js'
import type { Qcow2Layout } from './layout.js'

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
    ...bitmapFacts(layout, storage),
  }
}

/** An image with a damaged directory is still an image. */
function bitmapFacts({ header }: Qcow2Layout, storage: Storage): Facts {
  if (!bitmapsConsistent(header)) return {}
  try {
    const bitmaps = listBitmaps(storage).map(({ name, granularity, flags }) => ({ name, granularity, flags }))
    return bitmaps.length === 0 ? {} : { bitmaps }
  } catch (error) {
    if (!(error instanceof VdiskError)) throw error
    return { 'bitmaps-error': error.message }
  }
}
